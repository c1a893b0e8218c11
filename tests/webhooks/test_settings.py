"""What an operator sets about webhooks, and what becomes of secrets when peppers change."""

from __future__ import annotations

from pathlib import Path

import pytest
from texture.auth.v1 import webhook_service_pb2 as pb

from server.app import App, StartRefused
from server.settings import Settings
from tests.harness import running_service
from tests.webhooks.receiver import Receiver, settings_for
from tests.webhooks.test_sending import create
from tests.wire.helpers import make_key, make_workspace


@pytest.mark.parametrize("content", [None, "no certificate", ""])
def test_authorities_that_cannot_be_read_stop_the_start(tmp_path: Path, content: str | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    settings = Settings(development=True, database=f"sqlite:{tmp_path / 'auth.db'}", webhook_ca=ca)
    with pytest.raises(StartRefused, match="TEXTURE_AUTH_WEBHOOK_CA: "):
        App(settings)


def test_private_hosts_are_named_with_commas_between_in_any_case() -> None:
    settings = Settings(webhook_private_hosts=" Hooks.internal, ,10.0.0.7,")
    assert settings.webhook_private_host_names == {"hooks.internal", "10.0.0.7"}
    assert Settings().webhook_private_host_names == frozenset()


def test_secrets_move_to_the_pepper_that_signs_and_go_on_signing(tmp_path: Path, ca: Path, receiver: Receiver) -> None:
    old, new = (f"{name} {digit * 64}\n" for name, digit in (("old", "1"), ("new", "2")))
    peppers = tmp_path / "chosen-peppers"
    settings = settings_for(ca) | {"peppers_file": peppers}
    peppers.write_text(old)
    with running_service(tmp_path, **settings) as service:
        make_workspace(service)
        created = create(service, receiver.url, event_types=["key.created"])
        rows = service.query("SELECT pepper_id FROM webhook_secret")
        assert rows == [{"pepper_id": "old"}]
    peppers.write_text(new + old)
    with running_service(tmp_path, **settings) as service:
        make_key(service)
        # By its old pepper, or by its new one: nobody can tell.
        assert receiver.wait_for(1)[0].signed_by(created.signing_secret)
        service.app._housekeeper.run_once()
        assert service.query("SELECT pepper_id FROM webhook_secret") == [{"pepper_id": "new"}]
    peppers.write_text(new)
    receiver.received.clear()
    with running_service(tmp_path, **settings) as service:
        make_key(service)
        assert receiver.wait_for(1)[0].signed_by(created.signing_secret)
        request = pb.GetWebhookEndpointRequest(webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id)
        assert len(service.operator.webhooks.GetWebhookEndpoint(request).webhook_endpoint.secrets) == 1
