"""Serve both: the settings of the client are those of the `texture-auth` command, TEXTURE_AUTH_ADDRESS and so on."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from texture_auth import Authorizer

from device_api.grpc_api import make_server
from device_api.http_api import make_app
from device_api.store import Store


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    store = Store()
    authorizer = Authorizer.from_environment()
    server = make_server(store, authorizer)
    address = os.environ.get("DEVICE_API_GRPC", "127.0.0.1:50061")
    port = server.add_insecure_port(address)
    host, _, http_port = os.environ.get("DEVICE_API_HTTP", "127.0.0.1:8080").rpartition(":")
    listening = socket.create_server((host, int(http_port)))

    @asynccontextmanager
    async def both(_: FastAPI) -> AsyncIterator[None]:
        with authorizer:
            server.start()
            http = listening.getsockname()[1]
            print(f"gRPC on {address.rpartition(':')[0]}:{port}, HTTP on {host}:{http}", flush=True)
            yield
            server.stop(5).wait()

    app = make_app(store, authorizer, both)
    # The middleware says whom to believe about the client's address; uvicorn would believe whoever is on loopback.
    uvicorn.Server(uvicorn.Config(app, proxy_headers=False, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
