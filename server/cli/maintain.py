"""doctor, backup, restore: looking after an installation, on the server's own settings."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, astuple
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from server import app, backups
from server import doctor as checks
from server.backups import Restored
from server.cli.client import CALLER_KEY_VARIABLE, REFUSED, fail
from server.cli.operate import FLAGS, load_settings, settings_options
from server.doctor import Finding, Level

# How many ids are named in a line.
_NAMED = 20


@click.command(epilog="Exit codes: 0 without a failure, warnings or not; 1 with one.")
@settings_options(*FLAGS)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, **flags: Any) -> None:
    """Look at the settings, the database, the peppers, TLS and the clock, and say what to do.

    Changes nothing, and prints no secret. Give it the environment and the flags of `serve`.
    """
    found = []
    for finding in checks.examine(flags, os.environ, _client_variables(ctx)):
        found.append(finding)
        if not as_json:
            click.echo(_line(finding))
    healthy = all(finding.level is not Level.FAILURE for finding in found)
    if as_json:
        rows = [asdict(finding) | {"level": finding.level.value} for finding in found]
        click.echo(json.dumps({"healthy": healthy, "findings": rows}, indent=2))
    ctx.exit(0 if healthy else REFUSED)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@settings_options("database")
def backup(file: Path, **flags: Any) -> None:
    """Copy a SQLite database into FILE, which must not exist. Servers may go on writing.

    The peppers are not in it: keep a copy of them apart.
    """
    settings = load_settings(**flags)
    try:
        taken = backups.backup(settings, file)
    except app.StartRefused as error:
        fail(str(error), REFUSED)
    click.echo(f"{file}: revision {taken.revision}, {taken.size} bytes, {_newest(taken.newest_event_time)}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Replace the database that is there, and keep it aside.")
@settings_options("database")
def restore(file: Path, replace: bool, **flags: Any) -> None:
    """Put a backup in the place of the SQLite database, while no server runs.

    Every change since the backup is undone, revocations included.
    """
    settings = load_settings(**flags)
    try:
        done = backups.restore(settings, file, app.system_clock(), replacing=replace)
    except app.StartRefused as error:
        fail(str(error), REFUSED)
    click.echo(f"{settings.database_name} is {file} now: revision {done.revision}, {_newest(done.newest_event_time)}")
    click.echo("every change after that is undone, revocations included")
    if done.aside is not None:
        click.echo(f"the database that was there is kept in {done.aside}")
        _tell_undone(done)
    if done.pending:
        click.echo(f"it lacks {', '.join(done.pending)}: run 'texture-auth migrate' before serving it")


def _client_variables(ctx: click.Context) -> set[str]:
    """Return the variables that the command line reads besides the settings."""
    names = (parameter.envvar for parameter in ctx.find_root().command.params)
    return {CALLER_KEY_VARIABLE, *(name for name in names if isinstance(name, str))}


def _line(finding: Finding) -> str:
    to_do = f" -> {finding.to_do}" if finding.to_do else ""
    return f"{finding.level.value:<8} {finding.check:<9} {finding.found}{to_do}"


def _newest(newest: datetime | None) -> str:
    return "no event yet" if newest is None else f"newest event of {newest:%Y-%m-%d %H:%M:%S}Z"


def _tell_undone(done: Restored) -> None:
    """Say what had ended in the database that was there, and goes on in this one: what people forget."""
    undone = done.undone
    if undone is None:
        click.echo("it cannot be read, so that nobody can say what was revoked in it and works again")
        return
    if not any(astuple(undone)):
        click.echo("no key or caller that ended in it works again, and no end user who was erased is back")
    _tell(undone.revoked_keys, "revoked keys that work again")
    _tell(undone.suspended_keys, "suspended keys that work again")
    _tell(undone.rotated_keys, "rotated keys whose old secrets work again, and whose new ones do not")
    _tell(undone.revoked_callers, "revoked callers that may call again")
    _tell(undone.rotated_callers, "callers whose old keys work again, and whose new ones do not")
    _tell(undone.gone_end_users, "end users who were erased or had gone, and are back: erase them again")
    click.echo("what was narrowed, moved or removed since the backup is as it was then, too")


def _tell(ids: Sequence[str], what: str) -> None:
    if ids:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        click.echo(f"{what}: {len(ids)}: {', '.join(ids[:_NAMED])}{more}")
