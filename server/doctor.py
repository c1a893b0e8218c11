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
from server.addresses import is_loopback
from server.domain.peppers import Peppers
from server.service.base import Clock
from server.settings import PREFIX, Settings, SettingsInvalid, load
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


def _ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def _warning(check: str, found: str, to_do: str) -> Finding:
    return Finding(check, Level.WARNING, found, to_do)


def _failure(check: str, found: str, to_do: str) -> Finding:
    return Finding(check, Level.FAILURE, found, to_do)


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
            yield _failure("settings", line, "correct it; nothing else was looked at")
        return
    yield _ok("settings", "every value can be right")
    peppers, findings = _peppers(settings)
    yield from findings
    yield from _database(settings, peppers, clock)
    yield from _tls(settings, clock())
    if settings.metrics_listen is not None:
        yield _metrics(settings.metrics_listen)
    if settings.envoy:
        yield _envoy(settings)


def _unknown_variables(environment: Mapping[str, str], client_variables: Collection[str]) -> Iterator[Finding]:
    known = {
        *(name.upper() for name in Settings.model_fields),
        *(name.removeprefix(PREFIX) for name in client_variables),
    }
    for name in sorted(environment):
        rest = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and rest not in known:
            near = difflib.get_close_matches(rest, known, 1)
            meant = (
                f"name it {PREFIX}{near[0]}, if that is meant"
                if near
                else "see 'texture-auth serve --help' for its name"
            )
            yield _warning("settings", f"{name} is set, and nothing reads it", f"{meant}; or unset it")


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
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding: of a user without rights, say
            text = f"{settings.database_name} cannot be examined: {type(error).__name__}: {error}"
            to_do = "see that this user may read every table of it"
            yield _failure("database", text, to_do)


def _no_file(settings: Settings) -> Finding:
    if settings.development:
        return _ok("database", f"{settings.database_name} will be made by the first start")
    to_do = "run 'texture-auth migrate' for a new one, or 'texture-auth restore FILE'; or correct the path, which is "
    to_do += "relative to the working directory unless it begins with /"
    return _failure("database", f"{settings.database_name} is no file", to_do)


def _unavailable(settings: Settings, error: StoreUnavailable) -> Finding:
    if settings.sqlite_path is not None:
        to_do = "see that the file and its folder can be read and written; a damaged one is replaced by 'texture-auth "
        to_do += "restore FILE --replace'"
        return _failure("database", f"{settings.database_name} cannot be read: {error}", to_do)
    why = postgres_condition.why_unreachable(settings.database) or str(error)
    to_do = "see that its server runs and admits this user from here; a password belongs in PGPASSFILE or PGPASSWORD"
    return _failure("database", f"{settings.database_name} cannot be asked: {why}", to_do)


def _sqlite(settings: Settings, found: SqliteCondition) -> Iterator[Finding]:
    name = settings.database_name
    if found.problems:
        yield _failure(
            "database",
            f"{name} is damaged: {'; '.join(found.problems)}",
            "stop the servers, and run 'texture-auth restore FILE --replace' with a backup",
        )
    elif found.foreign:
        to_do = f"correct {PREFIX}DATABASE"
        yield _failure("database", f"{name} is a database of another program", to_do)
    else:
        yield _ok("database", f"{name}: {_size(found.size)}, passes quick_check, SQLite {found.version}")
    if not found.written_ahead and not found.foreign:
        to_do = "start a server, which turns it on"
        yield _warning("database", "the write-ahead log is off, as in a database that was just restored", to_do)
    if found.open_to_others:
        text = f"{settings.sqlite_path} is open to other users of this machine"
        yield _warning("database", text, f"chmod 600 {settings.sqlite_path}")
    if found.free < max(LEAST_FREE, found.size):
        to_do = "make room: a full disk stops every change, revocations included"
        yield _warning("database", f"only {_size(found.free)} are free beside the database", to_do)


def _postgres(settings: Settings, found: PostgresCondition) -> Iterator[Finding]:
    tested = found.major >= postgres_condition.OLDEST_TESTED
    yield Finding(
        "database",
        Level.OK if tested else Level.WARNING,
        f"{settings.database_name}: Postgres {found.version}",
        "" if tested else f"plan an upgrade: {postgres_condition.OLDEST_TESTED} is the oldest that is tested",
    )
    if found.standby:
        yield _failure(
            "database",
            "this is a standby: nothing can be changed in it, and what it answers may be old",
            f"name the primary in {PREFIX}DATABASE",
        )
    for name in found.unsafe:
        yield _warning(
            "database",
            f"{name} is off: a revocation that was acknowledged may be lost when its server fails",
            f"turn {name} on, for this database at least",
        )
    needed = settings.workers * app.connections_of(settings)
    if found.room < needed:
        to_do = f"raise max_connections, or lower {PREFIX}THREADS or {PREFIX}WORKERS"
        text = f"its server admits {found.room} connections, and one of these servers takes up to {needed}"
        yield _warning("database", text, to_do)
    else:
        text = f"its server admits {found.room} connections: enough for {found.room // needed} servers of {needed}"
        yield _ok("database", text)


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
        yield _failure("schema", text, "run that release")
    if state.pending:
        text = f"it lacks {', '.join(state.pending)}"
        yield _failure("schema", text, "run 'texture-auth migrate'")
    if not state.unknown and not state.pending:
        yield _ok("schema", "it is this release's")


def _contents(store: Store, peppers: Peppers | None, now: datetime) -> Iterator[Finding]:
    with store.read() as reader:
        newest = reader.newest_event_time()
        usage = reader.pepper_usage(now)
    yield _newest_event(newest, now)
    yield from _pepper_usage(peppers, usage)


def _newest_event(newest: datetime | None, now: datetime) -> Finding:
    if newest is None:
        return _ok("clock", "there is no event yet to compare this machine's with")
    if newest > now + SKEW_WARNING:
        text = f"the newest event is of {_minute(newest)}, in the future: this machine's was set back, or is slow"
        to_do = "set it right: by a slow clock, keys expire late and overlaps last too long"
        return _warning("clock", text, to_do)
    return _ok("clock", f"the newest event is of {_minute(newest)}, in the past")


def _peppers(settings: Settings) -> tuple[Peppers | None, list[Finding]]:
    """Return the peppers, where they can be read, and what is to be said of where they are kept."""
    path = app.peppers_path(settings)
    if path is not None and settings.peppers_file is None and not path.exists():
        return None, [_ok("peppers", f"{path} will be made by the first start")]
    try:
        peppers = app.load_peppers(settings)
    except app.StartRefused as error:
        to_do = "put them right: one 'id hexadecimal-secret' a line; if they are lost, so is every key"
        return None, [_failure("peppers", str(error), to_do)]
    signs, *others = peppers.pepper_ids
    verifying = f", and {', '.join(others)} verify only" if others else ""
    findings = [_ok("peppers", f"{signs} signs{verifying}")]
    if path is not None and open_to_others(path):
        findings.append(_warning("peppers", f"{path} is open to other users of this machine", f"chmod 600 {path}"))
    return peppers, findings


def _pepper_usage(peppers: Peppers | None, usage: Mapping[str, PepperUsage]) -> Iterator[Finding]:
    here = () if peppers is None else peppers.pepper_ids
    for pepper_id in here:
        yield _ok("peppers", _use(pepper_id, usage.get(pepper_id, PepperUsage()), signs=pepper_id == here[0]))
    for pepper_id in sorted(usage.keys() - set(here)):
        yield _failure(
            "peppers",
            f"{pepper_id} is not here, and is needed: {_count(usage[pepper_id])}",
            "put its line back, last: until then nobody can tell whether those secrets are right",
        )


def _use(pepper_id: str, usage: PepperUsage, *, signs: bool) -> str:
    """Say what a pepper is needed for; of one that is to go, also by whom."""
    if signs:
        return f"under {pepper_id}: {_count(usage)}"
    if usage == PepperUsage():
        return f"under {pepper_id}: nothing in force; it may be removed"
    named = ", ".join((*usage.some_key_ids, *usage.some_caller_ids))
    return f"under {pepper_id}: {_count(usage)}{', such as those of ' if named else ''}{named}"


def _count(usage: PepperUsage) -> str:
    of_webhooks = f"; of webhooks: {usage.webhooks}" if usage.webhooks else ""
    return f"secrets of keys: {usage.keys}, of callers: {usage.callers}; open Connect links: {usage.links}{of_webhooks}"


def _tls(settings: Settings, now: datetime) -> Iterator[Finding]:
    try:
        app.load_listeners(settings)
    except app.StartRefused as error:
        fit = "see that the files are PEM, and that the chain begins with the certificate that the key is of"
        yield _failure("tls", str(error), "do one of these" if settings.tls_certificate is None else fit)
        return
    if settings.tls_certificate is None:
        yield _plain_text(settings)
        return
    yield from _chain(x509.load_pem_x509_certificates(settings.tls_certificate.read_bytes()), now)
    if settings.tls_client_ca is not None:
        for number, authority in enumerate(x509.load_pem_x509_certificates(settings.tls_client_ca.read_bytes()), 1):
            yield _validity(authority, f"authority {number} of callers' certificates", now)
    if settings.tls_private_key is not None and open_to_others(settings.tls_private_key):
        path = settings.tls_private_key
        yield _warning("tls", f"{path} is open to other users of this machine", f"chmod 600 {path}")


def _plain_text(settings: Settings) -> Finding:
    if is_loopback(settings.listen):
        return _ok("tls", "none, on loopback only")
    return _warning(
        "tls",
        f"none, as asked for, on {settings.listen}: keys cross the network in plain text",
        "see that something else protects the connection",
    )


def _metrics(listen: str) -> Finding:
    if is_loopback(listen):
        return _ok("metrics", f"served on {listen}, on loopback only")
    return _warning(
        "metrics",
        f"served on {listen}, in plain text and to whoever asks",
        "see that only Prometheus reaches it: they hold no key, but tell how much is asked and denied",
    )


def _envoy(settings: Settings) -> Finding:
    try:
        app.load_gateways(settings)
    except app.StartRefused as error:
        return _failure("envoy", str(error), "install what is missing, or correct the file")
    if settings.envoy_routes is None:
        return _ok("envoy", "answered; without a file of routes, those of Envoy say what they need, or are denied")
    return _ok("envoy", f"answered, with the routes of {settings.envoy_routes}")


def _chain(chain: Sequence[x509.Certificate], now: datetime) -> Iterator[Finding]:
    """Check a certificate, which is the first and fits its key, and those that vouch for it."""
    names = _names(chain[0])
    if names:
        yield _ok("tls", f"a certificate for {', '.join(names)}, which the private key fits")
    else:
        to_do = "have one made with the names that clients call this server by"
        yield _warning("tls", "the certificate has no subject alternative names: clients refuse it", to_do)
    for number, certificate in enumerate(chain, start=1):
        yield _validity(certificate, f"certificate {number} of {len(chain)}", now)
    if not all(_issued(certificate, issuer) for certificate, issuer in pairwise(chain)):
        to_do = "let each certificate of the file be followed by that of its issuer"
        yield _warning("tls", "the chain is out of order, or has a gap: clients may refuse it", to_do)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _validity(certificate: x509.Certificate, which: str, now: datetime) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    renew = "replace the file by a renewed one: servers serve it to new connections by themselves"
    if now < begins:
        to_do = "wait, have another one made, or set this machine's clock right"
        return _failure("tls", f"{which} is not valid before {_minute(begins)}", to_do)
    if now > ends:
        return _failure("tls", f"{which} expired on {_minute(ends)}", renew)
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
