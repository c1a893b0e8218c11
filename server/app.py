"""The composition root: the one place that knows every layer."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from server.domain.chain import Sealer
from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import Role
from server.domain.lifecycle import Rotation
from server.domain.peppers import Peppers
from server.domain.routes import Routes
from server.metrics.exposition import CannotListen
from server.metrics.process import ProcessMetrics
from server.outbound import Outbound
from server.service.barrier import Barrier
from server.service.base import Call, Clock, Resources
from server.service.callers import CallerFields, CallerService
from server.service.counting import UNCOUNTED, UseCounter
from server.service.deliveries import Dispatcher, prune_deliveries
from server.service.expiry import WARNING_SECONDS, warn_of_expiry
from server.service.exposures import MOST_WAITERS, ExposureService
from server.service.facts import FactCache, SharedClock
from server.service.following import Follower
from server.service.housekeeping import (
    FORGETTING_SECONDS,
    PRUNING_SECONDS,
    Chore,
    Housekeeper,
    prune_changes,
    prune_events,
)
from server.service.rehashing import REHASH_SECONDS, Rehashing
from server.service.telemetry import SILENT, Telemetry
from server.service.usage import UsageReporter, prune_usage
from server.service.webhooks import RESEAL_SECONDS, Resealing
from server.settings import PREFIX, Settings
from server.store import schema
from server.store.contract import Store
from server.store.peewee_store import Engine, PeeweeStore
from server.store.postgres import PostgresEngine
from server.store.sqlite import SqliteEngine
from server.wire.limits import Limits
from server.wire.server import Gateway, GrpcServer
from server.wire.tls import CertificateFiles, CertificateInvalid, ReloadingCredentials
from server.worker import worker_number

DEVELOPMENT_CALLER = "dev-operator"
# One thread decides at a time, whatever their number, and another may take in a message meanwhile; more of them get in
# each other's way. Those that wait for the store let others go on.
DECIDING_THREADS = 2
# For each thread that works on calls, how many others may wait for the store, or for other processes.
WAITING_FOR_EACH_THREAD = 4
# Who is named in events for what is done on the database itself.
BOOTSTRAP_CALLER = "bootstrap"

_log = structlog.get_logger("texture_auth")


class StartRefused(Exception):  # noqa: N818 - it names a state
    """The server must not start like this; the message says what to do."""


def system_clock() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Database:
    """The store of the settings, and the engine below it."""

    engine: Engine
    store: PeeweeStore


def connections_of(settings: Settings) -> int:
    """Return how many connections to Postgres a server takes at most; of several workers, each."""
    # One is outside the pool: the follower listens on it.
    return _pooled_connections(settings) + 1


def _pooled_connections(settings: Settings) -> int:
    # One for each call that is worked on, and one each for health, housekeeping, exposed keys, webhooks, what keys were
    # used for, and for the follower to read; two for those who watch events.
    return settings.threads + 8


def open_database(settings: Settings, peppers: Peppers | None = None, *, read_only: bool = False) -> Database:
    """Return the store of the settings. Nothing is opened before it is used.

    One that is `read_only` is for looking at it: it is left as it is. Without peppers nothing is to be recorded in it.
    """
    engine: Engine
    if settings.sqlite_path is not None:
        engine = SqliteEngine(settings.sqlite_path, read_only=read_only)
    else:
        engine = PostgresEngine(settings.database, _pooled_connections(settings))
    return Database(engine, PeeweeStore(engine, None if peppers is None else Sealer(peppers)))


def migrate(settings: Settings) -> tuple[str, ...]:
    """Bring the store's tables up to this release, making the store if there is none; return what was applied.

    Raises StoreUnavailable; StartRefused where a newer release has been at it.
    """
    engine = open_database(settings).engine
    try:
        return _migrate(engine)
    finally:
        engine.close()


def peppers_path(settings: Settings) -> Path | None:
    """Return the file that the peppers are in, or in development will be; None for none."""
    if settings.peppers is not None:
        return None
    return settings.peppers_file or (settings.folder / "peppers" if settings.development else None)


def load_peppers(settings: Settings) -> Peppers:
    """Return the peppers of the settings; in development, made on first use. Raises StartRefused."""
    name, text = f"{PREFIX}PEPPERS", None
    if settings.peppers is not None:
        text = settings.peppers.get_secret_value()
    else:
        name = f"{PREFIX}PEPPERS_FILE"
        path = peppers_path(settings)
        if path is None:
            raise StartRefused(f"{name}: is needed, or {PREFIX}PEPPERS, except in development")
        if settings.peppers_file is None and not path.exists():
            _write_secret(path, f"dev-{secrets.token_hex(4)} {secrets.token_hex(32)}\n")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartRefused(f"{name}: cannot be read: {getattr(error, 'strerror', 'it is not text')}") from None
    try:
        return Peppers.parse(text)
    except ValueError as error:
        raise StartRefused(f"{name}: {error}") from None


def bootstrap(settings: Settings, caller_id: str) -> str:
    """Make an operator on the database itself, and return its key.

    Raises StartRefused for an old or newer schema, Refusal (FIELD_INVALID, CALLER_EXISTS), StoreUnavailable.
    """
    peppers = load_peppers(settings)
    database = open_database(settings, peppers)
    try:
        _refuse_other_schema(database.engine)
        callers = CallerService(_resources(settings, database.store, peppers, system_clock))
        call = Call(caller_id=BOOTSTRAP_CALLER, method=BOOTSTRAP_CALLER)
        return callers.create_caller(call, caller_id, CallerFields(roles=[Role.OPERATOR])).value.secret
    finally:
        database.store.close()


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on, in plain text where there are no credentials."""

    address: str
    credentials: ReloadingCredentials | None


class App:
    """A server with its store, ready to start."""

    def __init__(self, settings: Settings, clock: Clock | None = None, *, shares_port: bool = False) -> None:
        """Open the store and make sure that it may be served; a worker of a group shares its port with the others.

        Without a clock, the time is that of the store, which all its processes share.

        Raises StartRefused, with what to do; StoreUnavailable.
        """
        self._settings = settings
        self._listeners = load_listeners(settings)
        gateways = load_gateways(settings)
        self.addresses: tuple[str, ...] = ()
        self.metrics_address: str | None = None
        peppers = load_peppers(settings)
        self._database = open_database(settings, peppers)
        if settings.development:
            for name in _migrate(self._database.engine):
                _log.info("migrated", migration=name)
        else:
            _refuse_other_schema(self._database.engine)
        shared_clock = SharedClock()
        if clock is None:
            clock = system_clock if settings.sqlite_path else shared_clock
        self._metrics = ProcessMetrics(settings.metrics_listen, worker_number(), os.environ, settings.store_kind)
        store = self._metrics.measured(self._database.store)
        self._resources = _resources(settings, store, peppers, clock, self._metrics.telemetry)
        self._follower = None
        if not settings.sqlite_path:
            self._follower = Follower(store, self._resources.cache, shared_clock, self._resources.barrier.heard)
        self._rehashing = Rehashing(self._resources)
        self._usage = UsageReporter(
            store, UseCounter(clock) if settings.count_use else UNCOUNTED, clock, counting=settings.count_use
        )
        self._exposures = ExposureService(self._resources)
        outbound = _outbound(settings)
        self._dispatcher = Dispatcher(self._resources, outbound)
        self._server = GrpcServer(
            self._resources,
            self._rehashing,
            self._exposures,
            self._usage,
            replace(_limits(settings), shares_port=shares_port),
            open_reflection=settings.development,
            log_allow_sample=settings.log_allow_sample_or_default,
            webhook_private_hosts=outbound.private_hosts,
            gateways=gateways,
        )
        chores = _chores(settings, self._resources, self._rehashing)
        self._housekeeper = Housekeeper(chores, telemetry=self._metrics.telemetry)
        if settings.operator_key_file is not None:
            self._provide_operator(settings.operator_key_file)

    def start(self) -> int:
        """Listen and serve, and return the port. Raises AddressTaken, StartRefused.

        `addresses` are from then on what it listens on, with the ports that were taken; so is `metrics_address`.
        """
        ports = [self._server.listen(listener.address, listener.credentials) for listener in self._listeners]
        hosts = [listener.address.rpartition(":")[0] for listener in self._listeners]
        self.addresses = tuple(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))
        try:
            self.metrics_address = self._metrics.start()
        except CannotListen as error:
            raise StartRefused(f"{PREFIX}METRICS_LISTEN: {error}") from None
        if self._follower is not None:
            self._follower.start()
        self._usage.start()
        self._server.start()
        self._housekeeper.start()
        self._dispatcher.start()
        return ports[0]

    def run_until_signalled(self, signals: Signals) -> int:
        """Serve until the first signal, then drain; the second one stops at once. Return the exit code.

        To be called from the main thread, after `start`.
        """
        signals.wait()
        _log.info("draining", seconds=self._settings.drain_seconds)
        wait = self.drain()
        while not wait(0.05):
            if signals.pending():
                _log.warning("stopped at once")
                self._server.cut_off()
                return 1
        self._leave()
        _log.info("stopped")
        return 0

    def retire(self) -> None:
        """Have health say NOT_SERVING from now on, and serve as before."""
        self._server.retire()

    def drain(self) -> Callable[[float], bool]:
        """Refuse new calls and let those in flight finish; the returned function waits and tells whether it is over."""
        self._housekeeper.drain()
        self._dispatcher.drain()
        return self._server.drain(self._settings.drain_seconds)

    def stop(self) -> None:
        """Stop at once and let go of everything."""
        self._server.stop()
        self._leave()

    def _leave(self) -> None:
        """Let go of the store, now that nothing is answered any more."""
        self._housekeeper.stop()
        self._exposures.stop()
        self._dispatcher.stop()
        self._usage.stop()
        if self._follower is not None:
            self._follower.stop()
        self._metrics.stop()
        self._database.store.close()

    def _provide_operator(self, path: Path) -> None:
        """See that the file holds the key of the development operator, making or renewing it where it does not."""
        callers = CallerService(self._resources)
        if path.exists():
            try:
                callers.authenticate(path.read_text("utf-8").strip())
            except Refusal:
                pass  # of another database: renewed below
            else:
                return
        call = Call(caller_id=BOOTSTRAP_CALLER, method=BOOTSTRAP_CALLER)
        try:
            key = callers.create_caller(call, DEVELOPMENT_CALLER, CallerFields(roles=[Role.OPERATOR])).value.secret
        except Refusal as refusal:
            if refusal.reason is not ErrorReason.CALLER_EXISTS:
                raise
            key = _renewed_key(callers, call)
        _write_secret(path, key + "\n")


def _resources(
    settings: Settings, store: Store, peppers: Peppers, clock: Clock, telemetry: Telemetry = SILENT
) -> Resources:
    """Return what the services work with."""
    cache = FactCache(
        store,
        keys=settings.cached_keys,
        devices=settings.cached_devices,
        loads=settings.threads * WAITING_FOR_EACH_THREAD,
        telemetry=telemetry,
    )
    telemetry.sample(cache.tell)
    return Resources(store, peppers, clock, cache, Barrier(store, telemetry), telemetry)


def _outbound(settings: Settings) -> Outbound:
    """Return what posts webhooks. Raises StartRefused."""
    try:
        return Outbound(settings.webhook_private_host_names, settings.webhook_ca)
    except OSError as error:
        raise StartRefused(f"{PREFIX}WEBHOOK_CA: cannot be used: {error.strerror or 'it is not PEM'}") from None


def load_gateways(settings: Settings) -> list[Gateway]:
    """Return what answers gateways in words of their own. Raises StartRefused."""
    if not settings.envoy:
        return []
    try:
        # Here alone, since it takes a package that most installations do without.
        from server.wire.checks import Reader  # noqa: PLC0415
        from server.wire.servicers import envoy  # noqa: PLC0415
    except ImportError as error:
        raise StartRefused(
            f"{PREFIX}ENVOY: needs the extra 'envoy', as in pip install 'texture-auth[envoy]' ({error})"
        ) from None
    reader = Reader(_envoy_routes(settings.envoy_routes), settings.envoy_xff_num_trusted_hops)
    return [Gateway(envoy.SERVICE, partial(envoy.add_to_server, reader))]


def _envoy_routes(path: Path | None) -> Routes:
    if path is None:
        return Routes()
    try:
        return Routes.parse(path.read_text("utf-8"))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        reason = "cannot be read: it is not text"
    except ValueError as error:
        reason = str(error)
    raise StartRefused(f"{PREFIX}ENVOY_ROUTES: {reason}")


def _chores(settings: Settings, resources: Resources, rehashing: Rehashing) -> list[Chore]:
    """Return what a server with these settings does by itself."""
    chores = [
        Chore("rehash secrets", REHASH_SECONDS, rehashing.store),
        Chore("reseal webhook secrets", RESEAL_SECONDS, Resealing(resources).store),
        Chore("forget changes", FORGETTING_SECONDS, partial(prune_changes, resources)),
        Chore(
            "prune webhook deliveries",
            PRUNING_SECONDS,
            partial(prune_deliveries, resources, timedelta(days=settings.webhook_log_days)),
        ),
        Chore("warn of expiry", WARNING_SECONDS, partial(warn_of_expiry, resources)),
    ]
    usage_retention = timedelta(days=settings.usage_retention_days)
    chores.append(Chore("prune usage", PRUNING_SECONDS, partial(prune_usage, resources, usage_retention)))
    if settings.event_retention_days is not None:
        retention = timedelta(days=settings.event_retention_days)
        chores.append(Chore("prune events", PRUNING_SECONDS, partial(prune_events, resources, retention)))
    return chores


def _renewed_key(callers: CallerService, call: Call) -> str:
    try:
        return callers.rotate_caller_key(call, DEVELOPMENT_CALLER, Rotation(force=True)).value.secret
    except Refusal as refusal:
        if refusal.reason is not ErrorReason.CALLER_IS_REVOKED:
            raise
        raise StartRefused(
            f"{DEVELOPMENT_CALLER} is revoked, and its key file is not there: make another operator with "
            "'texture-auth bootstrap --development another-operator', and keep its key in that file"
        ) from None


class Signals:
    """SIGTERM and SIGINT, taken when they are asked for. To be made in the main thread, before any other thread.

    They are blocked, not handled: a handler runs between two instructions of the main thread, and one that comes just
    before a wait begins is not heard until the wait is over. `pending` minds those of `second` alone.
    """

    _STOP = frozenset({signal.SIGTERM, signal.SIGINT})

    def __init__(self, second: frozenset[signal.Signals] = _STOP) -> None:
        self._second = second
        signal.pthread_sigmask(signal.SIG_BLOCK, self._STOP)

    def wait(self) -> None:
        """Wait for the next one, and take it."""
        signal.sigwait(self._STOP)

    def pending(self) -> bool:
        """Tell whether one has come that nobody has taken."""
        return not self._second.isdisjoint(signal.sigpending())


def _limits(settings: Settings) -> Limits:
    return Limits(
        threads=settings.threads,
        deciding_threads=DECIDING_THREADS,
        aside=settings.threads * WAITING_FOR_EACH_THREAD + MOST_WAITERS,
        queue=settings.queue,
        connections=settings.connections,
        default_deadline_seconds=settings.default_deadline_seconds,
    )


def load_listeners(settings: Settings) -> list[Listener]:
    """Return where to listen, and with which certificate; in plain text only where that was asked for by name.

    Raises StartRefused, with what to do.
    """
    if settings.tls_certificate is None or settings.tls_private_key is None:
        if settings.development or settings.insecure_plaintext:
            return [Listener(settings.listen, None)]
        raise StartRefused(
            f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_PRIVATE_KEY are needed: keys must not cross a network in plain "
            "text. Where something else protects the connection, say so with --insecure-plaintext; to try things out, "
            "use --development"
        )
    files = CertificateFiles(settings.tls_certificate, settings.tls_private_key)
    demanding = replace(files, client_ca=settings.tls_client_ca)
    try:
        if settings.tls_client_listen is None:
            return [Listener(settings.listen, ReloadingCredentials(demanding))]
        return [
            Listener(settings.listen, ReloadingCredentials(files)),
            Listener(settings.tls_client_listen, ReloadingCredentials(demanding)),
        ]
    except CertificateInvalid as error:
        names = ", ".join(f"{PREFIX}TLS_{name}" for name in ("CERTIFICATE", "PRIVATE_KEY", "CLIENT_CA"))
        raise StartRefused(f"{names}: {error}") from None


def _migrate(engine: Engine) -> tuple[str, ...]:
    engine.create()
    state = schema.inspect(engine)
    refuse_newer(state)
    return schema.migrate(engine) if state.pending else ()


def _refuse_other_schema(engine: Engine) -> None:
    state = schema.inspect(engine)
    refuse_newer(state)
    if state.pending:
        raise StartRefused(f"the database lacks {', '.join(state.pending)}: run 'texture-auth migrate' first")


def refuse_newer(state: schema.SchemaState) -> None:
    """Refuse a store that a newer release has been at. Raises StartRefused."""
    if state.unknown:
        names = ", ".join(state.unknown)
        raise StartRefused(f"the database was migrated by a newer release ({names}): run that release")


def _write_secret(path: Path, text: str) -> None:
    """Write a file that its owner alone may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
