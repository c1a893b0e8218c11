"""What is wrong with an installation, and what to do about it: one check after another, none of which changes anything.

No finding holds a secret, nor the value of a setting that could be one.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from itertools import pairwise

from cryptography import x509

from server import app
from server.domain.peppers import Peppers
from server.service.base import Clock
from server.settings import PREFIX, Settings, SettingsInvalid, is_loopback, load
from server.store import postgres_condition, schema, sqlite_condition
from server.store.contract import PepperUsage, Store, StoreUnavailable
from server.store.postgres import PostgresEngine
from server.store.postgres_condition import PostgresCondition
from server.store.sqlite import SqliteEngine
from server.store.sqlite_condition import SqliteCondition, open_to_others

# A file system that has less room than this, or less than the database itself takes, is nearly full.
LEAST_FREE = 256 * 2**20
EXPIRY_WARNING = timedelta(days=30)
SKEW_WARNING = timedelta(seconds=1)
SKEW_FAILURE = timedelta(seconds=60)


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it, which is empty where all is well."""

    check: str
    level: Level
    found: str
    to_do: str = ""


def examine(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    client_variables: Collection[str],
    clock: Clock = app.system_clock,
) -> Iterator[Finding]:
    """Check everything that a server with these flags and this environment depends on, each thing as it is asked for.

    `client_variables` are those that the command line knows besides the settings.
    """
    yield from _unknown_variables(environment, client_variables)
    try:
        settings = load(**flags)
    except SettingsInvalid as error:
        for line in str(error).splitlines():
            yield Finding("settings", Level.FAILURE, line, "correct it; nothing else was looked at")
        return
    yield Finding("settings", Level.OK, "every value can be right")
    peppers, findings = _peppers(settings)
    yield from _database(settings, peppers, clock)
    yield from findings
    yield from _tls(settings, clock())


def _unknown_variables(environment: Mapping[str, str], client_variables: Collection[str]) -> Iterator[Finding]:
    known = {*(PREFIX + name.upper() for name in Settings.model_fields), *client_variables}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            meant = (
                f"if {near[0]} is meant, name it so" if near else "'texture-auth serve --help' lists those there are"
            )
            yield Finding("settings", Level.WARNING, f"{name} is set, and nothing reads it", f"{meant}; or unset it")


def _database(settings: Settings, peppers: Peppers | None, clock: Clock) -> Iterator[Finding]:
    """Check the database, and what is in it as far as it can be read."""
    if settings.sqlite_path is not None and not settings.sqlite_path.is_file():
        yield _no_file(settings)
        return
    database = app.open_database(settings, read_only=True)
    path, engine = settings.sqlite_path, database.engine
    with closing(database.store) as store:
        try:
            if path is not None and isinstance(engine, SqliteEngine):
                sqlite = sqlite_condition.examine(engine, path)
                yield from _sqlite(settings, sqlite)
                if sqlite.foreign:
                    return
            elif isinstance(engine, PostgresEngine):
                postgres = postgres_condition.examine(engine, clock)
                yield from _postgres(settings, postgres)
                yield _postgres_clock(postgres)
            state = schema.inspect(engine)
            yield from _schema(state)
            if not state.pending and not state.unknown:
                yield from _contents(store, peppers, clock())
        except StoreUnavailable as error:
            yield _unavailable(settings, error)


def _no_file(settings: Settings) -> Finding:
    if settings.development:
        return Finding("database", Level.OK, f"{settings.database_name} will be made by the first start")
    to_do = "run 'texture-auth migrate' for a new one, or 'texture-auth restore FILE'; or correct the path, which is "
    to_do += "relative to the working directory unless it begins with /"
    return Finding("database", Level.FAILURE, f"{settings.database_name} is no file", to_do)


def _unavailable(settings: Settings, error: StoreUnavailable) -> Finding:
    if settings.sqlite_path is not None:
        to_do = "see that the file and its folder can be read and written; a damaged one is replaced by 'texture-auth "
        to_do += "restore FILE --replace'"
        return Finding("database", Level.FAILURE, f"{settings.database_name} cannot be read: {error}", to_do)
    why = postgres_condition.why_unreachable(settings.database) or str(error)
    to_do = "see that its server runs and admits this user from here; a password belongs in PGPASSFILE or PGPASSWORD"
    return Finding("database", Level.FAILURE, f"{settings.database_name} cannot be asked: {why}", to_do)


def _sqlite(settings: Settings, found: SqliteCondition) -> Iterator[Finding]:
    name = settings.database_name
    if found.problems:
        yield Finding(
            "database",
            Level.FAILURE,
            f"{name} is damaged: {'; '.join(found.problems)}",
            "stop the servers, and run 'texture-auth restore FILE --replace' with a backup",
        )
    elif found.foreign:
        to_do = f"correct {PREFIX}DATABASE"
        yield Finding("database", Level.FAILURE, f"{name} is a database of another program", to_do)
    else:
        size = _size(found.size)
        yield Finding(
            "database", Level.OK, f"{name}: {size}, intact as far as quick_check sees, SQLite {found.version}"
        )
    if not found.written_ahead and not found.foreign:
        to_do = "start a server or run 'texture-auth migrate': either turns it on"
        yield Finding(
            "database", Level.WARNING, "the write-ahead log is off: readers and writers get in each other's way", to_do
        )
    for file in found.readable_by_others:
        yield Finding("database", Level.WARNING, f"{file} is open to other users of this machine", f"chmod 600 {file}")
    if found.free < max(LEAST_FREE, found.size):
        to_do = "make room: a full disk stops every change, revocations included"
        yield Finding("database", Level.WARNING, f"only {_size(found.free)} are free beside the database", to_do)


def _postgres(settings: Settings, found: PostgresCondition) -> Iterator[Finding]:
    tested = found.major >= postgres_condition.OLDEST_TESTED
    yield Finding(
        "database",
        Level.OK if tested else Level.WARNING,
        f"{settings.database_name}: Postgres {found.version}",
        "" if tested else f"plan an upgrade: {postgres_condition.OLDEST_TESTED} is the oldest that is tested",
    )
    if found.standby:
        yield Finding(
            "database",
            Level.FAILURE,
            "this is a standby: nothing can be changed in it, and what it answers may be old",
            f"name the primary in {PREFIX}DATABASE",
        )
    for name in found.unsafe:
        yield Finding(
            "database",
            Level.WARNING,
            f"{name} is off: a revocation that was acknowledged may be lost when its server fails",
            f"turn {name} on, for this database at least",
        )
    needed = settings.threads + 1
    if found.room < needed:
        to_do = f"raise max_connections, or lower {PREFIX}THREADS"
        text = f"its server admits {found.room} connections, and one of these servers takes up to {needed}"
        yield Finding("database", Level.WARNING, text, to_do)
    else:
        text = f"its server admits {found.room} connections: enough for {found.room // needed} servers of {needed}"
        yield Finding("database", Level.OK, text)


def _postgres_clock(found: PostgresCondition) -> Finding:
    seconds = found.ahead.total_seconds()
    text = f"the database's is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    level = Level.OK
    if abs(found.ahead) > SKEW_WARNING:
        level = Level.FAILURE if abs(found.ahead) > SKEW_FAILURE else Level.WARNING
    to_do = "" if level is Level.OK else "have both machines set by NTP: keys expire by these clocks"
    return Finding("clock", level, text, to_do)


def _schema(state: schema.SchemaState) -> Iterator[Finding]:
    if state.unknown:
        text = f"it was migrated by a newer release ({', '.join(state.unknown)})"
        yield Finding("schema", Level.FAILURE, text, "run that release")
    if state.pending:
        text = f"it lacks {', '.join(state.pending)}"
        yield Finding("schema", Level.FAILURE, text, "run 'texture-auth migrate'")
    if not state.unknown and not state.pending:
        yield Finding("schema", Level.OK, "it is this release's")


def _contents(store: Store, peppers: Peppers | None, now: datetime) -> Iterator[Finding]:
    with store.read() as reader:
        newest = reader.newest_event_time()
        usage = reader.pepper_usage(now)
    yield _newest_event(newest, now)
    yield from _pepper_usage(peppers, usage)


def _newest_event(newest: datetime | None, now: datetime) -> Finding:
    if newest is None:
        return Finding("clock", Level.OK, "there is no event yet to compare this machine's with")
    if newest > now + SKEW_WARNING:
        text = f"the newest event is of {_minute(newest)}, in the future: this machine's was set back, or is slow"
        to_do = "set it right: by a slow clock, keys expire late and overlaps last too long"
        return Finding("clock", Level.WARNING, text, to_do)
    return Finding("clock", Level.OK, f"the newest event is of {_minute(newest)}, in the past")


def _peppers(settings: Settings) -> tuple[Peppers | None, list[Finding]]:
    """Return the peppers, where they can be read, and what is to be said of where they are kept."""
    path = app.peppers_path(settings)
    if path is not None and settings.peppers_file is None and not path.exists():
        return None, [Finding("peppers", Level.OK, f"{path} will be made by the first start")]
    try:
        peppers = app.load_peppers(settings)
    except app.StartRefused as error:
        to_do = "put them right: one 'id hexadecimal-secret' a line; if they are lost, so is every key"
        return None, [Finding("peppers", Level.FAILURE, str(error), to_do)]
    findings = []
    if path is not None and open_to_others(path):
        findings.append(
            Finding("peppers", Level.WARNING, f"{path} is open to other users of this machine", f"chmod 600 {path}")
        )
    return peppers, findings


def _pepper_usage(peppers: Peppers | None, usage: Mapping[str, PepperUsage]) -> Iterator[Finding]:
    here = () if peppers is None else peppers.pepper_ids
    for pepper_id in here:
        yield _pepper_here(pepper_id, usage.get(pepper_id, PepperUsage()), signs=pepper_id == here[0])
    for pepper_id in sorted(usage.keys() - set(here)):
        yield Finding(
            "peppers",
            Level.FAILURE,
            f"{pepper_id} is not here, and is needed by {_needs(usage[pepper_id])}",
            "put its line back, last: until then nobody can tell whether those secrets are right",
        )


def _pepper_here(pepper_id: str, usage: PepperUsage, *, signs: bool) -> Finding:
    if signs:
        return Finding("peppers", Level.OK, f"{pepper_id} signs; under it are {_needs(usage)}")
    if usage == PepperUsage():
        return Finding("peppers", Level.OK, f"{pepper_id} verifies only, and nothing in force needs it: may be removed")
    named = ", ".join((*usage.some_key_ids, *usage.some_caller_ids))
    who = f", such as those of {named}" if named else ""
    return Finding("peppers", Level.OK, f"{pepper_id} verifies only, and is needed by {_needs(usage)}{who}")


def _needs(usage: PepperUsage) -> str:
    return f"{usage.keys} secrets of keys, {usage.callers} of callers, {usage.links} open Connect links"


def _tls(settings: Settings, now: datetime) -> Iterator[Finding]:
    try:
        served = app.load_tls(settings)
    except app.StartRefused as error:
        to_do = (
            "see that both are PEM, that the chain begins with the server's own certificate, and that the key fits it"
        )
        yield Finding("tls", Level.FAILURE, str(error), to_do)
        return
    if served is None:
        yield _plain_text(settings)
        return
    yield from _chain(x509.load_pem_x509_certificates(served.certificate), now)
    if settings.tls_private_key is not None and open_to_others(settings.tls_private_key):
        path = settings.tls_private_key
        yield Finding("tls", Level.WARNING, f"{path} is open to other users of this machine", f"chmod 600 {path}")


def _plain_text(settings: Settings) -> Finding:
    if is_loopback(settings.listen):
        return Finding("tls", Level.OK, "none, on loopback only")
    return Finding(
        "tls",
        Level.WARNING,
        f"none, as asked for, on {settings.listen}: keys cross the network in plain text",
        "see that something else protects the connection",
    )


def _chain(chain: Sequence[x509.Certificate], now: datetime) -> Iterator[Finding]:
    """Check a certificate, which is the first and fits its key, and those that vouch for it."""
    names = _names(chain[0])
    if names:
        yield Finding("tls", Level.OK, f"a certificate for {', '.join(names)}, which the private key fits")
    else:
        to_do = "have one made with the names that clients call this server by"
        yield Finding(
            "tls", Level.WARNING, "the certificate has no subject alternative names: clients refuse it", to_do
        )
    for number, certificate in enumerate(chain, start=1):
        yield _validity(certificate, f"certificate {number} of {len(chain)}", now)
    if not all(_issued(certificate, issuer) for certificate, issuer in pairwise(chain)):
        to_do = "let each certificate of the file be followed by that of its issuer"
        yield Finding("tls", Level.WARNING, "the chain is out of order, or has a gap: clients may refuse it", to_do)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _validity(certificate: x509.Certificate, which: str, now: datetime) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    renew = "have it renewed, and restart the servers"
    if now < begins:
        to_do = "wait, have another one made, or set this machine's clock right"
        return Finding("tls", Level.FAILURE, f"{which} is not valid before {_minute(begins)}", to_do)
    if now > ends:
        return Finding("tls", Level.FAILURE, f"{which} expired on {_minute(ends)}", renew)
    level = Level.WARNING if ends - now < EXPIRY_WARNING else Level.OK
    return Finding("tls", level, f"{which} is valid until {_minute(ends)}", "" if level is Level.OK else renew)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - one for the name, one for the signature, and others for keys of odd kinds
        return False
    return True


def _minute(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M}Z"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
