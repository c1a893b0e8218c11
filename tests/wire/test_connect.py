"""Creating Connect links."""

from __future__ import annotations

from datetime import UTC, timedelta
from uuid import UUID

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.connect_link_pb2 import CONNECT_LINK_STATE_OPEN
from texture.auth.v1.request_context_pb2 import RequestContext

from server.domain.token import TokenKind, mint, new_id, parse
from tests.harness import Client, Refused, Service, refused
from tests.wire.links_helpers import (
    BACKEND_URI,
    SITE_URI,
    WORKSPACE,
    connect_key,
    create_link,
    create_workspace,
    get_link,
    length,
    scoped_key,
    server_key,
    with_wrong_secret,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    return service.operator


def denied(client: Client, api_key: str, uri: str = SITE_URI, context: RequestContext | None = None) -> Refused:
    found = refused(create_link, client, api_key, uri, context=context)
    assert found.code is PERMISSION_DENIED
    assert found.reason == "API_KEY_DENIED"
    return found


class TestCreating:
    def test_a_server_key_may_name_the_end_user(self, service: Service, operator: Client) -> None:
        key = server_key(operator)
        made = create_link(operator, key.api_key, BACKEND_URI, reference_id="user-1", client_state="cart 17/")

        link = made.connect_link
        assert link.workspace_id == WORKSPACE
        assert link.key_id == key.key.key_id
        assert link.reference_id == "user-1"
        assert link.redirect_uri == BACKEND_URI
        assert link.client_state == "cart 17/"
        assert link.state == CONNECT_LINK_STATE_OPEN
        assert link.create_time.ToDatetime(UTC) == service.clock.now
        assert link.expire_time.ToDatetime(UTC) == service.clock.now + timedelta(hours=4)
        assert not link.HasField("end_time")
        assert link.scoped_key_id == ""
        assert made.revision
        # What was answered is what is kept.
        assert get_link(operator, link.connect_link_id) == link

    def test_the_token_is_the_secret_part_of_the_links_url(self, operator: Client) -> None:
        made = create_link(operator, connect_key(operator).api_key)
        token = parse(made.link_token)
        assert token is not None
        assert token.kind is TokenKind.LINK
        assert token.public_id == made.connect_link.connect_link_id
        assert made.link_token not in str(get_link(operator, made.connect_link.connect_link_id))

    @pytest.mark.parametrize("kind", ["server", "connect"])
    def test_without_a_name_the_service_makes_an_end_user_that_nobody_could_have_named(
        self, operator: Client, kind: str
    ) -> None:
        if kind == "server":
            api_key, uri = server_key(operator).api_key, BACKEND_URI
        else:
            api_key, uri = connect_key(operator).api_key, SITE_URI
        references = [create_link(operator, api_key, uri).connect_link.reference_id for _ in range(3)]
        for reference_id in references:
            assert reference_id.startswith("texture-generated:")
            assert UUID(reference_id.removeprefix("texture-generated:")).version == 7
        assert len(set(references)) == 3

    def test_a_connect_key_may_not_name_an_end_user_since_anyone_has_it(self, operator: Client) -> None:
        found = refused(create_link, operator, connect_key(operator).api_key, reference_id="somebody-else")
        assert found.code is PERMISSION_DENIED
        assert found.reason == "REFERENCE_ID_NOT_PERMITTED"

    @pytest.mark.parametrize("reference_id", ["a b", "x" * 129, "käse", "tab\t", "line\n"])
    def test_an_end_users_name_has_visible_ascii_characters(self, operator: Client, reference_id: str) -> None:
        found = refused(create_link, operator, server_key(operator).api_key, BACKEND_URI, reference_id=reference_id)
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["reference_id"]

    def test_an_end_users_name_may_have_128_characters(self, operator: Client) -> None:
        made = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id="x" * 128)
        assert made.connect_link.reference_id == "x" * 128

    @pytest.mark.parametrize("client_state", ["", "x" * 1024, " !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"])
    def test_client_state_may_be_printable_ascii(self, operator: Client, client_state: str) -> None:
        made = create_link(operator, connect_key(operator).api_key, client_state=client_state)
        assert made.connect_link.client_state == client_state

    @pytest.mark.parametrize("client_state", ["x" * 1025, "ü", "a\nb", "\x7f", "a\x00b"])
    def test_client_state_may_not_be_anything_else(self, operator: Client, client_state: str) -> None:
        found = refused(create_link, operator, connect_key(operator).api_key, client_state=client_state)
        assert found.code is INVALID_ARGUMENT
        assert found.reason == "FIELD_INVALID"
        assert list(found.violations) == ["client_state"]

    def test_every_faulty_field_is_named_at_once(self, operator: Client) -> None:
        found = refused(
            create_link,
            operator,
            connect_key(operator).api_key,
            "",
            client_state="ü",
            reference_id="a b",
            request_id=" ",
        )
        assert set(found.violations) == {"redirect_uri", "client_state", "reference_id", "request_id"}

    def test_a_malformed_context_is_the_calling_services_fault(self, operator: Client) -> None:
        context = RequestContext(client_ip="not-an-address")
        found = refused(create_link, operator, connect_key(operator).api_key, context=context)
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["context.client_ip"]

    def test_a_link_lives_as_long_as_its_workspace_says(self, service: Service) -> None:
        create_workspace(service.operator, connect_link_lifetime=length(timedelta(minutes=7)))
        link = create_link(service.operator, connect_key(service.operator).api_key).connect_link
        assert link.expire_time.ToDatetime(UTC) == service.clock.now + timedelta(minutes=7)

    def test_a_repeat_cannot_show_the_token_again_and_names_the_link(self, operator: Client) -> None:
        api_key = connect_key(operator).api_key
        made = create_link(operator, api_key, request_id="once")
        found = refused(create_link, operator, api_key, request_id="once")
        assert found.code is ALREADY_EXISTS
        assert found.reason == "REQUEST_REPEATED"
        assert found.metadata == {"connect_link_id": made.connect_link.connect_link_id}
        assert made.link_token not in found.message

    def test_a_request_id_is_refused_for_another_link(self, operator: Client) -> None:
        api_key = connect_key(operator).api_key
        create_link(operator, api_key, request_id="once")
        found = refused(create_link, operator, api_key, request_id="once", client_state="another")
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["request_id"]


class TestDeniedKeys:
    def test_no_key_at_all_is_denied(self, operator: Client) -> None:
        assert denied(operator, "").metadata == {"deny_reason": "KEY_MISSING", "http_status_code": "401"}

    @pytest.mark.parametrize("api_key", ["nonsense", "txk_con_ü", "x" * 10_000, "txk_con_0000000000000000_" + "0" * 38])
    def test_what_is_not_a_key_is_denied(self, operator: Client, api_key: str) -> None:
        assert denied(operator, api_key).metadata == {"deny_reason": "KEY_MALFORMED", "http_status_code": "401"}

    def test_an_unknown_key_and_a_wrong_secret_are_denied_alike(self, operator: Client) -> None:
        unknown = denied(operator, mint(TokenKind.CONNECT, new_id()).text)
        wrong = denied(operator, with_wrong_secret(connect_key(operator).api_key))
        assert unknown == wrong
        assert unknown.metadata == {"deny_reason": "KEY_UNKNOWN", "http_status_code": "401"}

    def test_a_revoked_key_is_denied(self, operator: Client) -> None:
        made = connect_key(operator)
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=made.key.key_id))
        found = denied(operator, made.api_key)
        assert found.metadata["deny_reason"] == "KEY_REVOKED"
        assert found.metadata["http_status_code"] == "401"

    def test_a_suspended_key_is_denied(self, operator: Client) -> None:
        made = connect_key(operator)
        operator.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=made.key.key_id))
        assert denied(operator, made.api_key).metadata["deny_reason"] == "KEY_SUSPENDED"

    def test_an_expired_key_is_denied(self, service: Service, operator: Client) -> None:
        ends = Timestamp()
        ends.FromDatetime(service.clock.now + timedelta(hours=1))
        made = connect_key(operator, expire_time=ends)
        create_link(operator, made.api_key)
        service.clock.turn(timedelta(hours=1))
        found = denied(operator, made.api_key)
        assert found.metadata["deny_reason"] == "KEY_EXPIRED"
        assert found.metadata["http_status_code"] == "401"

    def test_a_secret_that_a_rotation_retired_is_denied_and_the_new_one_is_not(self, operator: Client) -> None:
        made = connect_key(operator)
        rotated = operator.keys.RotateKey(key_pb.RotateKeyRequest(key_id=made.key.key_id))
        assert denied(operator, made.api_key).metadata["deny_reason"] == "KEY_RETIRED"
        assert create_link(operator, rotated.api_key).connect_link.key_id == made.key.key_id

    def test_a_key_used_outside_its_networks_is_denied(self, operator: Client) -> None:
        api_key = connect_key(operator, allowed_cidrs=["192.0.2.0/24"]).api_key
        for context in (None, RequestContext(client_ip="198.51.100.1")):
            found = denied(operator, api_key, context=context)
            assert found.metadata["deny_reason"] == "ADDRESS_NOT_PERMITTED"
            assert found.metadata["http_status_code"] == "403"
        assert create_link(operator, api_key, context=RequestContext(client_ip="192.0.2.1")).link_token

    def test_a_server_key_without_the_permission_is_denied_and_told_what_it_lacks(self, operator: Client) -> None:
        made = server_key(operator, permissions=["devices:read"])
        found = denied(operator, made.api_key, BACKEND_URI)
        assert found.metadata == {
            "deny_reason": "PERMISSION_NOT_GRANTED",
            "http_status_code": "403",
            "missing_permission": "connect_links:create",
            "key_id": made.key.key_id,
        }

    def test_a_scoped_key_may_never_create_links(self, operator: Client) -> None:
        found = denied(operator, scoped_key(operator, "user-1", ["battery-1"]).api_key)
        assert found.metadata["deny_reason"] == "PERMISSION_NOT_GRANTED"
        assert found.metadata["missing_permission"] == "connect_links:create"

    def test_a_server_key_that_arrives_from_a_browser_is_denied_as_exposed(self, operator: Client) -> None:
        context = RequestContext(sec_fetch_site="cross-site", origin="https://shop.example")
        found = denied(operator, server_key(operator).api_key, BACKEND_URI, context)
        assert found.metadata["deny_reason"] == "KEY_EXPOSED"
        assert found.metadata["http_status_code"] == "403"

    def test_a_connect_key_lives_in_browsers(self, operator: Client) -> None:
        context = RequestContext(sec_fetch_site="cross-site", origin="https://shop.example")
        assert create_link(operator, connect_key(operator).api_key, context=context).link_token

    def test_a_callers_key_is_no_customers_key(self, service: Service, operator: Client) -> None:
        assert denied(operator, service.operator_key).metadata["deny_reason"] == "KEY_MALFORMED"

    def test_no_error_repeats_the_key(self, operator: Client) -> None:
        api_key = with_wrong_secret(connect_key(operator).api_key)
        assert api_key not in repr(denied(operator, api_key))


class TestRedirectUris:
    @pytest.mark.parametrize(
        "uri",
        [
            "https://evil.example/connected",
            "https://app.example.evil.example/connected",
            "https://sub.app.example/connected",
            "https://app.example:8443/connected",
            "https://app.example:443/connected",
            "http://app.example/connected",
            "https://app.example/other",
            "https://app.example/connected/",
            "https://app.example/connected/more",
            "https://app.example/Connected",
            "https://APP.example/connected",
            "HTTPS://app.example/connected",
            "https://app.example/connected?a=1",
            "https://app.example/connected?",
            "https://app.example/connected#part",
            "https://app.example/%63onnected",
            "https://user@app.example/connected",
            "https://app.example/x/../connected",
            "https://app.example/x/%2e%2e/connected",
            "https://app.example/%2E/connected",
            "https://app.example%2Fconnected",
            "https://app.example//connected",
            "https://app.example\\connected",
            "https://app.example/connected?texture_scoped_key=txk",
            "https://app.example/connected?client_state=x",
            "javascript:alert(1)//https://app.example/connected",
            " https://app.example/connected",
            "https://app.example/connected\n",
            "https://app.example",
            "/connected",
            "*",
        ],
    )
    def test_a_uri_that_is_not_registered_letter_for_letter_is_refused(self, operator: Client, uri: str) -> None:
        found = refused(create_link, operator, connect_key(operator).api_key, uri)
        assert found.code is FAILED_PRECONDITION
        assert found.reason == "REDIRECT_URI_NOT_REGISTERED"

    def test_the_query_is_compared_too(self, operator: Client) -> None:
        api_key = server_key(operator).api_key
        assert create_link(operator, api_key, BACKEND_URI).link_token
        for uri in (BACKEND_URI + "&x=1", BACKEND_URI.replace("en", "de"), BACKEND_URI.partition("?")[0]):
            assert refused(create_link, operator, api_key, uri).reason == "REDIRECT_URI_NOT_REGISTERED"

    def test_a_connect_key_has_its_own_uris_and_a_server_key_its_workspaces(self, operator: Client) -> None:
        site, backend = connect_key(operator).api_key, server_key(operator).api_key
        assert refused(create_link, operator, site, BACKEND_URI).reason == "REDIRECT_URI_NOT_REGISTERED"
        assert refused(create_link, operator, backend, SITE_URI).reason == "REDIRECT_URI_NOT_REGISTERED"

    def test_another_connect_keys_uri_is_not_registered(self, operator: Client) -> None:
        connect_key(operator, redirect_uris=["https://two.example/done"])
        found = refused(create_link, operator, connect_key(operator).api_key, "https://two.example/done")
        assert found.reason == "REDIRECT_URI_NOT_REGISTERED"

    @pytest.mark.parametrize("uri", ["com.example.app:/done", "com.example.app://done/x", "http://localhost:8080/done"])
    def test_app_deep_links_and_loopback_in_a_sandbox_are_fine(self, operator: Client, uri: str) -> None:
        api_key = connect_key(operator, redirect_uris=[uri]).api_key
        assert create_link(operator, api_key, uri).connect_link.redirect_uri == uri
