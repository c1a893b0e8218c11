"""serve, migrate, bootstrap: what works on the server's own settings."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import structlog

from server import app, logs, supervisor
from server.cli.client import REFUSED, UNAVAILABLE, fail
from server.domain.errors import Refusal
from server.metrics.exposition import CannotListen, of_workers
from server.settings import PREFIX, Settings, SettingsInvalid, load
from server.store.contract import StoreUnavailable
from server.wire.server import AddressTaken
from server.worker import AT_ONCE, Line, worker_number

FLAGS: dict[str, Any] = {
    "database": None,
    "listen": None,
    "development": bool,
    "development_folder": click.Path(path_type=Path),
    "peppers_file": click.Path(path_type=Path),
    "tls_certificate": click.Path(path_type=Path),
    "tls_private_key": click.Path(path_type=Path),
    "tls_client_ca": click.Path(path_type=Path),
    "tls_client_listen": None,
    "insecure_plaintext": bool,
    "workers": int,
    "metrics_listen": None,
    "threads": int,
    "queue": int,
    "connections": int,
    "default_deadline_seconds": float,
    "drain_seconds": float,
    "event_retention_days": int,
    "count_use": click.BOOL,
    "envoy": bool,
    "envoy_routes": click.Path(path_type=Path),
    "envoy_xff_num_trusted_hops": int,
    "usage_retention_days": int,
    "log_format": click.Choice(["json", "console"]),
    "log_level": click.Choice(["debug", "info", "warning", "error"]),
    "log_allow_sample": float,
}

_STORE_FLAGS = ("database", "development", "development_folder", "peppers_file")


def settings_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the flags of some settings; their help is the settings' own description."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            kind = FLAGS[name]
            help_text = f"{Settings.model_fields[name].description} [env: TEXTURE_AUTH_{name.upper()}]"
            flag = f"--{name.replace('_', '-')}"
            if kind is bool:
                function = click.option(flag, is_flag=True, default=None, help=help_text)(function)
            else:
                function = click.option(flag, type=kind, help=help_text)(function)
        return function

    return decorate


def load_settings(**flags: Any) -> Settings:
    """Return the settings; where one is bad, say so and end."""
    try:
        return load(**flags)
    except SettingsInvalid as error:
        fail(str(error), REFUSED)


@click.command()
@settings_options(*FLAGS)
def serve(**flags: Any) -> None:
    """Serve until SIGTERM or SIGINT; a second one stops at once. SIGHUP replaces workers, where there are several."""
    settings = load_settings(**flags)
    number = worker_number()
    if number is None and settings.workers > 1:
        _configure_log(settings, "supervisor")
        leave(_supervise(settings))
    _configure_log(settings, number)
    signals = app.Signals() if number is None else app.Signals(second=AT_ONCE)
    try:
        line = None if number is None else Line()
        settings = settings if line is None else line.settings(settings)
        running = app.App(settings, shares_port=line is not None)
        running.start()
    except (app.StartRefused, AddressTaken, Refusal, SettingsInvalid) as error:
        fail(str(error), REFUSED)
    except StoreUnavailable as error:
        fail(
            f"the database {settings.database_name} cannot be asked: {error}; 'texture-auth migrate' makes a new one",
            UNAVAILABLE,
        )
    if line is None:
        _log_metrics(running.metrics_address)
        _announce(settings, *running.addresses)
    else:
        line.serving(running.retire)
    code = running.run_until_signalled(signals)
    leave(code)


def _configure_log(settings: Settings, worker: int | str | None) -> None:
    logs.configure(settings.log_format or ("console" if settings.development else "json"), settings.log_level, worker)


def _supervise(settings: Settings) -> int:
    """Have several workers serve until a signal, and return the exit code."""
    try:
        with supervisor.reserved(settings) as addresses, of_workers(settings.metrics_listen) as metrics:
            _log_metrics(metrics.address)

            def opened() -> None:
                _announce(settings, *addresses.values())

            return supervisor.Supervisor(settings, addresses, opened, metrics).run()
    except AddressTaken as error:
        fail(str(error), REFUSED)
    except CannotListen as error:
        fail(f"{PREFIX}METRICS_LISTEN: {error}", REFUSED)


def _log_metrics(address: str | None) -> None:
    """Tell where metrics are served, which nobody else knows where the port was to be a free one."""
    if address is not None:
        structlog.get_logger("texture_auth.metrics").info("metrics served", address=address)


def _announce(settings: Settings, address: str, *demanding: str) -> None:
    if settings.operator_key_file is not None:
        click.echo(_next_steps(address, settings, settings.operator_key_file))
    else:
        also = f" and, for callers with certificates, on {demanding[0]}" if demanding else ""
        click.echo(f"texture-auth is serving on {address}{also}", err=True)


def leave(code: int) -> None:
    """End the process, without waiting for threads whose calls were cut off but which still wait for the database."""
    for stream in (sys.stdout, sys.stderr):
        # Whoever read it may be gone.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@click.command()
@settings_options("database")
def migrate(**flags: Any) -> None:
    """Bring the database's tables up to this release, making the database if there is none."""
    settings = load_settings(**flags)
    try:
        applied = app.migrate(settings)
    except app.StartRefused as error:
        fail(str(error), REFUSED)
    except StoreUnavailable as error:
        fail(f"the database {settings.database_name} cannot be asked: {error}", UNAVAILABLE)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do")


@click.command()
@click.argument("caller_id", default="operator")
@settings_options(*_STORE_FLAGS)
def bootstrap(caller_id: str, **flags: Any) -> None:
    """Make the first operator, on the database itself, and print its key to standard output."""
    settings = load_settings(**flags)
    try:
        key = app.bootstrap(settings, caller_id)
    except (app.StartRefused, Refusal) as error:
        fail(str(error), REFUSED)
    except StoreUnavailable as error:
        fail(f"the database {settings.database_name} cannot be asked: {error}", UNAVAILABLE)
    click.echo(f"{caller_id} may call everything. Its key, shown once and kept nowhere:", err=True)
    click.echo(key)


def _next_steps(address: str, settings: Settings, operator_key_file: Path) -> str:
    """Return what a newcomer can paste into a second terminal."""
    command = Path(sys.argv[0])
    folder = command.parent if command.name == "texture-auth" else Path(sys.executable).parent
    where = "" if address == "127.0.0.1:50051" else f"\n  export TEXTURE_AUTH_ADDRESS={address}"
    return f"""
Texture Auth is serving on {address}, with its data in {settings.database_name}. Ctrl-C stops it.

In a second terminal, in this directory:

  export PATH={shlex.quote(str(folder.absolute()))}:"$PATH"
  export TEXTURE_AUTH_CALLER_KEY="$(cat {shlex.quote(str(operator_key_file))})"{where}

  texture-auth workspaces create acme --display-name "Acme Energy" --environment sandbox
  texture-auth devices register acme home-battery-1 --reference-id user-1 --manufacturer acme
  KEY="$(texture-auth keys create acme --kind server --display-name "Backend" --only-key)"

  echo "$KEY" | texture-auth authorize devices:read home-battery-1
  echo "$KEY" | texture-auth keys lookup

The same questions with grpcurl:

  grpcurl -plaintext {address} list
  printf '{{"api_key":"%s","permission":"devices:read","device_id":"home-battery-1"}}' "$KEY" |
    grpcurl -plaintext -expand-headers -H 'authorization: Bearer ${{TEXTURE_AUTH_CALLER_KEY}}' -d @ \\
    {address} texture.auth.v1.AuthorizeService/Authorize

'make demo' plays the whole story; 'texture-auth --help' lists the commands.
"""
