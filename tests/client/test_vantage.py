"""Where a request comes from is believed of trusted gateways alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texture_auth import Context
from texture_auth.guard import Guard
from texture_auth.vantage import HEADER_LENGTH, NOBODY, TrustedPeers, address_of, context_of_http, context_of_rpc

from tests.client.shapes import RULES, Handlers, Oracle, Request, Stub, guarded, register
from tests.operate.certificates import LOOPBACK, Authority

GATEWAYS = TrustedPeers(networks=("10.0.0.0/8", "fd00::/8"), names=("spiffe://prod.example/gateway",))
FORWARDED = (
    ("x-forwarded-for", "203.0.113.9, 198.51.100.7"),
    ("user-agent", "Mozilla/5.0"),
    ("origin", "https://app.example"),
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-mode", "cors"),
    ("sec-fetch-dest", "empty"),
    ("sec-fetch-user", "?1"),
)
SEEN = Context(
    client_ip="198.51.100.7",
    user_agent="Mozilla/5.0",
    origin="https://app.example",
    sec_fetch_site="cross-site",
    sec_fetch_mode="cors",
    sec_fetch_dest="empty",
    sec_fetch_user="?1",
)

names = st.sampled_from([name for name, _ in FORWARDED])
values = st.one_of(
    st.sampled_from([value for _, value in FORWARDED]), st.ip_addresses().map(str), st.text(), st.binary()
)
addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)


def peer_of(address: str) -> str:
    return f"ipv6:%5B{address.replace(':', '%3A')}%5D:5000" if ":" in address else f"ipv4:{address}:5000"


@given(addresses, st.lists(st.tuples(names, values)))
def test_what_an_untrusted_peer_forwards_changes_nothing(address: str, metadata: list[tuple[str, str | bytes]]) -> None:
    trusted = TrustedPeers(networks=("10.0.0.0/8",))
    if not trusted.include(address):
        peer = peer_of(address)
        assert context_of_rpc(peer, [], metadata, trusted) == context_of_rpc(peer, [], [], trusted)
        assert context_of_rpc(peer, [], [], trusted) == Context(client_ip=address_of(address))


@given(addresses, st.lists(st.text()))
def test_whom_an_untrusted_peer_forwards_http_for_changes_nothing(address: str, forwarded: list[str]) -> None:
    own = [("origin", "https://app.example")]
    forged = [("x-forwarded-for", value) for value in forwarded]
    assert context_of_http(address, [*own, *forged], NOBODY) == context_of_http(address, own, NOBODY)


@given(st.lists(st.text(alphabet='0123456789abcdef.:, "[]%', max_size=40), max_size=3), st.integers(1, 4))
def test_what_a_client_puts_before_the_gateways_elements_changes_nothing(said: list[str], hops: int) -> None:
    trusted = TrustedPeers(networks=("10.0.0.0/8",), hops=hops)
    added = ["198.51.100.7", *(f"10.0.0.{number}" for number in range(2, hops + 1))]
    metadata = [("x-forwarded-for", value) for value in (*said, ", ".join(added))]
    assert context_of_rpc("ipv4:10.0.0.1:5000", [], metadata, trusted).client_ip == "198.51.100.7"


@pytest.mark.parametrize(
    ("peer", "certificate"),
    [
        ("ipv4:10.1.2.3:5000", []),
        ("ipv6:%5Bfd00%3A%3A1%5D:5000", []),
        ("ipv6:[::ffff:10.1.2.3]:5000", []),
        ("ipv4:192.0.2.1:5000", ["spiffe://prod.example/gateway"]),
        ("unix:/run/gateway.sock", ["other", "spiffe://prod.example/gateway"]),
    ],
)
def test_a_trusted_peer_is_believed(peer: str, certificate: list[str]) -> None:
    assert context_of_rpc(peer, certificate, FORWARDED, GATEWAYS) == SEEN


@pytest.mark.parametrize("peer", ["ipv4:192.0.2.1:5000", "unix:10.1.2.3", "vsock:10.1.2.3:1", "", "ipv4:"])
def test_others_are_not(peer: str) -> None:
    context = context_of_rpc(peer, ["spiffe://prod.example/device-api"], FORWARDED, GATEWAYS)
    assert context == Context(client_ip="192.0.2.1" if "192" in peer else "")


@pytest.mark.parametrize(
    "forwarded", ["", "unknown", "198.51.100.7, ", "198.51.100.7, _hidden", "1" * 100_000, "198.51.100.7;10.0.0.1"]
)
def test_a_gateway_that_does_not_say_leaves_the_address_unknown(forwarded: str) -> None:
    metadata = [("x-forwarded-for", forwarded)]
    assert context_of_rpc("ipv4:10.0.0.1:5000", [], metadata, GATEWAYS).client_ip == ""


def test_fewer_elements_than_hops_leave_the_address_unknown() -> None:
    trusted = TrustedPeers(networks=("10.0.0.0/8",), hops=2)
    metadata = [("x-forwarded-for", "198.51.100.7")]
    assert context_of_rpc("ipv4:10.0.0.1:5000", [], metadata, trusted).client_ip == ""


@given(st.sampled_from([name for name, _ in FORWARDED]), st.integers(HEADER_LENGTH + 1, 3 * HEADER_LENGTH))
def test_what_is_longer_than_the_service_takes_is_cut(name: str, length: int) -> None:
    context = context_of_http("10.0.0.1", [(name, "x" * length)], GATEWAYS)
    assert max(len(getattr(context, field)) for field in Context.__slots__) <= HEADER_LENGTH


@pytest.mark.parametrize(
    "text", ["192.0.2.1", "192.0.2.1:443", " 192.0.2.1 ", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:443"]
)
def test_an_address_is_found_with_and_without_a_port(text: str) -> None:
    assert address_of(text) == "192.0.2.1"
    assert address_of("[2001:db8::1%eth0]:443") == "2001:db8::1"


def test_gateways_that_cannot_be_are_refused() -> None:
    for wrong in ({"networks": ("10.0.0.1/8",)}, {"networks": ("gateway",)}, {"hops": 0}):
        with pytest.raises(ValueError, match=r"."):
            TrustedPeers(**wrong)


def test_a_real_peer_is_asked_about_by_its_address_and_trusted_by_its_network() -> None:
    for trusted, seen in ((NOBODY, Context(client_ip="127.0.0.1")), (TrustedPeers(networks=("127.0.0.0/8",)), SEEN)):
        for form in ("sync", "aio"):
            with guarded(form, trusted=trusted) as service:
                service.stub.call("List", Request(), metadata=[each for each in FORWARDED if each[0] != "user-agent"])
            (question,) = service.oracle.asked
            assert question.context is not None
            assert question.context.client_ip == seen.client_ip
            assert question.context.sec_fetch_site == seen.sec_fetch_site


def test_a_gateway_is_trusted_by_the_name_in_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("server", hosts=LOOPBACK)
    oracle = Oracle()
    with ThreadPoolExecutor(2) as threads:
        trusted = TrustedPeers(names=("spiffe://prod.example/gateway",))
        server = Guard(oracle, RULES, trusted=trusted).server(threads)
        register(server, Handlers().sync())
        credentials = grpc.ssl_server_credentials(
            [(own.private_key.read_bytes(), own.chain.read_bytes())],
            authority.certificate.read_bytes(),
            require_client_auth=True,
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        for name in ("gateway", "device-api"):
            certificate = authority.issue(name, uris=[f"spiffe://prod.example/{name}"])
            client = grpc.ssl_channel_credentials(
                authority.certificate.read_bytes(), certificate.private_key.read_bytes(), certificate.chain.read_bytes()
            )
            with grpc.secure_channel(f"127.0.0.1:{port}", client) as channel:
                Stub(channel).call("List", Request(), metadata=FORWARDED[:1])
        server.stop(None).wait()
    seen = [question.context.client_ip for question in oracle.asked if question.context is not None]
    assert seen == ["198.51.100.7", "127.0.0.1"]
