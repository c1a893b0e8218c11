"""The store on Peewee, for any engine."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import reduce
from operator import and_
from typing import Any, Protocol, TypeVar
from uuid import UUID

import peewee
from peewee import fn

from server.domain.chain import INSTALLATION, Sealer
from server.domain.end_users import EndUser, end_users_of
from server.domain.events import Event
from server.domain.kinds import KeyKind
from server.domain.model import Caller, ConnectLink, Device, Generation, Key, KeyState, Workspace
from server.domain.revision import Revision
from server.store import rows, statements, tables, webhook_rows
from server.store.chain_rows import ChainReading, ChainWriting
from server.store.contract import (
    CALLER,
    CERTIFICATE_NAME,
    DEVICE,
    KEY,
    Belongings,
    CarriedOut,
    Changes,
    Cursor,
    DeviceFilter,
    Duplicate,
    EventFilter,
    ExpiryMark,
    Exposed,
    KeyFilter,
    Member,
    News,
    Notes,
    Page,
    PepperUsage,
    Reader,
    StoreUnavailable,
    Writer,
    seconds_left,
)
from server.store.statements import portions, storable
from server.store.usage_rows import UsageNoting, UsageReading
from server.store.webhook_rows import WebhookNoting, WebhookReading, WebhookWriting

T = TypeVar("T")

# A page ends early once its rows, written out, have so many characters: clients accept 4 MiB by default.
_PAGE_CHARACTERS = 1_000_000
# What a process may be.
_LIVE, _FENCING = "live", "fencing"
# How many of those who need a pepper are named.
_NAMED = 10


class Engine(Protocol):
    """The connections and transactions of one kind of database."""

    def reading(self) -> AbstractContextManager[peewee.Database]:
        """Open a snapshot."""

    def writing(self) -> AbstractContextManager[peewee.Database]:
        """Take the write lock and open a transaction, which is rolled back unless the block commits it."""

    def noting(self, *, durable: bool) -> AbstractContextManager[peewee.Database]:
        """Open a transaction for what is no fact. It waits for no writer where that can be.

        It ends as `writing` does. One that is not durable may be lost with the database's machine.
        """

    def commit(self) -> None:
        """Commit what this thread has opened. Raises OutcomeUnknown where nobody can tell the outcome."""

    def announce(self, news: News) -> None:
        """Have `commit` wake those who await news, where this kind of store can."""

    def version(self) -> object | None:
        """Return a value that every commit changes, None where this kind of store has none."""

    def await_news(self, seconds: float) -> News:
        """Wait for an announcement, for so long at most."""

    def now(self) -> datetime:
        """Return the time by the database's clock, in the transaction of this thread."""

    def now_as_text(self) -> str:
        """Return the same as SQL, in microseconds since 1970 UTC."""

    def create(self) -> None:
        """Make an empty store where there is none, if this kind of store is made so."""

    def migrating(self) -> AbstractContextManager[peewee.Database]:
        """Keep other writers out, and commit when the block ends."""

    def close(self) -> None:
        """Let go of connections."""


class PeeweeStore:
    """The contract of `server.store.contract`, kept with Peewee.

    Without a sealer it records events outside of any chain, as releases before the chain did.
    """

    def __init__(self, engine: Engine, sealer: Sealer | None = None) -> None:
        self._engine = engine
        self._sealer = sealer

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Open a snapshot."""
        with self._engine.reading() as database:
            yield PeeweeReader(database, self._engine.now)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """Take the write lock and open a transaction."""
        with self._engine.writing() as database:
            writer = PeeweeWriter(database, self._engine.now, self._sealer)
            yield writer
            if writer.finish():
                if not seconds_left():
                    raise StoreUnavailable("the deadline passed before the commit")
                self._engine.announce(News.COMMITTED)
                self._engine.commit()

    @contextmanager
    def note(self, *, durable: bool = True) -> Iterator[Notes]:
        """Open a transaction for what no decision depends on."""
        with self._engine.noting(durable=durable) as database:
            yield PeeweeNotes(database, self._engine.now)
            self._engine.commit()

    def version(self) -> object | None:
        """Return a value that every commit changes."""
        return self._engine.version()

    def enrol(self, process_id: str, lease: timedelta) -> None:
        """Make a process a member."""
        with self._membership() as database:
            head = tables.Revision.select(tables.Revision.number).dicts().execute(database)[0]["number"]
            tables.Process.insert(
                process_id=process_id,
                state=_LIVE,
                lease=lease,
                acknowledged=head,
                seen_time=self._engine.now(),
            ).execute(database)

    def acknowledge(self, process_id: str, revision: Revision) -> bool:
        """Note what a process has applied."""
        # By hand, since every process says this after every commit; in one statement, so that it holds for the history
        # that it is noted in. One that is lost is made again, or waited for in vain: no harm but time.
        with self._membership(durable=False) as database:
            place = database.param
            noted = database.execute_sql(
                f'UPDATE "process" SET "acknowledged" = {place}, "seen_time" = {self._engine.now_as_text()} '  # noqa: S608 - no values
                f'WHERE "process_id" = {place} AND "state" = {place} '
                f'AND EXISTS (SELECT 1 FROM "change" WHERE "revision" = {place} AND "nonce" = {place})',
                (revision.number, process_id, _LIVE, revision.number, revision.nonce),
            ).rowcount
        return bool(noted)

    def leave(self, process_ids: Collection[str]) -> None:
        """End memberships."""
        with self._membership() as database:
            tables.Process.delete().where(tables.Process.process_id.in_(list(process_ids))).execute(database)

    def fence_silent(self, longest: timedelta) -> None:
        """Make silent members fencing."""
        table = tables.Process
        with self._membership() as database:
            silent = (table.state == _LIVE) & (table.seen_time < self._engine.now() - longest)
            table.update(state=_FENCING).where(silent).execute(database)

    def await_news(self, seconds: float) -> News:
        """Wait for a commit or an acknowledgement."""
        return self._engine.await_news(seconds)

    def ping(self) -> None:
        """Make sure that the store can be asked."""
        with self.read() as reader:
            reader.head()

    def close(self) -> None:
        """Let go of connections."""
        self._engine.close()

    @contextmanager
    def _membership(self, *, durable: bool = True) -> Iterator[peewee.Database]:
        """Open a transaction on the members, which are no facts: no revision comes of it."""
        with self._engine.noting(durable=durable) as database:
            yield database
            self._engine.announce(News.ACKNOWLEDGED)
            self._engine.commit()


class PeeweeReader(WebhookReading, UsageReading, ChainReading):
    """The queries, in a transaction that is open."""

    def __init__(self, database: peewee.Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def head(self) -> Revision:
        """Return the revision of the snapshot."""
        row = next(iter(statements.select(self._database, tables.Revision, "row", [1])), None)
        if row is None:
            raise peewee.OperationalError("the revision row is missing")
        return _to_revision(row)

    def holds(self, revision: Revision) -> bool:
        """Tell whether the snapshot's history contains this revision."""
        head = self.head()
        if revision.epoch != head.epoch or revision.number > head.number:
            return False
        changes = statements.select(self._database, tables.Change, "revision", [revision.number])
        return any(change["nonce"] == revision.nonce for change in changes)

    def changes_since(self, revision: Revision, limit: int) -> Changes | None:
        """Return what has changed since a revision."""
        place = self._database.param
        # By hand, since every process asks this several times a second, and every miss does; in one statement, since
        # each is a way there and back.
        found = self._database.execute_sql(
            'SELECT r."epoch", r."number", r."nonce", (SELECT "nonce" FROM "change" WHERE "revision" = '  # noqa: S608 - no values
            f'{place} LIMIT 1), c."revision", c."nonce", c."entity_kind", c."entity_id" '
            f'FROM "revision" r LEFT JOIN "change" c ON c."revision" > {place} LIMIT {limit + 1}',
            (revision.number, revision.number),
        ).fetchall()
        epoch, number, nonce, known = found[0][:4]
        if epoch != str(revision.epoch) or known != revision.nonce or number < revision.number:
            return None
        if number == revision.number:
            return Changes(revision, frozenset(), frozenset({revision}))
        passed = {(row[4], row[5]) for row in found}
        if len(found) > limit or len(passed) != number - revision.number:
            return None
        touched = frozenset((row[6], row[7]) for row in found)
        history = UUID(epoch)
        return Changes(
            Revision(history, number, nonce),
            touched,
            frozenset({revision, *(Revision(history, *one) for one in passed)}),
        )

    def members(self) -> Sequence[Member]:
        """Return the processes that are enrolled."""
        return [
            Member(
                process_id=row["process_id"],
                fencing=row["state"] == _FENCING,
                lease=row["lease"],
                acknowledged=row["acknowledged"],
            )
            for row in statements.select(self._database, tables.Process, "state", [_LIVE, _FENCING], order="process_id")
        ]

    def time(self) -> datetime:
        """Return the time by the database's clock."""
        return self._now()

    def workspace(self, workspace_id: str) -> Workspace | None:
        """Return a workspace."""
        row = self._by_id(tables.Workspace, tables.Workspace.workspace_id, workspace_id)
        return None if row is None else rows.to_workspace(row)

    def keys(self, key_ids: Collection[str]) -> Mapping[str, Key]:
        """Return those of the keys that exist."""
        found = statements.select(self._database, tables.Key, "key_id", storable(key_ids))
        return {key.key_id: key for key in self._to_keys(found)}

    def devices(self, device_ids: Collection[str]) -> Mapping[str, Device]:
        """Return those of the devices that exist."""
        found = statements.select(self._database, tables.Device, "device_id", storable(device_ids))
        return {row["device_id"]: rows.to_device(row) for row in found}

    def connect_link(self, connect_link_id: str) -> ConnectLink | None:
        """Return a Connect link."""
        row = self._by_id(tables.ConnectLink, tables.ConnectLink.connect_link_id, connect_link_id)
        return None if row is None else rows.to_connect_link(row)

    def caller(self, caller_id: str) -> Caller | None:
        """Return a caller."""
        return self._caller(tables.Caller.caller_id, caller_id)

    def caller_of_key(self, key_id: str) -> Caller | None:
        """Return the caller with this key."""
        return self._caller(tables.Caller.key_id, key_id)

    def callers_of_certificate(self, names: Collection[str]) -> Sequence[Caller]:
        """Return the callers that go by these names."""
        table, named = tables.Caller, tables.CallerCertificateName
        holders = named.select(named.caller_id).where(named.name.in_(storable(names)))
        return self._to_callers(
            self._rows(table.select().where(table.caller_id.in_(holders)).order_by(table.caller_id))
        )

    def carried_out(self, caller_id: str, method: str, request_id: str) -> CarriedOut | None:
        """Return the request that was carried out under this id."""
        row = self._first(
            tables.Request.select().where(
                (tables.Request.caller_id == caller_id)
                & (tables.Request.method == method)
                & (tables.Request.request_id == request_id)
            )
        )
        return None if row is None else CarriedOut(**row)

    def exposures(self, key_ids: Collection[str], places: Collection[str]) -> Mapping[Exposed, datetime]:
        """Return when secrets were noted to be in places."""
        table = tables.Exposure
        found = table.select().where(table.key_id.in_(storable(key_ids)) & table.place.in_(storable(places)))
        return {Exposed(row["key_id"], row["generation"], row["place"]): row["time"] for row in self._rows(found)}

    def list_workspaces(self, after: Cursor | None, limit: int) -> Page[Workspace]:
        """List workspaces."""
        table = tables.Workspace
        return self._page(
            table.select(), (table.create_revision, table.workspace_id), after, limit, _each(rows.to_workspace)
        )

    def list_keys(self, which: KeyFilter, after: Cursor | None, limit: int) -> Page[Key]:
        """List keys."""
        table = tables.Key
        origin = self._of_origin(which)
        # By their origin keys are few and found by an index of its own, which a database without statistics passes over
        # for that of the workspace, in whose order they are wanted.
        wanted = [(table.workspace_id.concat("") if origin else table.workspace_id) == which.workspace_id, *origin]
        if which.kind is not None:
            wanted.append(table.kind == which.kind.value)
        if which.state is not None:
            wanted.append(_in_state(which.state, which.now))
        if which.reference_id is not None:
            wanted.append(table.reference_id == which.reference_id)
        if which.revoked is not None:
            wanted.append((table.state == KeyState.REVOKED.value) == which.revoked)
        if which.created_from is not None:
            wanted.append(table.create_time >= which.created_from)
        if which.created_before is not None:
            wanted.append(table.create_time < which.created_before)
        for name, value in sorted(which.labels.items()):
            label = tables.KeyLabel
            labelled = label.select(label.key_id).where((label.name == name) & (label.value == value))
            wanted.append(table.key_id.in_(labelled))
        query = table.select().where(reduce(and_, wanted))
        return self._page(query, (table.create_revision, table.key_id), after, limit, self._to_keys)

    def list_devices(self, which: DeviceFilter, after: Cursor | None, limit: int) -> Page[Device]:
        """List devices."""
        table = tables.Device
        wanted = [table.workspace_id == which.workspace_id]
        if which.reference_id is not None:
            wanted.append(table.reference_id == which.reference_id)
        if which.manufacturers:
            wanted.append(table.manufacturer.in_(sorted(which.manufacturers)))
        query = table.select().where(reduce(and_, wanted))
        return self._page(query, (table.create_revision, table.device_id), after, limit, _each(rows.to_device))

    def list_callers(self, after: Cursor | None, limit: int) -> Page[Caller]:
        """List callers."""
        table = tables.Caller
        return self._page(table.select(), (table.create_revision, table.caller_id), after, limit, self._to_callers)

    def list_key_events(self, key_id: str, after: Cursor | None, limit: int) -> Page[Event]:
        """List the events of a key."""
        table = tables.Event
        query = table.select().where((table.subject_kind == "key") & (table.subject_id == key_id))
        return self._page(query, (table.event_id, table.subject_id), after, limit, _each(rows.to_event))

    def events_after(self, event_id: int, which: EventFilter, limit: int) -> Sequence[Event]:
        """Return the events after one."""
        table = tables.Event
        wanted = [table.event_id > event_id]
        if which.workspace_id is not None:
            wanted.append(table.workspace_id.in_(storable([which.workspace_id])))
        if which.types:
            wanted.append(table.type.in_(sorted(one.value for one in which.types)))
        if which.up_to is not None:
            wanted.append(table.event_id <= which.up_to)
        found = self._rows(table.select().where(reduce(and_, wanted)).order_by(table.event_id).limit(limit))
        return [rows.to_event(row) for row in found[: _fitting(found)]]

    def list_end_user_events(self, end_user: EndUser, after: Cursor | None, limit: int) -> Page[Event]:
        """List the events that hold an end user."""
        table, index = tables.Event, tables.EventEndUser
        query = table.select().where(table.event_id.in_(index.select(index.event_id).where(_of(index, end_user))))
        return self._page(query, (table.event_id, table.subject_id), after, limit, _each(rows.to_event))

    def end_user_event_ids(self, end_user: EndUser) -> Sequence[int]:
        """Return the ids of the events that hold an end user."""
        index = tables.EventEndUser
        return [row["event_id"] for row in self._rows(index.select(index.event_id).where(_of(index, end_user)))]

    def expiry_mark(self, days: int) -> ExpiryMark | None:
        """Return how far warnings have come."""
        row = self._first(tables.ExpiryMark.select().where(tables.ExpiryMark.days == days))
        return None if row is None else ExpiryMark(**row)

    def expiring_keys(self, after: ExpiryMark, until: datetime, limit: int) -> Sequence[Key]:
        """Return the keys that expire after a mark."""
        table = tables.Key
        later = table.expire_time > after.expire_time
        if after.key_id:
            # The first part is what an index finds the place by.
            later = (table.expire_time >= after.expire_time) & (later | (table.key_id > after.key_id))
        query = table.select().where(later & (table.expire_time <= until))
        return self._to_keys(self._rows(query.order_by(table.expire_time, table.key_id).limit(limit)))

    def newest_event_time(self) -> datetime | None:
        """Return the time of the newest event."""
        row = self._first(tables.Event.select(tables.Event.event_time).order_by(tables.Event.event_id.desc()))
        return None if row is None else row["event_time"]

    def pepper_usage(self, now: datetime) -> Mapping[str, PepperUsage]:
        """Return what is in force under each pepper."""
        key, caller, link = tables.Key, tables.Caller, tables.ConnectLink
        keys = _secrets_in_force(tables.KeyGeneration, key, key.state != KeyState.REVOKED.value, now)
        callers = _secrets_in_force(tables.CallerGeneration, caller, caller.revoke_time.is_null(), now)
        links = link.select(link.pepper_id).where(
            link.complete_time.is_null() & link.cancel_time.is_null() & (link.expire_time > now)
        )
        webhooks = webhook_rows.secrets_in_force(now)
        counted = (self._count_by_pepper(query) for query in (keys, callers, links, webhooks))
        of_keys, of_callers, of_links, of_webhooks = counted
        return {
            pepper_id: PepperUsage(
                keys=of_keys.get(pepper_id, 0),
                callers=of_callers.get(pepper_id, 0),
                links=of_links.get(pepper_id, 0),
                webhooks=of_webhooks.get(pepper_id, 0),
                some_key_ids=self._some_under(pepper_id, tables.KeyGeneration, keys, key.key_id),
                some_caller_ids=self._some_under(pepper_id, tables.CallerGeneration, callers, caller.caller_id),
            )
            for pepper_id in sorted({*of_keys, *of_callers, *of_links, *of_webhooks})
        }

    def _of_origin(self, which: KeyFilter) -> list[Any]:
        """Return the conditions of where keys come from."""
        table, wanted = tables.Key, []
        if which.created_by_key_id is not None:
            wanted.append(table.created_by_key_id.in_(storable([which.created_by_key_id])))
        if which.connect_link_id is not None:
            wanted.append(table.connect_link_id.in_(storable([which.connect_link_id])))
        if which.descends_from_key_id is not None:
            wanted.append(self._descends_from(which.descends_from_key_id))
        return wanted

    def _descends_from(self, key_id: str) -> Any:
        """Return the condition of being a key, or of descending from it.

        Scoped keys, which may be a million, have no descendants, so that none is looked for.
        """
        table, theirs = tables.Key, tables.Key.alias()
        itself = table.select(table.key_id, table.kind).where(table.key_id.in_(storable([key_id])))
        lineage = itself.cte("lineage", recursive=True, columns=("key_id", "kind"))
        makers = (theirs.created_by_key_id == lineage.c.key_id) & (lineage.c.kind != KeyKind.SCOPED.value)
        lineage = lineage.union(theirs.select(theirs.key_id, theirs.kind).join(lineage, on=makers))
        return table.key_id.in_(lineage.select_from(lineage.c.key_id))

    def _count_by_pepper(self, query: Any) -> dict[str, int]:
        (pepper_id,) = query.selected_columns
        counted = query.select(pepper_id, peewee.fn.COUNT(1).alias("count")).group_by(pepper_id)
        return {row["pepper_id"]: row["count"] for row in self._rows(counted)}

    def _some_under(self, pepper_id: str, generations: Any, query: Any, name: peewee.Field) -> tuple[str, ...]:
        named = query.select(name).distinct().where(generations.pepper_id == pepper_id).order_by(name).limit(_NAMED)
        return tuple(row[name.name] for row in self._rows(named))

    def _rows(self, query: Any) -> list[dict[str, Any]]:
        return list(query.dicts().execute(self._database))

    def _first(self, query: Any) -> dict[str, Any] | None:
        return next(iter(self._rows(query.limit(1))), None)

    def _page(
        self,
        query: Any,
        order: tuple[peewee.Field, peewee.Field],
        after: Cursor | None,
        limit: int,
        convert: Callable[[list[dict[str, Any]]], list[T]],
    ) -> Page[T]:
        """Read a stretch of a list by its keys, never by counting, so that insertions shift nothing."""
        position, row_id = order
        if after is not None:
            # The first part is what an index finds the place by.
            query = query.where((position >= after.position) & ((position > after.position) | (row_id > after.row_id)))
        found = self._rows(query.order_by(position, row_id).limit(limit + 1))
        fitting = _fitting(found[:limit])
        following = None
        if len(found) > fitting:
            last = found[fitting - 1]
            following = Cursor(last[position.name], last[row_id.name])
        return Page(tuple(convert(found[:fitting])), following)

    def _to_keys(self, found: list[dict[str, Any]]) -> list[Key]:
        key_ids = [row["key_id"] for row in found]
        generations = self._generations(tables.KeyGeneration, key_ids)
        labels: dict[str, dict[str, str]] = defaultdict(dict)
        for row in statements.select(self._database, tables.KeyLabel, "key_id", key_ids):
            labels[row["key_id"]][row["name"]] = row["value"]
        return [rows.to_key(row, generations[row["key_id"]], labels[row["key_id"]]) for row in found]

    def _to_callers(self, found: list[dict[str, Any]]) -> list[Caller]:
        generations = self._generations(tables.CallerGeneration, [row["key_id"] for row in found])
        names = self._certificate_names([row["caller_id"] for row in found])
        return [rows.to_caller(row, generations[row["key_id"]], names[row["caller_id"]]) for row in found]

    def _certificate_names(self, caller_ids: list[str]) -> Mapping[str, list[str]]:
        table = tables.CallerCertificateName
        by_caller: dict[str, list[str]] = defaultdict(list)
        for row in statements.select(self._database, table, "caller_id", caller_ids):
            by_caller[row["caller_id"]].append(row["name"])
        return by_caller

    def _generations(self, table: Any, key_ids: list[str]) -> Mapping[str, list[dict[str, Any]]]:
        """Return the generations of each key, oldest first."""
        by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in statements.select(self._database, table, "key_id", key_ids, order="number"):
            by_key[row["key_id"]].append(row)
        return by_key

    def _caller(self, column: peewee.Field, value: str) -> Caller | None:
        row = self._by_id(tables.Caller, column, value)
        return None if row is None else self._to_callers([row])[0]

    def _by_id(self, table: Any, column: peewee.Field, value: str) -> dict[str, Any] | None:
        return next(iter(statements.select(self._database, table, column.name, storable([value]))), None)


class PeeweeNotes(UsageNoting, PeeweeReader, WebhookNoting):
    """The changes to what is no fact."""


class PeeweeWriter(PeeweeReader, WebhookWriting, ChainWriting):
    """The changes. Every one of them notes what it touched, and `finish` writes that down (CONSISTENCY rule 1)."""

    def __init__(self, database: peewee.Database, now: Callable[[], datetime], sealer: Sealer | None = None) -> None:
        PeeweeReader.__init__(self, database, now)
        ChainWriting.__init__(self, sealer)
        self._before = self.head()
        self._after = Revision(self._before.epoch, self._before.number + 1, secrets.randbits(63))
        self._touched: dict[tuple[str, str], None] = {}
        # What was read of keys in this transaction, and so is still true: what does not change need not be written.
        self._seen: dict[str, Key] = {}
        self._recorded = False
        self._traceless = False
        self._ended_unchanged = False

    @property
    def revision(self) -> Revision:
        """The revision that this transaction commits as."""
        return self._before if self._ended_unchanged else self._after

    def finish(self) -> bool:
        """Move the head on and write the change log, unless no fact was changed. Tell whether to commit."""
        if self._recorded and not self._touched:
            self._touch("event", str(self._after.number))
        if not self._touched:
            self._ended_unchanged = True
            return self._traceless
        after = self._after
        head = {"row": 1, "number": after.number, "nonce": after.nonce}
        statements.update(self._database, tables.Revision, "row", head)
        self._insert(
            tables.Change,
            [
                {"revision": after.number, "nonce": after.nonce, "entity_kind": kind, "entity_id": entity_id}
                for kind, entity_id in self._touched
            ],
        )
        return True

    def _to_keys(self, found: list[dict[str, Any]]) -> list[Key]:
        keys = super()._to_keys(found)
        self._seen |= {key.key_id: key for key in keys}
        return keys

    def add_workspace(self, workspace: Workspace) -> None:
        """Insert a workspace."""
        if self.workspace(workspace.workspace_id) is not None:
            raise Duplicate
        self._touch("workspace", workspace.workspace_id)
        self._add(tables.Workspace, rows.workspace_row(workspace))

    def replace_workspace(self, workspace: Workspace) -> None:
        """Store the new state of a workspace."""
        self._touch("workspace", workspace.workspace_id)
        self._replace(tables.Workspace, tables.Workspace.workspace_id, rows.workspace_row(workspace))

    def add_key(self, key: Key) -> None:
        """Insert a key."""
        if self.keys([key.key_id]):
            raise Duplicate
        self._touch(KEY, key.key_id)
        self._add(tables.Key, rows.key_row(key))
        self._put_generations(tables.KeyGeneration, {key.key_id: key.generations})
        self._put_labels([key])

    def replace_key(self, key: Key) -> None:
        """Store the new state of a key."""
        self.replace_keys([key])

    def replace_keys(self, keys: Sequence[Key]) -> None:
        """Store the new states of keys."""
        table, key_ids = tables.Key, [key.key_id for key in keys]
        self.keys([key_id for key_id in key_ids if key_id not in self._seen])
        if any(key_id not in self._seen for key_id in key_ids):
            raise _not_read(table)
        before = {key_id: self._seen.pop(key_id) for key_id in key_ids}
        for some in portions([self._created(rows.key_row(key)) for key in keys]):
            changing = tuple(name for name in some[0] if name not in ("key_id", "create_revision"))
            statements.insert(self._database, table, some, conflict=("key_id",), preserve=changing)
        for key_id in key_ids:
            self._touch(KEY, key_id)
        others = {key.key_id: key.generations for key in keys if key.generations != before[key.key_id].generations}
        if others:
            self._put_generations(tables.KeyGeneration, others)
        relabelled = [key for key in keys if key.labels != before[key.key_id].labels]
        statements.delete(self._database, tables.KeyLabel, "key_id", [key.key_id for key in relabelled])
        self._put_labels(relabelled)

    def put_devices(self, devices: Sequence[Device]) -> None:
        """Insert devices, or store their new state."""
        table = tables.Device
        for some in portions([self._created(rows.device_row(device)) for device in devices]):
            statements.insert(
                self._database,
                table,
                some,
                conflict=("device_id",),
                preserve=("workspace_id", "reference_id", "manufacturer", "update_time"),
            )
        for device in devices:
            self._touch(DEVICE, device.device_id)

    def remove_devices(self, device_ids: Collection[str]) -> None:
        """Delete devices."""
        statements.delete(self._database, tables.Device, "device_id", list(device_ids))
        for device_id in device_ids:
            self._touch(DEVICE, device_id)

    def add_connect_link(self, link: ConnectLink) -> None:
        """Insert a Connect link."""
        if self.connect_link(link.connect_link_id) is not None:
            raise Duplicate
        self._touch("connect_link", link.connect_link_id)
        self._insert(tables.ConnectLink, [rows.connect_link_row(link)])

    def replace_connect_link(self, link: ConnectLink) -> None:
        """Store the new state of a Connect link."""
        self._touch("connect_link", link.connect_link_id)
        self._replace(tables.ConnectLink, tables.ConnectLink.connect_link_id, rows.connect_link_row(link))

    def remove_end_user(self, end_user: EndUser) -> Belongings:
        """Delete what an end user has."""
        self._seen.clear()
        # In this order: a link refers to the key that it was completed with.
        links = self._remove_of("connect_link", tables.ConnectLink, tables.ConnectLink.connect_link_id, end_user)
        theirs = tables.Key.select(tables.Key.key_id).where(_of(tables.Key, end_user))
        for part in (tables.KeyGeneration, tables.KeyLabel, tables.Exposure):
            part.delete().where(part.key_id.in_(theirs)).execute(self._database)
        keys = self._remove_of(KEY, tables.Key, tables.Key.key_id, end_user)
        table = tables.Device
        device_ids = [row["device_id"] for row in self._rows(table.select(table.device_id).where(_of(table, end_user)))]
        devices = self._remove_of(DEVICE, table, table.device_id, end_user)
        # Once the devices are gone, nobody notes another touch of them.
        self._forget_touches(device_ids)
        return Belongings(devices=devices, keys=keys, connect_links=links)

    def add_caller(self, caller: Caller) -> None:
        """Insert a caller."""
        if self.caller(caller.caller_id) is not None or self.caller_of_key(caller.key_id) is not None:
            raise Duplicate
        self._refuse_taken_names(caller)
        self._touch(CALLER, caller.key_id)
        self._add(tables.Caller, rows.caller_row(caller))
        self._put_generations(tables.CallerGeneration, {caller.key_id: caller.generations})
        self._put_certificate_names(caller)

    def replace_caller(self, caller: Caller) -> None:
        """Store the new state of a caller."""
        self._refuse_taken_names(caller)
        self._touch(CALLER, caller.key_id)
        self._replace(tables.Caller, tables.Caller.caller_id, rows.caller_row(caller))
        self._put_generations(tables.CallerGeneration, {caller.key_id: caller.generations})
        self._put_certificate_names(caller)

    def note_exposures(self, found: Collection[Exposed], time: datetime) -> None:
        """Note where secrets were found."""
        table = tables.Exposure
        new = [
            {"key_id": one.key_id, "generation": one.generation, "place": one.place, "time": time}
            for one in dict.fromkeys(found)
        ]
        for some in portions(new):
            table.insert_many(some).on_conflict(
                conflict_target=(table.key_id, table.generation, table.place), preserve=(table.time,)
            ).execute(self._database)
        for one in found:
            self._touch("exposure", one.key_id)

    def record(self, events: Iterable[Event]) -> None:
        """Append to the event log."""
        recorded = list(events)
        if not recorded:
            return
        # By hand, not by the database: an event's link holds its id.
        ids = self._event_ids({event.workspace_id or INSTALLATION for event in recorded}, len(recorded))
        new = [
            {"event_id": event_id, "revision": self._after.number, **rows.event_row(event)}
            for event_id, event in zip(ids, recorded, strict=True)
        ]
        self._insert(tables.Event, new)
        self._seal(new)
        self._index(zip(ids, recorded, strict=True))
        self._recorded = True

    def replace_events(self, events: Iterable[Event]) -> None:
        """Store what events hold now."""
        index = tables.EventEndUser
        for some in portions(list(events)):
            stored = self._stored_events([event.event_id for event in some if event.event_id is not None])
            for event in some:
                self._replace_sides(rows.event_sides_row(event))
            self._redact(stored, {event_id: one.content for event_id, one in self._stored_events(list(stored)).items()})
            index.delete().where(index.event_id.in_([event.event_id for event in some])).execute(self._database)
            self._index((event.event_id, event) for event in some)
            self._recorded = True

    def prune_events(self, before: datetime, limit: int) -> int:
        """Delete old events."""
        table, index = tables.Event, tables.EventEndUser
        # SQLite gives the id of the last row again, once that row is gone.
        newest = table.alias()
        old = (
            table.select(table.event_id)
            .where((table.event_time < before) & (table.event_id < newest.select(fn.MAX(newest.event_id))))
            .order_by(table.event_time, table.event_id)
            .limit(limit)
        )
        ids = [row["event_id"] for row in self._rows(old)]
        for some in portions(ids):
            self._redact(self._stored_events(some), dict.fromkeys(some))
            index.delete().where(index.event_id.in_(some)).execute(self._database)
            table.delete().where(table.event_id.in_(some)).execute(self._database)
        self._cut(ids)
        self._traceless = self._traceless or bool(ids)
        return len(ids)

    def set_expiry_mark(self, mark: ExpiryMark) -> None:
        """Note how far warnings have come."""
        table = tables.ExpiryMark
        row = {"days": mark.days, "expire_time": mark.expire_time, "key_id": mark.key_id}
        table.insert(row).on_conflict(
            conflict_target=(table.days,), preserve=(table.expire_time, table.key_id)
        ).execute(self._database)
        self._traceless = True

    def prune_changes(self, keep: int, limit: int) -> int:
        """Forget what old revisions touched."""
        table = tables.Change
        old = table.select(table.revision).where(table.revision <= self._before.number - keep)
        portion = [row["revision"] for row in self._rows(old.order_by(table.revision).limit(limit))]
        if portion:
            table.delete().where(table.revision <= portion[-1]).execute(self._database)
            self._traceless = True
        return len(set(portion))

    def remember(self, request: CarriedOut, forget_before: datetime) -> None:
        """Remember a request id."""
        tables.Request.delete().where(tables.Request.time < forget_before).execute(self._database)
        self._insert(
            tables.Request,
            [
                {
                    "caller_id": request.caller_id,
                    "method": request.method,
                    "request_id": request.request_id,
                    "fingerprint": request.fingerprint,
                    "entity_id": request.entity_id,
                    "time": request.time,
                }
            ],
        )
        self._touch("request", request.request_id)

    def _remove_of(self, kind: str, table: Any, column: peewee.Field, end_user: EndUser) -> int:
        """Delete the rows of a table that belong to an end user; return how many there were."""
        found = self._rows(table.select(column).where(_of(table, end_user)))
        table.delete().where(_of(table, end_user)).execute(self._database)
        for row in found:
            self._touch(kind, row[column.name])
        return len(found)

    def _replace_sides(self, row: dict[str, Any]) -> None:
        """Store both sides of an event, as `_replace` would, but ten times as fast: a person may have thousands."""
        table, place = tables.Event, self._database.param
        cursor = self._database.execute_sql(
            f'UPDATE "event" SET "before" = {place}, "after" = {place} WHERE "event_id" = {place}',  # noqa: S608 - no values
            (table.before.db_value(row["before"]), table.after.db_value(row["after"]), row["event_id"]),
        )
        if cursor.rowcount != 1:
            raise LookupError("event to be replaced was not read in this transaction")

    def _index(self, events: Iterable[tuple[int | None, Event]]) -> None:
        """Note which end users the events with these ids hold."""
        self._insert(
            tables.EventEndUser,
            [
                {"workspace_id": held.workspace_id, "reference_id": held.reference_id, "event_id": event_id}
                for event_id, event in events
                for held in sorted(end_users_of(event))
            ],
        )

    def _touch(self, kind: str, entity_id: str) -> None:
        self._touched[kind, entity_id] = None

    def _created(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"create_revision": self._after.number}

    def _add(self, table: Any, row: dict[str, Any]) -> None:
        self._insert(table, [self._created(row)])

    def _insert(self, table: Any, new: list[dict[str, Any]]) -> None:
        for some in portions(new):
            statements.insert(self._database, table, some)

    def _replace(self, table: Any, key: peewee.Field, row: dict[str, Any]) -> None:
        changed = statements.update(self._database, table, key.name, row)
        if changed != 1:
            raise _not_read(table)

    def _put_generations(self, table: Any, wanted: Mapping[str, Sequence[Generation]]) -> None:
        """Make the generations of keys those that are wanted."""
        for key_id, stored in self._generations(table, list(wanted)).items():
            gone = {row["number"] for row in stored} - {generation.number for generation in wanted[key_id]}
            if gone:
                table.delete().where((table.key_id == key_id) & table.number.in_(gone)).execute(self._database)
        # In order: the secret that was in force retires before the next one takes its place, as the schema demands.
        new = [rows.generation_row(key_id, one) for key_id, generations in wanted.items() for one in generations]
        for some in portions(new):
            statements.insert(
                self._database,
                table,
                some,
                conflict=("key_id", "number"),
                preserve=("pepper_id", "digest", "retire_time"),
            )

    def _refuse_taken_names(self, caller: Caller) -> None:
        if any(other.caller_id != caller.caller_id for other in self.callers_of_certificate(caller.certificate_names)):
            raise Duplicate

    def _put_certificate_names(self, caller: Caller) -> None:
        """Make a caller's names those that are wanted, and note each that comes or goes."""
        table = tables.CallerCertificateName
        stored = set(self._certificate_names([caller.caller_id])[caller.caller_id])
        for name in sorted(stored ^ caller.certificate_names):
            self._touch(CERTIFICATE_NAME, name)
        table.delete().where(table.name.in_(sorted(stored - caller.certificate_names))).execute(self._database)
        self._insert(
            table,
            [{"name": name, "caller_id": caller.caller_id} for name in sorted(caller.certificate_names - stored)],
        )

    def _put_labels(self, keys: Sequence[Key]) -> None:
        self._insert(
            tables.KeyLabel,
            [
                {"key_id": key.key_id, "name": name, "value": value}
                for key in keys
                for name, value in key.labels.items()
            ],
        )


def _not_read(table: Any) -> LookupError:
    return LookupError(f"{table._meta.table_name} to be replaced was not read in this transaction")  # noqa: SLF001


def _fitting(found: list[dict[str, Any]]) -> int:
    """Return how many rows fit into a page: at least one, and no more than a client will accept at once."""
    size = 0
    for number, row in enumerate(found):
        size += len(str(row))
        if size > _PAGE_CHARACTERS:
            return max(1, number)
    return len(found)


def _secrets_in_force(generations: Any, owner: Any, live: Any, now: datetime) -> Any:
    """Return the query of the secrets that are not retired, of owners that are live."""
    retiring = generations.retire_time.is_null() | (generations.retire_time > now)
    joined = generations.select(generations.pepper_id).join(owner, on=(generations.key_id == owner.key_id))
    return joined.where(retiring & live)


def _to_revision(row: Mapping[str, Any]) -> Revision:
    return Revision(UUID(row["epoch"]), row["number"], row["nonce"])


def _of(table: Any, end_user: EndUser) -> Any:
    """Return the condition of being an end user's."""
    return (table.workspace_id == end_user.workspace_id) & (table.reference_id == end_user.reference_id)


def _in_state(state: KeyState, now: datetime) -> Any:
    table = tables.Key
    active = table.state == KeyState.ACTIVE.value
    if state is KeyState.EXPIRED:
        return active & (table.expire_time <= now)
    if state is KeyState.ACTIVE:
        return active & (table.expire_time.is_null() | (table.expire_time > now))
    return table.state == state.value


def _each(convert: Callable[[Mapping[str, Any]], T]) -> Callable[[list[dict[str, Any]]], list[T]]:
    return lambda found: [convert(row) for row in found]
