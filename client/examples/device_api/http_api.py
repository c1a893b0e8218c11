"""The API over HTTP. What each route needs stands in its signature; one that says nothing stops the start."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from texture_auth import Authorizes, Decision
from texture_auth.asgi import Authorized, TextureAuth

from device_api.store import Store

MayList = Annotated[Decision, Depends(Authorized("devices:list"))]
MayRead = Annotated[Decision, Depends(Authorized("devices:read", device="device_id"))]
MayCommand = Annotated[Decision, Depends(Authorized("devices:command", device="device_id"))]


class Command(BaseModel):
    """What a device is to do."""

    command: str


def make_app(
    store: Store, authorizer: Authorizes, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    """Return the app."""
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(TextureAuth, authorizer=authorizer)

    @app.get("/v1/devices")
    def list_devices(decision: MayList) -> dict[str, Any]:
        scope = decision.device_scope
        return {"devices": [] if scope is None else [device.public() for device in store.within(scope)]}

    @app.get("/v1/devices/{device_id}")
    def get_device(device_id: str, _: MayRead) -> dict[str, Any]:
        return store.get(device_id).public()

    @app.post("/v1/devices/{device_id}/commands")
    def send_command(device_id: str, command: Command, _: MayCommand) -> dict[str, str]:
        store.command(device_id, command.command)
        return {"device_id": device_id, "command": command.command}

    return app
