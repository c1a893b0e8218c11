"""Posting to the outside: what is refused before a connection is made, and how long an answer is waited for."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.outbound import MOST_BYTES, Answered, NotPosted, Outbound, Why
from tests.operate.certificates import DAY, Authority, Certificate, Validity
from tests.webhooks.receiver import HOST, Received, Receiver, Reply, receiving, status

HEADERS = {"webhook-id": "msg_1"}
# Far more than an answer here takes, and far less than a test may.
SOON = 1.0
PATIENT = 30.0


def post(outbound: Outbound, url: str) -> Answered:
    return outbound.post(url, HEADERS, b'{"type":"webhook.test"}')


def why(outbound: Outbound, url: str) -> Why:
    with pytest.raises(NotPosted) as caught:
        post(outbound, url)
    return caught.value.why


@pytest.fixture
def outbound(ca: Path) -> Outbound:
    return Outbound({HOST}, ca, total_seconds=PATIENT)


@pytest.fixture
def hasty(ca: Path) -> Outbound:
    """One that gives up soon."""
    return Outbound({HOST}, ca, total_seconds=SOON)


def test_a_message_is_posted_whole_and_the_status_is_returned(outbound: Outbound, receiver: Receiver) -> None:
    receiver.reply = status("202 Accepted", "Retry-After: 7")

    assert post(outbound, receiver.url) == Answered(202, "7")

    (request,) = receiver.received
    assert request.line == "POST /hooks?of=acme HTTP/1.1"
    assert request.body == '{"type":"webhook.test"}'
    assert request.headers["host"] == f"{HOST}:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "msg_1"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    outbound: Outbound, receiver: Receiver, certificate: Certificate, code: int
) -> None:
    with receiving(certificate) as other:
        receiver.reply = status(f"{code} Elsewhere", f"Location: {other.url}")
        assert post(outbound, receiver.url).status == code
        assert other.connections == 0


def test_provisional_answers_are_passed_over(outbound: Outbound, receiver: Receiver) -> None:
    receiver.reply = lambda connection, _: connection.sendall(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    )
    assert post(outbound, receiver.url) == Answered(200)


def test_of_a_huge_answer_no_more_than_its_head_is_read(outbound: Outbound, receiver: Receiver) -> None:
    sent = 0

    def flood(connection: ssl.SSLSocket, _: Received) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not receiver.ended.is_set():
            sent += connection.send(b"x" * 65_536)

    receiver.reply = flood
    assert post(outbound, receiver.url) == Answered(200)


@pytest.mark.parametrize(
    "line",
    [
        "Content-Type: multipart/mixed; boundary*" + "1" * 5000 + "=x",
        "Content-Type: multipart/mixed; boundary*0*=idna''%E2",
        "Content-Type: multipart/mixed; boundary*0*=a\0b''x",
        "no header at all",
    ],
    ids=["a number without end", "a codec that fails", "a codec that there cannot be", "no header"],
)
def test_of_an_answer_no_header_matters_but_the_one(outbound: Outbound, receiver: Receiver, line: str) -> None:
    receiver.reply = status("503 Later", line, "retry-AFTER:\t 7 ", "X-Retry-After: 8")
    assert post(outbound, receiver.url) == Answered(503, "7")


def _endless_head(connection: ssl.SSLSocket, _: Received) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: x\r\n" * MOST_BYTES)


def _many_provisional_answers(connection: ssl.SSLSocket, _: Received) -> None:
    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * MOST_BYTES + b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    "reply",
    [
        _endless_head,
        _many_provisional_answers,
        lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n"),
        lambda connection, _: connection.sendall(b"HTTP/1.1 20"),
        lambda _connection, _: None,
        lambda connection, _: connection.sendall(b"\0" * 100 + b"\r\n\r\n"),
    ],
    ids=["a head without end", "hardly an end", "another protocol", "half a line", "nothing", "zeros"],
)
def test_an_answer_that_is_none_is_said_to_be_malformed(outbound: Outbound, receiver: Receiver, reply: Reply) -> None:
    receiver.reply = reply
    assert why(outbound, receiver.url) is Why.ANSWER_MALFORMED


def test_a_receiver_that_never_answers_is_given_up(hasty: Outbound, receiver: Receiver) -> None:
    receiver.reply = receiver.silent
    assert why(hasty, receiver.url) is Why.TIMED_OUT


def test_a_receiver_that_sends_a_byte_now_and_then_gains_no_time(hasty: Outbound, receiver: Receiver) -> None:
    def drip(connection: ssl.SSLSocket, _: Received) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000:
            connection.sendall(bytes([byte]))
            if receiver.ended.wait(SOON / 10):
                return

    receiver.reply = drip
    assert why(hasty, receiver.url) is Why.TIMED_OUT


def test_a_receiver_that_never_shakes_hands_is_given_up(hasty: Outbound) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert why(hasty, f"https://{HOST}:{listener.getsockname()[1]}/") is Why.TIMED_OUT


def test_a_port_that_nobody_listens_on_is_a_connection_that_failed(outbound: Outbound) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert why(outbound, f"https://{HOST}:{port}/") is Why.CONNECTION_FAILED


def test_a_receiver_in_plain_text_is_told_nothing(outbound: Outbound) -> None:
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(10_000))
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert why(outbound, f"https://{HOST}:{listener.getsockname()[1]}/") is Why.TLS_FAILED
        thread.join()
    assert b"webhook" not in heard[0]


@contextmanager
def _with(certificate: Certificate) -> Iterator[str]:
    with receiving(certificate) as running:
        yield running.url
        assert running.received == []


@pytest.mark.parametrize(
    "make",
    [
        lambda authority, _: authority.issue("other-name", hosts=("other.example",)),
        lambda authority, _: authority.issue("by-address", hosts=("127.0.0.1",)),
        lambda authority, _: authority.issue("old", hosts=(HOST,), validity=Validity(-3 * DAY, -DAY)),
        lambda _, folder: Authority(folder, "stranger").issue("unknown", hosts=(HOST,)),
    ],
    ids=["for another name", "for its address", "expired", "by somebody unknown"],
)
def test_a_receiver_whose_certificate_is_not_for_its_name_is_told_nothing(
    outbound: Outbound, authority: Authority, tmp_path: Path, make: Callable[[Authority, Path], Certificate]
) -> None:
    with _with(make(authority, tmp_path)) as url:
        assert why(outbound, url) is Why.CERTIFICATE_INVALID


def test_the_authority_of_private_hosts_vouches_for_no_other(
    authority: Authority, certificate: Certificate, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.outbound.is_public", lambda _: True)
    outbound = Outbound({HOST}, ca, resolve=lambda *_: ["127.0.0.1"], total_seconds=SOON)
    other = authority.issue("public", hosts=("public.example",))
    with receiving(other) as running:
        assert why(outbound, f"https://public.example:{running.port}/") is Why.CERTIFICATE_INVALID


# --- Addresses ----------------------------------------------------------------------------------------------------


def test_a_name_that_leads_inside_the_second_time_gains_nothing(
    authority: Authority, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"]]
    connected: list[object] = []

    def connect(address: object, timeout: float) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("server.outbound.socket.create_connection", connect)
    with receiving(authority.issue("rebinding", hosts=("rebinding.example",))) as inside:
        outbound = Outbound((), ca, resolve=lambda *_: answers.pop(0), total_seconds=SOON)
        url = f"https://rebinding.example:{inside.port}/"
        assert why(outbound, url) is Why.CONNECTION_FAILED
        assert [why(outbound, url) for _ in range(3)] == [Why.ADDRESS_NOT_PERMITTED] * 3
        # The one connection goes to the address that was looked at, and the name is not asked for again.
        assert connected == [("93.184.216.34", inside.port)]
        assert inside.connections == 0
    assert answers == []


def test_a_name_without_addresses_is_not_resolved(ca: Path) -> None:
    def fail(_host: str, _port: int) -> list[str]:
        raise socket.gaierror

    assert why(Outbound(resolve=fail), "https://nowhere.example/") is Why.NAME_NOT_RESOLVED
    assert why(Outbound(resolve=lambda *_: []), "https://nowhere.example/") is Why.NAME_NOT_RESOLVED


def test_a_private_host_is_private_by_its_very_name(receiver: Receiver, ca: Path) -> None:
    assert why(Outbound((), ca), receiver.url) is Why.URL_NOT_PERMITTED
    elsewhere = receiver.url.replace(HOST, "localhost.example")
    assert why(Outbound({HOST}, ca, resolve=lambda *_: ["127.0.0.1"]), elsewhere) is Why.ADDRESS_NOT_PERMITTED
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "url", ["http://a.example/", "https://127.0.0.1/", "https://user:word@a.example/", "file:///etc"]
)
def test_a_url_that_could_not_be_registered_is_not_posted_to(url: str) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise AssertionError("it was looked up")

    assert why(Outbound(resolve=resolve), url) is Why.URL_NOT_PERMITTED


def test_a_proxy_of_the_environment_is_not_used(
    outbound: Outbound, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setitem(os.environ, name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert post(outbound, receiver.url).status == 204
        proxy.settimeout(0.01)
        with pytest.raises(TimeoutError):
            proxy.accept()
