"""Completing Connect links: the devices arrive, and the end user's key is minted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta
from urllib.parse import parse_qsl, unquote, urlsplit

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import connect_service_pb2 as pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.connect_link_pb2 import CONNECT_LINK_STATE_COMPLETED
from texture.auth.v1.key_pb2 import KEY_KIND_SCOPED, KEY_STATE_ACTIVE

from server.domain.token import TokenKind, mint, new_id
from tests.harness import Client, Refused, Service, refused
from tests.wire.links_helpers import (
    BACKEND_URI,
    SITE_URI,
    WORKSPACE,
    cancel,
    complete,
    connect_key,
    create_link,
    create_workspace,
    devices,
    forbid_links,
    get_device,
    get_key,
    get_link,
    length,
    link_state,
    query_of,
    reason,
    register,
    register_uris,
    scoped_key,
    scoped_keys,
    server_key,
    unregister_workspace_uris,
    with_wrong_secret,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
RACERS = 16


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    return service.operator


class TestCompleting:
    def test_the_link_closes_the_devices_are_recorded_and_a_scoped_key_is_minted(
        self, service: Service, operator: Client
    ) -> None:
        site = connect_key(operator)
        made = create_link(operator, site.api_key)
        service.clock.turn(timedelta(minutes=3))
        done = operator.connect.CompleteConnectLink(
            pb.CompleteConnectLinkRequest(
                link_token=made.link_token,
                devices=[
                    pb.ConnectedDevice(device_id="battery-2", manufacturer="acme"),
                    pb.ConnectedDevice(device_id="battery-1"),
                ],
            )
        )

        assert done.connect_link.state == CONNECT_LINK_STATE_COMPLETED
        assert done.connect_link.end_time.ToDatetime(UTC) == service.clock.now
        assert done.connect_link.scoped_key_id == done.scoped_key.key_id
        assert get_link(operator, made.connect_link.connect_link_id) == done.connect_link

        key = done.scoped_key
        assert key == get_key(operator, key.key_id)
        assert key.kind == KEY_KIND_SCOPED
        assert key.state == KEY_STATE_ACTIVE
        assert key.workspace_id == WORKSPACE
        assert key.reference_id == made.connect_link.reference_id
        assert key.connect_link_id == made.connect_link.connect_link_id
        assert list(key.permissions) == ["devices:command", "devices:list", "devices:read"]
        assert key.created_by_key_id == site.key.key_id
        assert key.expire_time.ToDatetime(UTC) == service.clock.now + timedelta(days=365)
        assert done.scoped_api_key.startswith(f"txk_scp_{key.key_id}_")

        assert [device.device_id for device in done.devices] == ["battery-2", "battery-1"]
        for device in done.devices:
            assert device == get_device(operator, device.device_id)
            assert device.workspace_id == WORKSPACE
            assert device.reference_id == made.connect_link.reference_id
        assert done.devices[0].manufacturer == "acme"
        assert done.devices[1].manufacturer == ""
        assert done.revision

    def test_the_scoped_key_lives_as_long_as_its_workspace_says(self, service: Service) -> None:
        client = service.operator
        create_workspace(client, scoped_key_lifetime=length(timedelta(minutes=5)))
        key = scoped_key(client, "user-1", ["battery-1"])
        assert reason(client, key.api_key, "battery-1") == "PERMITTED"
        service.clock.turn(timedelta(minutes=5))
        assert reason(client, key.api_key, "battery-1") == "KEY_EXPIRED"

    def test_the_scoped_key_reaches_its_end_users_devices_and_no_other(self, operator: Client) -> None:
        create_workspace(operator, "grid-two")
        register(operator, "user-2", "another-users")
        register(operator, "user-1", "same-name-elsewhere", workspace_id="grid-two")
        register(operator, "user-1", "registered-before")
        key = scoped_key(operator, "user-1", ["battery-1"])

        for device_id in ("battery-1", "registered-before"):
            for permission in ("devices:read", "devices:command"):
                assert reason(operator, key.api_key, device_id, permission) == "PERMITTED"
        for device_id in ("another-users", "same-name-elsewhere", "no-such-device", "not an id"):
            assert reason(operator, key.api_key, device_id) == "DEVICE_NOT_PERMITTED"

    def test_the_scoped_key_reaches_devices_connected_later(self, operator: Client) -> None:
        key = scoped_key(operator, "user-1", ["battery-1"])
        assert reason(operator, key.api_key, "battery-2") == "DEVICE_NOT_PERMITTED"
        later = scoped_key(operator, "user-1", ["battery-2"])
        register(operator, "user-1", "battery-3")
        for api_key in (key.api_key, later.api_key):
            for device_id in ("battery-1", "battery-2", "battery-3"):
                assert reason(operator, api_key, device_id) == "PERMITTED"

    def test_the_scoped_key_manages_nothing(self, operator: Client) -> None:
        api_key = scoped_key(operator, "user-1", ["battery-1"]).api_key
        for permission in ("keys:manage", "workspace:configure", "connect_links:create"):
            assert reason(operator, api_key, permission=permission) == "PERMISSION_NOT_GRANTED"

    def test_each_end_user_of_a_connect_key_gets_a_key_to_their_own_devices(self, operator: Client) -> None:
        site = connect_key(operator).api_key
        one = complete(operator, create_link(operator, site).link_token, "battery-1").scoped_api_key
        two = complete(operator, create_link(operator, site).link_token, "battery-2").scoped_api_key
        assert reason(operator, one, "battery-1") == reason(operator, two, "battery-2") == "PERMITTED"
        assert reason(operator, one, "battery-2") == reason(operator, two, "battery-1") == "DEVICE_NOT_PERMITTED"

    def test_a_device_that_the_end_user_already_has_is_fine(self, service: Service, operator: Client) -> None:
        before = register(operator, "user-1", "battery-1", manufacturer="acme")[0]
        service.clock.turn(timedelta(minutes=1))
        key = scoped_key(operator, "user-1", ["battery-1"])
        assert get_device(operator, "battery-1") == before
        assert reason(operator, key.api_key, "battery-1") == "PERMITTED"

    def test_connecting_again_brings_a_newly_known_maker(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1")
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id="user-1")
        device = pb.ConnectedDevice(device_id="battery-1", manufacturer="acme")
        operator.connect.CompleteConnectLink(
            pb.CompleteConnectLinkRequest(link_token=link.link_token, devices=[device])
        )
        assert get_device(operator, "battery-1").manufacturer == "acme"

    def test_a_thousand_devices_may_be_connected_at_once(self, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        names = [f"device-{number}" for number in range(1000)]
        done = complete(operator, token, *names)
        assert [device.device_id for device in done.devices] == names


class TestRedirect:
    def test_the_key_and_the_clients_state_are_added_to_the_query(self, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key, client_state="cart-17")
        done = complete(operator, link.link_token, "battery-1")
        assert done.redirect_uri.startswith(SITE_URI + "?")
        assert query_of(done.redirect_uri) == {
            "texture_scoped_key": [done.scoped_api_key],
            "client_state": ["cart-17"],
        }

    def test_without_a_state_only_the_key_is_added(self, operator: Client) -> None:
        done = complete(operator, create_link(operator, connect_key(operator).api_key).link_token, "battery-1")
        assert query_of(done.redirect_uri) == {"texture_scoped_key": [done.scoped_api_key]}

    @pytest.mark.parametrize(
        ("uri", "kept"),
        [
            ("https://app.example/done?a=1&a=2&b=", "a=1&a=2&b="),
            ("https://app.example/done?flag", "flag"),
            ("https://app.example/done?next=%2Fhome%3Fx%3D1&plus=a+b", "next=%2Fhome%3Fx%3D1&plus=a+b"),
            ("com.example.app:/done?a=1", "a=1"),
        ],
    )
    def test_what_the_query_already_held_is_kept_as_it_was(self, operator: Client, uri: str, kept: str) -> None:
        link = create_link(operator, connect_key(operator, redirect_uris=[uri]).api_key, uri, client_state="s")
        done = complete(operator, link.link_token, "battery-1")
        assert done.redirect_uri.startswith(uri + "&")
        pairs = parse_qsl(urlsplit(done.redirect_uri).query, keep_blank_values=True)
        assert pairs[: len(parse_qsl(kept, keep_blank_values=True))] == parse_qsl(kept, keep_blank_values=True)
        assert pairs[-2:] == [("texture_scoped_key", done.scoped_api_key), ("client_state", "s")]

    @pytest.mark.parametrize("client_state", ["a&texture_scoped_key=x", "a=b&c#d?e/f%20+\"'<>\\", "100%"])
    def test_the_state_comes_back_unchanged_and_adds_nothing_of_its_own(
        self, operator: Client, client_state: str
    ) -> None:
        link = create_link(operator, connect_key(operator).api_key, client_state=client_state)
        done = complete(operator, link.link_token, "battery-1")
        assert query_of(done.redirect_uri) == {
            "texture_scoped_key": [done.scoped_api_key],
            "client_state": [client_state],
        }
        assert urlsplit(done.redirect_uri).fragment == ""

    def test_the_state_is_the_same_to_an_app_that_decodes_percent_signs_only(self, operator: Client) -> None:
        # A `+` means a space in HTML forms only; what apps are given to read URIs with leaves it as it is.
        link = create_link(operator, connect_key(operator).api_key, client_state="two words + more")
        done = complete(operator, link.link_token, "battery-1")
        raw = dict(part.split("=", 1) for part in urlsplit(done.redirect_uri).query.split("&"))["client_state"]
        assert unquote(raw) == "two words + more"


class TestRefusals:
    def test_a_device_of_another_end_user_is_refused_and_then_nothing_is_recorded(self, operator: Client) -> None:
        theirs = register(operator, "user-2", "battery-9")
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id="user-1")
        found = refused(complete, operator, link.link_token, "battery-1", "battery-9", "battery-2")

        assert (found.code, found.reason) == (FAILED_PRECONDITION, "DEVICE_OWNED_BY_ANOTHER")
        assert found.metadata["device_ids"] == "battery-9"
        assert devices(operator) == ["battery-9"]
        assert get_device(operator, "battery-9") == theirs[0]
        assert scoped_keys(operator) == []
        assert link_state(operator, link.connect_link.connect_link_id) == "OPEN"
        # The link is none the worse for it.
        done = complete(operator, link.link_token, "battery-1", "battery-2")
        assert reason(operator, done.scoped_api_key, "battery-9") == "DEVICE_NOT_PERMITTED"

    def test_a_device_of_another_workspace_is_refused_even_for_an_end_user_of_the_same_name(
        self, operator: Client
    ) -> None:
        create_workspace(operator, "grid-two")
        register(operator, "user-1", "battery-9", workspace_id="grid-two")
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id="user-1")
        found = refused(complete, operator, link.link_token, "battery-1", "battery-9")
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "DEVICE_OWNED_BY_ANOTHER")
        assert get_device(operator, "battery-9").workspace_id == "grid-two"
        assert devices(operator) == []
        assert scoped_keys(operator) == []
        assert link_state(operator, link.connect_link.connect_link_id) == "OPEN"

    def test_a_failed_completion_does_not_use_up_its_request_id(self, operator: Client) -> None:
        register(operator, "user-2", "battery-9")
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id="user-1")
        refused(complete, operator, link.link_token, "battery-9", request_id="once")
        operator.devices.RemoveDevices(device_pb.RemoveDevicesRequest(workspace_id=WORKSPACE, device_ids=["battery-9"]))
        assert complete(operator, link.link_token, "battery-9", request_id="once").scoped_api_key

    def test_an_error_names_ten_devices_at_most(self, operator: Client) -> None:
        theirs = [f"battery-{number}" for number in range(12)]
        register(operator, "user-2", *theirs)
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id="user-1")
        found = refused(complete, operator, link.link_token, *theirs)
        assert found.metadata["device_ids"].startswith(", ".join(theirs[:10]))
        assert "battery-10" not in found.metadata["device_ids"]

    def test_a_completed_link_is_refused(self, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        complete(operator, token, "battery-1")
        found = refused(complete, operator, token, "battery-1")
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "CONNECT_LINK_COMPLETED")
        assert len(scoped_keys(operator)) == 1

    def test_a_cancelled_link_is_refused(self, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key)
        cancel(operator, link.connect_link.connect_link_id)
        assert_refused_with_nothing_done(operator, link.link_token, "CONNECT_LINK_CANCELLED")

    def test_an_expired_link_is_refused(self, service: Service, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key)
        service.clock.turn(timedelta(hours=4))
        assert_refused_with_nothing_done(operator, link.link_token, "CONNECT_LINK_EXPIRED")

    def test_a_link_of_a_revoked_key_is_refused(self, operator: Client) -> None:
        key = connect_key(operator)
        link = create_link(operator, key.api_key)
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key.key.key_id))
        found = assert_refused_with_nothing_done(operator, link.link_token, "CONNECT_LINK_KEY_NOT_LIVE")
        assert found.metadata["deny_reason"] == "KEY_REVOKED"

    def test_a_link_of_a_suspended_key_is_refused_until_it_is_resumed(self, operator: Client) -> None:
        key = connect_key(operator)
        link = create_link(operator, key.api_key)
        operator.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=key.key.key_id))
        found = assert_refused_with_nothing_done(operator, link.link_token, "CONNECT_LINK_KEY_NOT_LIVE")
        operator.keys.ResumeKey(key_pb.ResumeKeyRequest(key_id=key.key.key_id))
        assert complete(operator, link.link_token, "battery-1").scoped_api_key
        assert found.metadata["deny_reason"] == "KEY_SUSPENDED"

    def test_a_link_of_an_expired_key_is_refused(self, service: Service, operator: Client) -> None:
        ends = Timestamp()
        ends.FromDatetime(service.clock.now + timedelta(hours=1))
        link = create_link(operator, connect_key(operator, expire_time=ends).api_key)
        service.clock.turn(timedelta(hours=1))
        found = assert_refused_with_nothing_done(operator, link.link_token, "CONNECT_LINK_KEY_NOT_LIVE")
        assert found.metadata["deny_reason"] == "KEY_EXPIRED"

    def test_a_link_of_a_key_that_may_no_longer_create_links_is_refused(self, operator: Client) -> None:
        key = server_key(operator)
        link = create_link(operator, key.api_key, BACKEND_URI)
        forbid_links(operator, key.key.key_id)
        found = assert_refused_with_nothing_done(operator, link.link_token, "CONNECT_LINK_KEY_NOT_LIVE")
        assert found.metadata["deny_reason"] == "PERMISSION_NOT_GRANTED"

    def test_a_link_whose_uri_the_connect_key_has_no_longer_is_refused(self, operator: Client) -> None:
        key = connect_key(operator)
        link = create_link(operator, key.api_key)
        register_uris(operator, key.key.key_id, SITE_URI + "/")
        assert_refused_with_nothing_done(operator, link.link_token, "REDIRECT_URI_NOT_REGISTERED")

    def test_a_link_whose_uri_the_workspace_has_no_longer_is_refused(self, operator: Client) -> None:
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI)
        unregister_workspace_uris(operator)
        assert_refused_with_nothing_done(operator, link.link_token, "REDIRECT_URI_NOT_REGISTERED")

    @pytest.mark.parametrize(
        "change",
        [
            lambda _: "",
            lambda _: "nonsense",
            with_wrong_secret,
            lambda _: mint(TokenKind.LINK, new_id()).text,
        ],
        ids=["empty", "malformed", "wrong secret", "unknown"],
    )
    def test_a_wrong_token_is_not_found(self, operator: Client, change: Callable[[str], str]) -> None:
        link = create_link(operator, connect_key(operator).api_key)
        found = refused(complete, operator, change(link.link_token), "battery-1")
        assert (found.code, found.reason) == (NOT_FOUND, "CONNECT_LINK_NOT_FOUND")
        assert link_state(operator, link.connect_link.connect_link_id) == "OPEN"

    @pytest.mark.parametrize("count", [0, 1001])
    def test_no_devices_and_more_than_a_thousand_are_refused(self, operator: Client, count: int) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        found = refused(complete, operator, token, *(f"device-{number}" for number in range(count)))
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["devices"]

    def test_a_device_named_twice_is_refused_by_its_place(self, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        found = refused(complete, operator, token, "battery-1", "battery-2", "battery-1")
        assert found.code is INVALID_ARGUMENT
        (field,) = found.violations
        assert field.startswith("devices[2]")

    def test_every_faulty_device_is_named_by_its_place(self, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        request = pb.CompleteConnectLinkRequest(
            link_token=token,
            devices=[
                pb.ConnectedDevice(device_id="fine"),
                pb.ConnectedDevice(device_id="not fine"),
                pb.ConnectedDevice(device_id="fine-too", manufacturer="Upper"),
                pb.ConnectedDevice(),
            ],
        )
        found = refused(operator.connect.CompleteConnectLink, request)
        assert set(found.violations) == {"devices[1].device_id", "devices[2].manufacturer", "devices[3].device_id"}
        assert devices(operator) == []


def assert_refused_with_nothing_done(client: Client, link_token: str, expected: str) -> Refused:
    """Make sure that a completion is refused for this reason, and that it leaves neither a device nor a key."""
    found = refused(complete, client, link_token, "battery-1")
    assert (found.code, found.reason) == (FAILED_PRECONDITION, expected)
    assert devices(client) == []
    assert scoped_keys(client) == []
    return found


def test_a_scoped_key_reaches_no_manufacturer_that_the_key_of_its_link_does_not(operator: Client) -> None:
    narrow = connect_key(operator, allowed_manufacturers=["acme"])
    link = create_link(operator, narrow.api_key)
    done = operator.connect.CompleteConnectLink(
        pb.CompleteConnectLinkRequest(
            link_token=link.link_token,
            devices=[
                pb.ConnectedDevice(device_id="battery-1", manufacturer="acme"),
                pb.ConnectedDevice(device_id="battery-2", manufacturer="other"),
            ],
        )
    )
    assert list(done.scoped_key.allowed_manufacturers) == ["acme"]
    assert reason(operator, done.scoped_api_key, "battery-1") == "PERMITTED"
    assert reason(operator, done.scoped_api_key, "battery-2") == "MANUFACTURER_NOT_PERMITTED"
