"""A server that is in production, in this process: with TLS, on the store that a development server has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.app import App
from server.settings import Settings
from tests.harness import Service
from tests.operate.certificates import Certificate


@contextmanager
def secured(service: Service, certificate: Certificate, client_ca: Path | None = None) -> Iterator[str]:
    """Serve what another server serves too, over TLS, and yield the port's address on 127.0.0.1.

    The files of the certificate may be replaced meanwhile: each new connection gets what they hold then.
    """
    settings = Settings(
        database=f"sqlite:{service.database}",
        peppers_file=service.folder / "peppers",
        listen="127.0.0.1:0",
        tls_certificate=certificate.chain,
        tls_private_key=certificate.private_key,
        tls_client_ca=client_ca,
    )
    app = App(settings, service.clock)
    try:
        yield f"127.0.0.1:{app.start()}"
    finally:
        app.stop()
