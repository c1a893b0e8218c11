"""The chain of the event log in the tables: by hand, since `record` is in the way of every change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

import peewee

from server.domain.chain import INSTALLATION, Anchor, Chain, Content, Link, Place, Redaction, Sealer, Stored
from server.store import tables
from server.store.contract import EventLogState
from server.store.fields import InstantField, JsonField
from server.store.statements import ROWS_A_STATEMENT, portions

T = TypeVar("T")

_EVENT_COLUMNS = tuple(field.column_name for field in tables.Event._meta.sorted_fields)  # noqa: SLF001
_LINK_COLUMNS = tuple(field.column_name for field in tables.EventLink._meta.sorted_fields)  # noqa: SLF001
_CHAIN_COLUMNS = tuple(field.column_name for field in tables.EventChain._meta.sorted_fields)  # noqa: SLF001
# Those that are not kept as they are.
_CONVERT = {
    field.name: field.db_value
    for field in tables.Event._meta.sorted_fields  # noqa: SLF001
    if isinstance(field, InstantField | JsonField)
}


def _names(columns: Iterable[str], table: str = "") -> str:
    prefix = f'{table}."' if table else '"'
    return ", ".join(f'{prefix}{name}"' for name in columns)


def content_of(row: Mapping[str, Any]) -> Content:
    """Return what an event says, of the values of its columns."""
    return {name: _CONVERT[name](value) if name in _CONVERT else value for name, value in row.items()}


def _to_link(row: Sequence[Any]) -> Link:
    chain, number, event_id, pepper_id, salt, content_mac, mac, by, redacted, redaction = row
    return Link(
        chain=_text(chain),
        number=_integer(number),
        event_id=_integer(event_id),
        pepper_id=_text(pepper_id),
        salt=_bytes(salt),
        content_mac=_bytes(content_mac),
        mac=_bytes(mac),
        redaction=None
        if by is None and redacted is None and redaction is None
        else Redaction(pepper_id="" if by is None else _text(by), content_mac=_bytes(redacted), mac=_bytes(redaction)),
    )


def _to_chain(row: Sequence[Any]) -> Chain:
    name, number, mac, pepper_id, pruned_number, pruned_mac, pruned_pepper_id, sealed_from, by, anchor_mac = row
    return Chain(
        name=_text(name),
        head=Place(_integer(number), _bytes(mac), _text(pepper_id)),
        anchor=Anchor(
            place=Place(_integer(pruned_number), _bytes(pruned_mac), _text(pruned_pepper_id)),
            sealed_from=_integer(sealed_from),
            pepper_id=_text(by),
            mac=_bytes(anchor_mac),
        ),
    )


# On SQLite somebody may put anything into any column. What does not belong there becomes what cannot hold.


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _bytes(value: Any) -> bytes:
    with suppress(TypeError):
        return b"" if value is None or isinstance(value, int) else bytes(value)
    return repr(value).encode()


class ChainReading:
    """The queries about the chain, in a transaction that is open."""

    _database: peewee.Database

    def event_log(self) -> EventLogState:
        """Return where the log begins and ends."""
        ((sealed_from, pruned, newest),) = self._all(
            'SELECT "sealed_from", "pruned_event_id", (SELECT MAX("event_id") FROM "event") FROM "event_log"'
        )
        return EventLogState(sealed_from=sealed_from, pruned_event_id=pruned, newest_event_id=newest or 0)

    def chains(self, after: str | None, limit: int) -> Sequence[tuple[str, Chain | None]]:
        """Return the chains after one, in order of their names."""
        found: list[tuple[str, Chain | None]] = []
        name = self._next_chain(after)
        while name is not None and len(found) < limit:
            found.append((name, self.chain(name)))
            name = self._next_chain(name)
        return found

    def chain(self, name: str) -> Chain | None:
        """Return a chain."""
        if "\0" in name:
            return None
        query = f'SELECT {_names(_CHAIN_COLUMNS)} FROM "event_chain" WHERE "chain" = ?'  # noqa: S608 - no values
        return next((_to_chain(row) for row in self._all(query, name)), None)

    def chain_links(self, name: str, after: int, limit: int) -> Sequence[Stored]:
        """Return the links of a chain after one, with what their events say."""
        if "\0" in name:
            return []
        query = (
            f"SELECT {_names(_LINK_COLUMNS, 'l')}, {_names(_EVENT_COLUMNS, 'e')} "  # noqa: S608 - no values
            'FROM "event_link" AS l LEFT JOIN "event" AS e ON e."event_id" = l."event_id" '
            'WHERE l."chain" = ? AND l."number" > ? ORDER BY l."number" LIMIT ?'
        )
        return [_to_stored(row) for row in self._all(query, name, after, limit)]

    def event_links(self, event_ids: Sequence[int]) -> Mapping[int, Link]:
        """Return the links of those of the events that have one."""
        found: dict[int, Link] = {}
        for some in portions(event_ids):
            places = ", ".join("?" * len(some))
            query = f'SELECT {_names(_LINK_COLUMNS)} FROM "event_link" WHERE "event_id" IN ({places})'  # noqa: S608
            found.update((link.event_id, link) for link in map(_to_link, self._all(query, *some)))
        return found

    def loose_event(self, name: str, after: int, up_to: int | None) -> int | None:
        """Return the first event of a chain, between two, that has no link in it."""
        if "\0" in name:
            return None
        of_chain, values = _of_chain(name)
        last = "" if up_to is None else 'AND e."event_id" <= ?'
        query = (
            f'SELECT MIN(e."event_id") FROM "event" AS e WHERE {of_chain} AND e."event_id" > ? {last} '  # noqa: S608
            f"AND NOT {_LINKED}"
        )
        more = () if up_to is None else (up_to,)
        ((found,),) = self._all(query, *values, after, *more, name)
        return None if found is None else int(found)

    def count_unsealed(self, name: str, before: int) -> int:
        """Return how many events of a chain, before an id, have no link in it."""
        if "\0" in name:
            return 0
        of_chain, values = _of_chain(name)
        query = f'SELECT COUNT(*) FROM "event" AS e WHERE {of_chain} AND e."event_id" < ? AND NOT {_LINKED}'  # noqa: S608
        ((count,),) = self._all(query, *values, before, name)
        return int(count)

    def _next_chain(self, after: str | None) -> str | None:
        """Return the name of the first chain after one, of those that have events or did so."""
        if after is None:
            ((known,),) = self._all(
                'SELECT EXISTS (SELECT 1 FROM "event" WHERE "workspace_id" IS NULL) '
                'OR EXISTS (SELECT 1 FROM "event_chain" WHERE "chain" = \'\') '
                'OR EXISTS (SELECT 1 FROM "event_link" WHERE "chain" = \'\')'
            )
            if known:
                return INSTALLATION
            after = INSTALLATION
        names = [
            self._all(query, after)[0][0]
            for query in (
                'SELECT MIN("chain") FROM "event_chain" WHERE "chain" > ?',
                'SELECT MIN("chain") FROM "event_link" WHERE "chain" > ?',
                'SELECT MIN("workspace_id") FROM "event" WHERE "workspace_id" > ?',
            )
        ]
        return min((name for name in names if name is not None), default=None)

    def _all(self, query: str, *values: Any) -> list[Any]:
        """Return the rows of a query in which each value has a `?`."""
        return list(self._execute(query, *values).fetchall())

    def _execute(self, query: str, *values: Any) -> Any:
        return self._database.execute_sql(query.replace("?", self._database.param), values)


_LINKED = 'EXISTS (SELECT 1 FROM "event_link" AS l WHERE l."event_id" = e."event_id" AND l."chain" = ?)'


def _of_chain(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the condition of being of a chain, and its values."""
    return ('e."workspace_id" IS NULL', ()) if name == INSTALLATION else ('e."workspace_id" = ?', (name,))


def _to_stored(row: Sequence[Any]) -> Stored:
    content = dict(zip(_EVENT_COLUMNS, row[len(_LINK_COLUMNS) :], strict=True))
    # A row that is there has an id.
    return Stored(link=_to_link(row[: len(_LINK_COLUMNS)]), content=None if content["event_id"] is None else content)


class ChainWriting(ChainReading):
    """The changes to the chain, in a transaction that holds the write lock."""

    def __init__(self, sealer: Sealer | None) -> None:
        self._sealer = sealer
        self._known_chains: dict[str, Chain] = {}
        self._next_event_id: int | None = None

    def _event_ids(self, chains: Iterable[str], count: int) -> range:
        """Return the ids of the next events, and find out where their chains end."""
        asked = sorted(set(chains) - self._known_chains.keys()) if self._sealer else []
        if self._next_event_id is None or asked:
            self._look_up(asked)
        first = self._next_event_id or 1
        self._next_event_id = first + count
        return range(first, first + count)

    def _look_up(self, names: Sequence[str]) -> None:
        """Read the id of the newest event and these chains."""
        found = self._all(_looking_up(len(names)), *names)
        if self._next_event_id is None:
            self._next_event_id = (found[0][0] or 0) + 1
        self._known_chains.update((row[1], _to_chain(row[1:])) for row in found if row[1] is not None)

    def _seal(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add events, by the values of their columns, to their chains."""
        if self._sealer is None:
            return
        by_chain: dict[str, list[Content]] = defaultdict(list)
        for row in rows:
            by_chain[row["workspace_id"] or INSTALLATION].append(content_of(row))
        links: list[Link] = []
        for name, contents in by_chain.items():
            known = self._known_chains.get(name)
            chain = known or self._new_chain(self._sealer, name)
            place = chain.head
            for content in contents:
                link = self._sealer.link(name, place, int(content["event_id"] or 0), content)
                links.append(link)
                place = link.place
            self._put_chain(Chain(name=name, head=place, anchor=self._renewed(self._sealer, chain)), known)
        self._insert_rows("event_link", _LINK_COLUMNS, [_link_row(link) for link in links])

    def _new_chain(self, sealer: Sealer, name: str) -> Chain:
        return Chain(name=name, head=Place(), anchor=sealer.anchor(name, Place(), self.event_log().sealed_from))

    def _renewed(self, sealer: Sealer, chain: Chain) -> Anchor:
        """Return the beginning of a chain under the signing pepper, so that the pepper before it may go."""
        anchor = chain.anchor
        if anchor.pepper_id == sealer.signing_id or not sealer.anchored(chain):
            return anchor
        return sealer.anchor(chain.name, anchor.place, anchor.sealed_from)

    def _put_chain(self, chain: Chain, before: Chain | None) -> None:
        """Store a chain, which was stored as it was before, if at all."""
        row = _chain_row(chain)
        if before is None:
            self._insert_rows("event_chain", _CHAIN_COLUMNS, [row])
        elif before.anchor is chain.anchor:
            self._execute(_MOVE_HEAD, *row[1:4], row[0])
        else:
            self._execute(_MOVE_BOTH_ENDS, *row[1:], row[0])
        self._known_chains[chain.name] = chain

    def _stored_events(self, event_ids: Sequence[int]) -> Mapping[int, Stored]:
        """Return the links of events, with what these say at this moment."""
        if self._sealer is None or not event_ids:
            return {}
        places = ", ".join("?" * len(event_ids))
        found = self._all(
            f"SELECT {_names(_LINK_COLUMNS, 'l')}, {_names(_EVENT_COLUMNS, 'e')} "  # noqa: S608 - no values
            'FROM "event_link" AS l LEFT JOIN "event" AS e ON e."event_id" = l."event_id" '
            f'WHERE l."event_id" IN ({places})',
            *event_ids,
        )
        return {stored.link.event_id: stored for stored in map(_to_stored, found)}

    def _redact(self, before: Mapping[int, Stored], after: Mapping[int, Content | None]) -> None:
        """Have links hold what events say now, or that nothing is left of them.

        One that did not hold what it said before is left as it is: what was altered must not pass for redacted.
        """
        if self._sealer is None:
            return
        redacted = [
            self._sealer.redact(before[event_id].link, content)
            for event_id, content in after.items()
            if event_id in before and self._sealer.says(before[event_id].link, before[event_id].content) is not False
        ]
        # Many in one statement: there may be hundreds, and other writers wait.
        for some in portions([_link_row(link) for link in redacted]):
            text = f"{_inserting('event_link', _LINK_COLUMNS, len(some))} {_TAKE_OVER}"
            self._execute(text, *(value for row in some for value in row))

    def _cut(self, event_ids: Sequence[int]) -> None:
        """Note that events were pruned, and let go of the links at the beginning of a chain of which none is left."""
        if not event_ids:
            return
        last = max(event_ids)
        self._execute('UPDATE "event_log" SET "pruned_event_id" = ? WHERE "pruned_event_id" < ?', last, last)
        if self._sealer is None:
            return
        for name in {link.chain for link in self.event_links(event_ids).values()}:
            chain = self.chain(name)
            # What somebody altered must not be sealed anew.
            if chain is not None and self._sealer.anchored(chain):
                self._move_anchor(self._sealer, chain)

    def _move_anchor(self, sealer: Sealer, chain: Chain) -> None:
        place = chain.anchor.place
        moving = True
        while moving:
            links = [stored.link for stored in self.chain_links(chain.name, place.number, ROWS_A_STATEMENT)]
            moving = False
            for link in links:
                gone = link.redaction is not None and not link.redaction.content_mac
                moving = gone and link.number == place.number + 1
                if not moving:
                    break
                place = link.place
        if place != chain.anchor.place:
            self._execute('DELETE FROM "event_link" WHERE "chain" = ? AND "number" <= ?', chain.name, place.number)
            anchor = sealer.anchor(chain.name, place, chain.anchor.sealed_from)
            self._put_chain(Chain(name=chain.name, head=chain.head, anchor=anchor), chain)

    def _insert_rows(self, table: str, columns: tuple[str, ...], new: Sequence[Sequence[Any]]) -> None:
        for some in portions(new):
            self._execute(_inserting(table, columns, len(some)), *(value for row in some for value in row))


@lru_cache(maxsize=64)
def _inserting(table: str, columns: tuple[str, ...], count: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f'INSERT INTO "{table}" ({_names(columns)}) VALUES {", ".join([row] * count)}'  # noqa: S608 - no values


@lru_cache(maxsize=64)
def _looking_up(count: int) -> str:
    """Return the query of the id of the newest event and of so many chains, in one go."""
    places = ", ".join("?" * count) or "NULL"
    return (
        f"SELECT m.newest, {_names(_CHAIN_COLUMNS, 'c')} "  # noqa: S608 - no values
        'FROM (SELECT MAX("event_id") AS newest FROM "event") AS m '
        f'LEFT JOIN "event_chain" AS c ON c."chain" IN ({places})'
    )


def _setting(columns: Sequence[str]) -> str:
    sets = ", ".join(f'"{name}" = ?' for name in columns)
    return f'UPDATE "event_chain" SET {sets} WHERE "chain" = ?'  # noqa: S608 - no values


_REDACTED = ("salt", *(name for name in _LINK_COLUMNS if name.startswith("redaction")))
_TAKE_OVER = 'ON CONFLICT ("chain", "number") DO UPDATE SET ' + ", ".join(
    f'"{name}" = excluded."{name}"' for name in _REDACTED
)
_MOVE_HEAD, _MOVE_BOTH_ENDS = _setting(_CHAIN_COLUMNS[1:4]), _setting(_CHAIN_COLUMNS[1:])


def _link_row(link: Link) -> tuple[Any, ...]:
    by = link.redaction
    return (
        *(link.chain, link.number, link.event_id, link.pepper_id, link.salt, link.content_mac, link.mac),
        *((None, None, None) if by is None else (by.pepper_id, by.content_mac, by.mac)),
    )


def _chain_row(chain: Chain) -> tuple[Any, ...]:
    head, anchor = chain.head, chain.anchor
    return (
        *(chain.name, head.number, head.mac, head.pepper_id),
        *(anchor.place.number, anchor.place.mac, anchor.place.pepper_id),
        *(anchor.sealed_from, anchor.pepper_id, anchor.mac),
    )
