"""Certificates: served from files that may be replaced while the server runs, and read from callers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

_log = structlog.get_logger("texture_auth.tls")


class CertificateInvalid(Exception):  # noqa: N818 - it names a state
    """Files that no server can serve with. The message never quotes them."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate chain, its private key and, for client certificates, their authorities are; all PEM."""

    chain: Path
    private_key: Path
    client_ca: Path | None = None

    @property
    def _paths(self) -> tuple[Path, ...]:
        return (self.chain, self.private_key, *(() if self.client_ca is None else (self.client_ca,)))

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when any of the files does. Raises CertificateInvalid where one cannot be looked at."""
        found = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise CertificateInvalid(f"{path}: {error.strerror}") from None
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Read the files. Raises CertificateInvalid where they do not fit together."""
        # 8 MB that a server without TLS does without.
        from cryptography import x509  # noqa: PLC0415
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        contents = []
        for path in self._paths:
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise CertificateInvalid(f"{path}: {error.strerror}") from None
        chain, private_key, *client_ca = contents
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
        except ValueError:
            raise CertificateInvalid(f"{self.chain}: is no certificate in PEM form") from None
        try:
            key = load_pem_private_key(private_key, None)
        except TypeError:
            raise CertificateInvalid(f"{self.private_key}: a private key with a password cannot be used") from None
        except (ValueError, UnsupportedAlgorithm):
            raise CertificateInvalid(f"{self.private_key}: is no private key in PEM form") from None
        if key.public_key() != leaf.public_key():
            raise CertificateInvalid(f"{self.private_key}: is not the private key of the certificate in {self.chain}")
        if leaf.not_valid_after_utc <= datetime.now(UTC):
            _log.warning("certificate expired", file=str(self.chain), expired=leaf.not_valid_after_utc.isoformat())
        if client_ca:
            try:
                x509.load_pem_x509_certificates(client_ca[0])
            except ValueError:
                raise CertificateInvalid(f"{self.client_ca}: is no certificate in PEM form") from None
        return grpc.ssl_server_certificate_configuration(
            [(private_key, chain)], root_certificates=client_ca[0] if client_ca else None
        )


class ReloadingCredentials:
    """Credentials that follow their files: each new connection is served with what the files hold then.

    Files that do not fit together, as they may be halfway through a replacement, change nothing until they do.
    """

    def __init__(self, files: CertificateFiles) -> None:
        """Read the files. Raises CertificateInvalid."""
        self._files = files
        self._lock = threading.Lock()
        self._state: object = files.state()
        # What could not be loaded is not tried again until it changes: it may be half of a replacement.
        self._failed_state: object = ()
        self._first = files.load()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials to listen with; client certificates are demanded where the files name their authority."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._changed,  # type: ignore[arg-type]  # its types forget that None means no change
            require_client_authentication=self._files.client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, None where it is as it was. Asked by gRPC at the start of every connection."""
        with self._lock:
            state = None
            try:
                state = self._files.state()
                if state in (self._state, self._failed_state):
                    return None
                configuration = self._files.load()
            except CertificateInvalid as error:
                if state != self._failed_state:
                    _log.error("certificate not reloaded", cause=str(error))
                self._failed_state = state
                return None
            self._state, self._failed_state = state, ()
        _log.info("certificate reloaded", file=str(self._files.chain))
        return configuration


def certificate_names(auth_context: Mapping[str, Sequence[bytes]]) -> tuple[str, ...]:
    """Return the DNS names and URIs of a caller's verified certificate; nothing for a caller without one.

    DNS names come in lower case, since they are the same in any.
    """
    hosts = (name.decode("utf-8", errors="replace").lower() for name in auth_context.get("peer_dns", ()))
    uris = (name.decode("utf-8", errors="replace") for name in auth_context.get("peer_uri", ()))
    # Neither may pass for the other: an authority that minds one may not mind the other.
    return (*(name for name in hosts if ":" not in name), *(name for name in uris if ":" in name))
