"""What an operator may set: by `TEXTURE_AUTH_*` environment variables, and by flags, which win.

A value that cannot be right stops the start, with the name of its variable and the reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.addresses import is_loopback

PREFIX = "TEXTURE_AUTH_"


class SettingsInvalid(Exception):  # noqa: N818 - it names a state
    """Settings that cannot be right: one line for each, with the variable's name and the reason, never its value."""


class Settings(BaseSettings):
    """The settings of a server. The descriptions are the reference, and the command line's help."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    database: str = Field(
        default="sqlite:var/texture-auth.db",
        repr=False,
        description="Where the facts are kept: sqlite:PATH, relative to the working directory unless it begins with /, "
        "or postgresql://USER@HOST/NAME. A password is better kept in PGPASSFILE or PGPASSWORD.",
    )
    listen: str = Field(default="127.0.0.1:50051", description="HOST:PORT to listen on; port 0 takes a free one.")
    development: bool = Field(
        default=False,
        description="On loopback only, without TLS: migrates by itself, makes its own peppers and operator key, and "
        "opens reflection to everybody.",
    )
    development_folder: Path | None = Field(
        default=None,
        description="Where a server in development keeps the peppers and the key that it makes; beside the SQLite file "
        "by default, and in var/ for Postgres.",
    )
    peppers: SecretStr | None = Field(
        default=None,
        description="The peppers, one 'id hexadecimal-secret' a line; the first signs. See also PEPPERS_FILE.",
    )
    peppers_file: Path | None = Field(default=None, description="A file with the peppers.")
    tls_certificate: Path | None = Field(
        default=None,
        description="The certificate chain, PEM. It and the other files of TLS may be replaced while the server runs.",
    )
    tls_private_key: Path | None = Field(default=None, description="The private key of the certificate, PEM.")
    tls_client_ca: Path | None = Field(
        default=None,
        description="The authorities of callers' certificates, PEM. With it LISTEN demands a client certificate, "
        "unless TLS_CLIENT_LISTEN is set.",
    )
    tls_client_listen: str | None = Field(
        default=None, description="HOST:PORT where client certificates are demanded, so that LISTEN does not."
    )
    insecure_plaintext: bool = Field(
        default=False, description="Serve without TLS, where something else protects the connection."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many processes serve on the same port, each with so many THREADS, a QUEUE and CONNECTIONS of "
        "its own; with more than one, a supervisor keeps them going.",
    )
    metrics_listen: str | None = Field(
        default=None,
        description="HOST:PORT to serve metrics on, to Prometheus: GET /metrics, in plain text and to whoever asks, so "
        "an address within. None by default.",
    )
    threads: int = Field(
        default=8,
        ge=1,
        le=256,
        description="How many calls are worked on at once, beside decisions, which have two threads of their own.",
    )
    queue: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="How many decisions, and how many other calls, may wait for a thread; further ones are "
        "RESOURCE_EXHAUSTED at once. A caller alone may take seven parts of eight.",
    )
    connections: int = Field(
        default=10_000, ge=1, description="How many connections may be open at once; further ones are closed at once."
    )
    cached_keys: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="How many customers' keys a process remembers, at about 700 bytes each.",
    )
    cached_devices: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="How many devices a process remembers, at about 350 bytes each.",
    )
    default_deadline_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="The deadline of calls that come without one."
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="How long calls in flight may go on after SIGTERM."
    )
    event_retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Delete events once they are older than so many days; kept for ever by default.",
    )
    webhook_private_hosts: str = Field(
        default="",
        description="Host names that webhooks may go to though their addresses are not public, with commas between.",
    )
    webhook_ca: Path | None = Field(
        default=None,
        description="Authorities, PEM, that may vouch for the certificates of WEBHOOK_PRIVATE_HOSTS, beside those that "
        "this machine trusts.",
    )
    webhook_log_days: int = Field(
        default=30,
        ge=1,
        le=36_500,
        description="Delete webhook deliveries that ended once they are older than so many days.",
    )
    count_use: bool = Field(
        default=True,
        description="Count what keys are used for: 'texture-auth incident' tells it, and it is looked at before an old "
        "secret is ended.",
    )
    usage_retention_days: int = Field(
        default=400,
        ge=1,
        le=36_500,
        description="Forget what keys were used for once that is longer ago than so many days.",
    )
    envoy: bool = Field(
        default=False,
        description="Answer Envoy's external authorization, envoy.service.auth.v3.Authorization/Check, too. Needs the "
        "extra 'envoy'.",
    )
    envoy_routes: Path | None = Field(
        default=None,
        description="A file with what requests that come by Envoy need, 'METHOD PATH PERMISSION' a line; for routes of "
        "Envoy that do not say so themselves. Whatever it does not name is denied.",
    )
    envoy_xff_num_trusted_hops: int = Field(
        default=0,
        ge=0,
        le=16,
        description="How many proxies before Envoy are trusted to say in x-forwarded-for whose request it is, as Envoy "
        "itself is told; 0 is nobody: the client is who is connected to Envoy.",
    )
    log_format: Literal["json", "console"] | None = Field(
        default=None, description="json, or console for people; the default is console in development."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged."
    )
    log_allow_sample: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The share of allowed Authorize calls that is logged, from 0 to 1; 0.01 by default, and 1 in "
        "development. Denials and changes are always logged.",
    )

    @field_validator("database")
    @classmethod
    def _database_is_known(cls, value: str) -> str:
        if value.startswith("sqlite:") and value != "sqlite:":
            return value
        try:
            parts = urlsplit(value)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("postgresql", "postgres") or "://" not in value:
            raise ValueError("must be sqlite:PATH or postgresql://USER@HOST/NAME")
        return value

    @field_validator("listen", "tls_client_listen", "metrics_listen")
    @classmethod
    def _listen_is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
            raise ValueError("must be HOST:PORT, with a port from 0 to 65535")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.peppers is not None and self.peppers_file is not None:
            raise ValueError("PEPPERS: set this or PEPPERS_FILE, not both")
        if (self.tls_certificate is None) != (self.tls_private_key is None):
            raise ValueError("TLS_CERTIFICATE: is set if and only if TLS_PRIVATE_KEY is")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("TLS_CLIENT_CA: needs TLS_CERTIFICATE")
        if self.tls_client_listen is not None and self.tls_client_ca is None:
            raise ValueError("TLS_CLIENT_LISTEN: needs TLS_CLIENT_CA")
        if self.envoy_routes is not None and not self.envoy:
            raise ValueError("ENVOY_ROUTES: needs ENVOY")
        if self.development:
            if not is_loopback(self.listen):
                raise ValueError("LISTEN: must be a loopback address in development")
            if self.metrics_listen is not None and not is_loopback(self.metrics_listen):
                raise ValueError("METRICS_LISTEN: must be a loopback address in development")
            if self.tls_certificate is not None:
                raise ValueError("TLS_CERTIFICATE: cannot be used in development")
        return self

    @property
    def webhook_private_host_names(self) -> frozenset[str]:
        """The host names that webhooks may go to wherever they lead, in lower case."""
        return frozenset(name.strip().lower() for name in self.webhook_private_hosts.split(",") if name.strip())

    @property
    def sqlite_path(self) -> Path | None:
        """The SQLite file, None for another kind of database."""
        return Path(self.database.removeprefix("sqlite:")) if self.database.startswith("sqlite:") else None

    @property
    def store_kind(self) -> str:
        """What kind of database it is: sqlite or postgres."""
        return "postgres" if self.sqlite_path is None else "sqlite"

    @property
    def log_allow_sample_or_default(self) -> float:
        """The share of mere ALLOWs that is logged."""
        if self.log_allow_sample is not None:
            return self.log_allow_sample
        return 1.0 if self.development else 0.01

    @property
    def folder(self) -> Path:
        """Where a server in development keeps what it makes."""
        if self.development_folder is not None:
            return self.development_folder
        return self.sqlite_path.parent if self.sqlite_path is not None else Path("var")

    @property
    def operator_key_file(self) -> Path | None:
        """Where a server in development keeps the key of its operator, None for any other."""
        return self.folder / "operator.key" if self.development else None

    @property
    def database_name(self) -> str:
        """The database without the password, for people."""
        # Up to the last @: a password that should have been escaped, and is not, must not be shown either.
        return re.sub(r"(//[^:/@]*):.*@", r"\1@", self.database).partition("?")[0]


def load(**flags: object) -> Settings:
    """Return the settings of the environment, with the flags that are not None on top. Raises SettingsInvalid."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsInvalid("\n".join(_explain(dict(found)) for found in error.errors())) from None


def _explain(found: dict[str, object]) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    location = found["loc"]
    if isinstance(location, tuple) and location:
        return f"{PREFIX}{str(location[0]).upper()}: {message}"
    return f"{PREFIX}{message}"
