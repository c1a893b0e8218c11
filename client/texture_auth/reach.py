"""Whether a server can be reached, as far as sockets and TLS tell: below gRPC, whose errors tell it all alike."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import grpc

from texture_auth.connection import is_loopback
from texture_auth.finding import Finding, Level, failure, ok, warning

# A certificate should have been renewed when less of its life is left than this share of it, and less than this time.
_RENEWAL_SHARE = 1 / 3
_RENEWAL_TIME = timedelta(days=30)
# With which a client of HTTP/2 begins, and an empty SETTINGS frame. The server's first frame is SETTINGS too.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEADER_BYTES = 9
_FRAME_TYPE = 3
_SETTINGS = 4
_HIGHEST_PORT = 65535
# With which a target of gRPC's begins that is resolved as a plain one is.
_BY_DNS = "dns:///"

# Of OpenSSL, whose names Python does not have.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAMES = 9, 10, frozenset({62, 64})
_NO_CHECK_TIME = 0x200000

_SAY_TLS = "give --tls-ca FILE with the authority of its certificate, or leave out --insecure-plaintext"
OTHER_PORT = "see that this is the port of its gRPC, not of its metrics or of something else"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the service is, and how a connection to it is protected."""

    address: str
    """HOST:PORT, or `dns:///HOST:PORT`."""
    tls_ca: Path | None = None
    """Trust this authority (PEM) and no other; otherwise those that gRPC trusts."""
    tls_certificate: Path | None = None
    """A client certificate to present (PEM), with `tls_private_key`."""
    tls_private_key: Path | None = None
    insecure_plaintext: bool = False
    """Whether plain text was asked for by name; to loopback it is the default."""
    timeout: float = 10.0
    """Seconds that each step may take."""

    @property
    def secure(self) -> bool:
        """Whether TLS is used."""
        if self.tls_ca is not None or self.tls_certificate is not None:
            return True
        return not self.insecure_plaintext and not self.on_loopback

    @property
    def on_loopback(self) -> bool:
        """Whether the address is of this machine, by its looks."""
        return is_loopback(self.address)

    @property
    def host(self) -> str:
        """The name or the address, without the port."""
        return self.address.removeprefix(_BY_DNS).rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int | None:
        """The port; None where there is none that could be."""
        host, _, port = self.address.removeprefix(_BY_DNS).rpartition(":")
        return int(port) if host and port.isdecimal() and int(port) <= _HIGHEST_PORT else None

    def channel(self) -> grpc.Channel:
        """Return a channel to it. Raises OSError where a file cannot be read."""
        # What is meant for this machine must not leave it by a proxy.
        options = (("grpc.enable_http_proxy", 0),) if self.on_loopback else ()
        if not self.secure:
            return grpc.insecure_channel(self.address, options)
        trusted, private_key, chain = (
            None if file is None else file.read_bytes()
            for file in (self.tls_ca, self.tls_private_key, self.tls_certificate)
        )
        credentials = grpc.ssl_channel_credentials(trusted, private_key, chain)
        return grpc.secure_channel(self.address, credentials, options)


class _Spoken(Enum):
    """What a server answers to the first words of HTTP/2."""

    HTTP_2 = "HTTP/2"
    OTHER = "something else"
    NOTHING = "nothing"
    CLOSED = "it hangs up"


def examine(place: Place) -> Iterator[Finding]:
    """Resolve the name, connect, and see that HTTP/2 is spoken, over TLS where it should be. Ends with a failure."""
    port = place.port
    if port is None:
        yield failure("name", f"{place.address!r} is no address", "give HOST:PORT, such as auth.internal:443")
        return
    try:
        found = socket.getaddrinfo(place.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        # Such as a name with a part that is too long.
        why = getattr(error, "strerror", None) or "it is no name"
        yield failure("name", f"{place.host} does not resolve: {why}", "correct the name, or ask this network's DNS")
        return
    hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
    yield ok("name", f"{place.host} is {', '.join(hosts)}")
    answering, refusals = _answering(hosts, port, place.timeout)
    yield _ports(place, answering, refusals)
    if answering:
        yield from (_tls if place.secure else _plain_text)(place, (answering[0], port))


def _answering(hosts: list[str], port: int, timeout: float) -> tuple[list[str], dict[str, str]]:
    """Return the hosts that a connection can be made to and, of the others, why not."""
    answering, refusals = [], {}
    for host in hosts:
        try:
            socket.create_connection((host, port), timeout).close()
        except TimeoutError:
            refusals[host] = "no answer, as from behind a firewall"
        except OSError as error:
            refusals[host] = (error.strerror or type(error).__name__).lower()
        else:
            answering.append(host)
    return answering, refusals


def _ports(place: Place, answering: list[str], refusals: Mapping[str, str]) -> Finding:
    port = place.port
    silent = "; ".join(f"{host}: {why}" for host, why in refusals.items())
    if not answering:
        text = f"nobody answers on port {port} ({silent})"
        return failure("port", text, "see that the service runs, and that the network lets this machine through")
    text = f"{', '.join(answering)} port {port} answers"
    if refusals and not place.on_loopback:
        return warning("port", f"{text}, but not all do ({silent})", "see that the service runs on each of them")
    return ok("port", text)


def _plain_text(place: Place, endpoint: tuple[str, int]) -> Iterator[Finding]:
    try:
        with socket.create_connection(endpoint, place.timeout) as connection:
            spoken = _spoken(connection)
    except OSError:
        spoken = _Spoken.CLOSED
    if spoken is not _Spoken.HTTP_2 and _speaks_tls(place, endpoint):
        yield failure("tls", "the server speaks TLS, and was spoken to in plain text", _SAY_TLS)
        return
    if spoken is _Spoken.HTTP_2 and not place.on_loopback:
        yield warning("tls", "none: keys cross the network in plain text", "see that something else protects them")
    elif spoken is _Spoken.HTTP_2:
        yield ok("tls", "none: plain text, on this machine only")
    yield _as_finding(place, spoken)


def _tls(place: Place, endpoint: tuple[str, int]) -> Iterator[Finding]:
    try:
        context = _context(place)
    except (OSError, ValueError) as error:
        text = f"the files of TLS cannot be used: {_reason(error)}"
        yield failure("tls", text, "see that they are PEM, and that the private key fits the client certificate")
        return
    try:
        with _handshake(context, place, endpoint) as connection:
            certificate = connection.getpeercert() or {}
            spoken = _spoken(connection)
        if spoken is _Spoken.CLOSED:
            # Why it hung up is lost when more is sent to it, so listen only.
            with _handshake(context, place, endpoint) as connection:
                connection.recv(1)
            yield _client_certificate(place, "it closes the connection after the handshake")
            return
    except ssl.SSLCertVerificationError as error:
        yield _distrusted(place, endpoint, error)
        return
    except OSError as error:
        yield _no_handshake(place, endpoint, error)
        return
    yield _lifetime(place, certificate, datetime.now(UTC))
    yield _as_finding(place, spoken)


def _context(place: Place, *, verify: bool = True) -> ssl.SSLContext:
    """Return how gRPC makes a TLS connection. Raises OSError, of which ssl.SSLError is one, for files it cannot use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    chosen = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "")
    if place.tls_ca is not None or chosen:
        context.load_verify_locations(place.tls_ca or chosen)
    else:
        with as_file(files("grpc._cython") / "_credentials" / "roots.pem") as roots:
            context.load_verify_locations(roots)
    if place.tls_certificate is not None:
        # Asked for a password by nobody: gRPC takes none.
        context.load_cert_chain(place.tls_certificate, place.tls_private_key, password="")
    return context


def _handshake(context: ssl.SSLContext, place: Place, endpoint: tuple[str, int]) -> ssl.SSLSocket:
    raw = socket.create_connection(endpoint, place.timeout)
    try:
        return context.wrap_socket(raw, server_hostname=place.host)
    except BaseException:
        raw.close()
        raise


def _speaks_tls(place: Place, endpoint: tuple[str, int]) -> bool:
    try:
        _handshake(_context(place, verify=False), place, endpoint).close()
    except OSError:
        return False
    return True


def _spoken(connection: socket.socket) -> _Spoken:
    """Say what HTTP/2 begins with, and return what comes back. Raises ssl.SSLError for what TLS objects to."""
    heard = b""
    try:
        connection.sendall(_PREFACE)
        while len(heard) < _FRAME_HEADER_BYTES:
            more = connection.recv(_FRAME_HEADER_BYTES - len(heard))
            if not more:
                break
            heard += more
    except TimeoutError:
        return _Spoken.OTHER if heard else _Spoken.NOTHING
    except ssl.SSLError:
        raise
    except OSError:
        return _Spoken.OTHER if heard else _Spoken.CLOSED
    if len(heard) == _FRAME_HEADER_BYTES and heard[_FRAME_TYPE] == _SETTINGS:
        return _Spoken.HTTP_2
    return _Spoken.OTHER if heard else _Spoken.CLOSED


def _as_finding(place: Place, spoken: _Spoken) -> Finding:
    if spoken is _Spoken.HTTP_2:
        return ok("grpc", "HTTP/2 is spoken")
    if spoken is _Spoken.NOTHING:
        text = f"it takes connections, and says nothing within {place.timeout:g} s"
        return failure("grpc", text, "see whether the service hangs; or this is the port of something else")
    if spoken is _Spoken.CLOSED:
        return failure("grpc", "it takes connections, and closes them at once", OTHER_PORT)
    return failure("grpc", "it answers, but not in HTTP/2: this is no gRPC", OTHER_PORT)


def _distrusted(place: Place, endpoint: tuple[str, int], error: ssl.SSLCertVerificationError) -> Finding:
    """Say what is wrong with a certificate."""
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        begins, ends = _validity(_certificate_despite(place, endpoint, in_time=False))
        if error.verify_code == _EXPIRED:
            return failure("tls", f"the certificate expired{_at(ends)}", "have the service's operator renew it")
        return failure("tls", f"the certificate is not valid before{_at(begins)}", "set this machine's clock right")
    if error.verify_code in _WRONG_NAMES:
        names = _names(_certificate_despite(place, endpoint, in_time=True))
        text = f"the certificate is not for {place.host}, but for {', '.join(names) or 'no name at all'}"
        return failure("tls", text, "call the service by a name of its certificate, or have it put in")
    which = "that of --tls-ca" if place.tls_ca is not None else "one that gRPC trusts by itself"
    text = f"the certificate's issuer is not trusted ({error.verify_message}): it is not {which}"
    to_do = "give --tls-ca FILE with the authority that issued it: gRPC trusts a list of its own, not this machine's"
    return failure("tls", text, to_do)


def _certificate_despite(place: Place, endpoint: tuple[str, int], *, in_time: bool) -> Mapping[str, Any]:
    """Return a certificate that is out of its time, or for another name; empty where more is wrong with it."""
    context = _context(place)
    context.check_hostname = False
    if not in_time:
        context.verify_flags |= _NO_CHECK_TIME
    try:
        with _handshake(context, place, endpoint) as connection:
            return connection.getpeercert() or {}
    except OSError:
        return {}


def _no_handshake(place: Place, endpoint: tuple[str, int], error: OSError) -> Finding:
    """Say why there is no TLS, nothing being wrong with the server's certificate."""
    reason = _reason(error)
    if "certificate required" in reason or (place.tls_certificate is not None and "alert" in reason):
        return _client_certificate(place, reason)
    if isinstance(error, TimeoutError):
        return _as_finding(place, _Spoken.NOTHING)
    with socket.create_connection(endpoint, place.timeout) as connection:
        spoken = _spoken(connection)
    if spoken is _Spoken.HTTP_2:
        return failure(
            "tls",
            "the server speaks plain text, and was spoken to in TLS",
            "have it given a certificate; or, where something else protects the connection, call it in plain text",
        )
    if spoken is _Spoken.OTHER:
        return _as_finding(place, spoken)
    return failure("tls", f"there is no TLS connection: {reason}", OTHER_PORT)


def _client_certificate(place: Place, why: str) -> Finding:
    """Say that it takes a client certificate, or another one: what gRPC's servers only hint at, by hanging up."""
    if place.tls_certificate is None:
        to_do = "give --tls-certificate and --tls-private-key, or call the port for callers with svc keys"
        return failure("caller", f"the server seems to demand a client certificate, and was given none: {why}", to_do)
    to_do = "see that it has not expired, and that the service trusts its issuer (TEXTURE_AUTH_TLS_CLIENT_CA)"
    return failure("caller", f"the server does not take the client certificate: {why}", to_do)


def _lifetime(place: Place, certificate: Mapping[str, Any], now: datetime) -> Finding:
    begins, ends = _validity(certificate)
    if begins is None or ends is None:  # pragma: no cover - a certificate that was verified has both
        return ok("tls", f"the certificate is for {place.host}")
    issuer = ", ".join(value for part in certificate.get("issuer", ()) for name, value in part if name == "commonName")
    text = f"the certificate is for {place.host}, of {issuer or 'an issuer that is trusted'}, valid until{_at(ends)}"
    if ends - now < min((ends - begins) * _RENEWAL_SHARE, _RENEWAL_TIME):
        return Finding("tls", Level.WARNING, text, "have the service's operator renew it: little of its life is left")
    return ok("tls", text)


def _validity(certificate: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    if not certificate:
        return None, None
    begins, ends = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    return datetime.fromtimestamp(begins, UTC), datetime.fromtimestamp(ends, UTC)


def _names(certificate: Mapping[str, Any]) -> list[str]:
    return [value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "IP Address"}]


def _at(moment: datetime | None) -> str:
    return "" if moment is None else f" {moment:%Y-%m-%d %H:%M}Z"


def _reason(error: Exception) -> str:
    """Return what an error says, of OpenSSL in its own words and without the place in its source."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
