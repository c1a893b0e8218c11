"""Whatever somebody does to the rows of the event log, verification names the first link that does not hold."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.domain.chain import INSTALLATION, Break, Problem, Sealer
from server.domain.end_users import EndUser, without
from server.domain.errors import Refusal
from server.domain.events import Event, EventType, Origin, describe
from server.domain.peppers import Pepper, Peppers
from server.service.audit import Audit, AuditService, Head
from server.service.base import Resources
from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import NOW, PEPPER, PEPPERS, WORKSPACE_ID, make_caller, make_device, make_key
from tests.store.files import new_engine
from tests.store.support import OTHER_WORKSPACE_ID, make_event, populate

OTHER_PEPPER = Pepper("pepper-2", bytes(range(1, 33)))
EVENTS = 9
PRUNED = 2
ROWS = sorted(set(range(PRUNED + 1, EVENTS + 1)))
MOMENT = timedelta(microseconds=1)

# Every column of an event, and one of each sort of value that it could be changed to.
EVENT_COLUMNS = (
    *("event_id", "revision", "type", "event_time", "workspace_id", "subject_kind", "subject_id", "caller_id"),
    *("on_behalf_of_key_id", "reason", "request_id", "before", "after"),
)
LINK_COLUMNS = (
    *("chain", "number", "event_id", "pepper_id", "salt", "content_mac", "mac"),
    *("redaction_pepper_id", "redaction_content_mac", "redaction_mac"),
)
CHAIN_COLUMNS = (
    *("chain", "number", "mac", "pepper_id", "pruned_number", "pruned_mac", "pruned_pepper_id", "sealed_from"),
    *("anchor_pepper_id", "anchor_mac"),
)
VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.binary(max_size=5), st.just("{}"),
    st.sampled_from(["key.revoked", WORKSPACE_ID, OTHER_WORKSPACE_ID, PEPPER.pepper_id, "pepper-2", 1, 2, 3, EVENTS]),
)  # fmt: skip


def aged(days: int) -> Event:
    return replace(make_event(), event_time=NOW + days * timedelta(days=1))


@contextmanager
def opened(path: Path, peppers: Peppers = PEPPERS) -> Iterator[PeeweeStore]:
    store = PeeweeStore(SqliteEngine(path), Sealer(peppers))
    try:
        yield store
    finally:
        store.close()


def write_log(store: PeeweeStore) -> None:
    """Write a log of nine events of one workspace, of which two are pruned and one is redacted, and of two others."""
    populate(store)
    device = describe(EventType.DEVICE_REGISTERED, Origin(caller_id="devices"), None, make_device(), NOW)
    caller = describe(EventType.CALLER_CREATED, Origin(caller_id="operator"), None, make_caller(), NOW)
    with store.write() as writer:
        writer.record([aged(-2), aged(-2), aged(0), device])
    with store.write() as writer:
        writer.record([caller, make_event(make_key(workspace_id=OTHER_WORKSPACE_ID))])
        writer.record(make_event(request_id=f"request-{number}") for number in range(EVENTS - 4))
    with store.write() as writer:
        end_user = EndUser(WORKSPACE_ID, "end-user-1")
        found = writer.list_end_user_events(end_user, None, 10).rows
        writer.replace_events(without(event, end_user, "erased:1") for event in found)
        assert writer.prune_events(NOW - MOMENT, 10) == PRUNED


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a log in it."""
    path = tmp_path_factory.mktemp("log") / "auth.db"
    engine = new_engine(path)
    write_log(PeeweeStore(engine, Sealer(PEPPERS)))
    engine.close()
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written, tmp_path / "auth.db"))


def audit(
    path: Path,
    workspace_id: str = WORKSPACE_ID,
    heads: tuple[Head, ...] = (),
    *,
    peppers: Peppers = PEPPERS,
    portion: int = 1_000,
) -> list[Audit]:
    """Verify a chain, and return what each portion turned out to be."""
    with opened(path, peppers) as store:
        nothing: Any = None
        service = AuditService(Resources(store, peppers, lambda: NOW, nothing, nothing), portion)
        portions = [service.verify_chain(workspace_id, heads, "")]
        while portions[-1].next_portion_token:
            portions.append(service.verify_chain(workspace_id, heads, portions[-1].next_portion_token))
    return portions


def broken(path: Path, workspace_id: str = WORKSPACE_ID, *heads: Head) -> Break | None:
    return audit(path, workspace_id, heads)[-1].broken


def head_of(path: Path, workspace_id: str = WORKSPACE_ID) -> Head:
    with opened(path) as store, store.read() as reader:
        chain = reader.chain(workspace_id)
    assert chain is not None
    return Head(chain.head.number, chain.head.mac)


def tamper(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = 0")
        connection.execute("PRAGMA ignore_check_constraints = 1")
        for statement, values in statements:
            connection.execute(statement, values)


def rows_of(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def event_of(path: Path, number: int) -> int:
    ((event_id,),) = rows_of(
        path, f"SELECT event_id FROM event_link WHERE chain = '{WORKSPACE_ID}' AND number = {number}"
    )
    return int(event_id)


def test_a_log_that_nobody_touched_holds(path: Path) -> None:
    for name, count in ((WORKSPACE_ID, EVENTS - PRUNED), (OTHER_WORKSPACE_ID, 1), (INSTALLATION, 1)):
        (found,) = audit(path, name, (head_of(path, name),))
        assert (found.broken, found.verified, dict(found.unverifiable), found.unsealed) == (None, count, {}, 0)


@pytest.mark.parametrize("portion", [1, 2, 3, 7])
def test_it_holds_in_portions_of_any_size(path: Path, portion: int) -> None:
    found = audit(path, portion=portion)
    assert sum(one.verified for one in found) == EVENTS - PRUNED
    assert all(one.broken is None for one in found)
    assert len(found) == (EVENTS - PRUNED) // portion + 1


def test_it_holds_where_it_was_pruned_between_two_portions(path: Path) -> None:
    with opened(path) as store:
        nothing: Any = None
        service = AuditService(Resources(store, PEPPERS, lambda: NOW, nothing, nothing), 1)
        found = service.verify_chain(WORKSPACE_ID, (), "")
        with store.write() as writer:
            assert writer.prune_events(NOW + MOMENT, 6) == 6
        while found.next_portion_token:
            found = service.verify_chain(WORKSPACE_ID, (), found.next_portion_token)
        assert found.broken is None


def changed(path: Path, table: str, column: str, where: str, value: Any) -> bool:
    """Change a column of a row, if the schema allows it, and tell whether it holds something else now."""
    before = rows_of(path, f'SELECT "{column}" FROM {table} WHERE {where}')
    rowid = rows_of(path, f"SELECT rowid FROM {table} WHERE {where}")
    try:
        tamper(path, (f'UPDATE {table} SET "{column}" = ? WHERE {where}', (value,)))
    except sqlite3.IntegrityError:
        return False
    after = rows_of(path, f'SELECT "{column}" FROM {table} WHERE rowid = {rowid[0][0]}')
    return before != after


EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@EXAMPLES
@given(column=st.sampled_from(EVENT_COLUMNS), number=st.sampled_from(ROWS), value=VALUES)
def test_any_column_of_an_event_that_is_changed_is_found(
    written: Path, tmp_path_factory: pytest.TempPathFactory, column: str, number: int, value: Any
) -> None:
    path = Path(shutil.copy(written, tmp_path_factory.mktemp("tampered") / "auth.db"))
    event_id = event_of(path, number)

    if changed(path, "event", column, f"event_id = {event_id}", value):
        found = broken(path)
        assert found is not None
        if found.problem is Problem.EVENT_INSERTED:
            # It was given an id before its own.
            assert column == "event_id"
            assert found.number < number
        else:
            assert (found.problem, found.number) in {(Problem.EVENT_ALTERED, number), (Problem.EVENT_MISSING, number)}
    else:
        assert broken(path) is None


@EXAMPLES
@given(column=st.sampled_from(LINK_COLUMNS), number=st.sampled_from(ROWS), value=VALUES)
def test_any_column_of_a_link_that_is_changed_is_found(
    written: Path, tmp_path_factory: pytest.TempPathFactory, column: str, number: int, value: Any
) -> None:
    path = Path(shutil.copy(written, tmp_path_factory.mktemp("tampered") / "auth.db"))

    if changed(path, "event_link", column, f"chain = '{WORKSPACE_ID}' AND number = {number}", value):
        found = audit(path)[-1]
        if column == "redaction_pepper_id" and found.unverifiable:
            # Nobody can tell without that pepper, which is named.
            return
        assert found.broken is not None
        if found.broken.problem is Problem.EVENT_INSERTED:
            # The event has lost its link, and comes after the one before.
            assert found.broken.number == number - 1
        elif column == "number" and found.broken.problem is Problem.LINK_ALTERED:
            # It stands where another should be.
            assert found.broken.number == PRUNED + 1
        elif column == "pepper_id" and found.unverifiable:
            # Of a pepper that is not here, only what comes next can tell.
            assert found.broken.number in {number, number + 1}
        else:
            assert found.broken.number == number
    else:
        assert broken(path) is None


@EXAMPLES
@given(column=st.sampled_from(CHAIN_COLUMNS), value=VALUES)
def test_any_column_of_a_chain_that_is_changed_is_found(
    written: Path, tmp_path_factory: pytest.TempPathFactory, column: str, value: Any
) -> None:
    path = Path(shutil.copy(written, tmp_path_factory.mktemp("tampered") / "auth.db"))

    if changed(path, "event_chain", column, f"chain = '{WORKSPACE_ID}'", value):
        found = audit(path)[-1]
        assert found.broken is not None or (column == "anchor_pepper_id" and found.unverifiable)
    else:
        assert broken(path) is None


@pytest.mark.parametrize("number", ROWS)
def test_an_event_that_is_deleted_is_found(path: Path, number: int) -> None:
    event_id = event_of(path, number)
    tamper(path, ("DELETE FROM event WHERE event_id = ?", (event_id,)))

    assert broken(path) == Break(Problem.EVENT_MISSING, number, event_id)


@pytest.mark.parametrize("number", ROWS)
def test_an_event_that_is_deleted_with_its_link_is_found(path: Path, number: int) -> None:
    event_id = event_of(path, number)
    tamper(
        path,
        ("DELETE FROM event WHERE event_id = ?", (event_id,)),
        ("DELETE FROM event_link WHERE event_id = ?", (event_id,)),
    )

    assert broken(path) == Break(Problem.LINK_MISSING, number, None)


@pytest.mark.parametrize("one", ROWS[:-1])
def test_two_events_that_are_swapped_are_found(path: Path, one: int) -> None:
    first, second = event_of(path, one), event_of(path, EVENTS)
    tamper(
        path,
        ("UPDATE event SET event_id = -1 WHERE event_id = ?", (first,)),
        ("UPDATE event SET event_id = ? WHERE event_id = ?", (first, second)),
        ("UPDATE event SET event_id = ? WHERE event_id = -1", (second,)),
    )

    assert broken(path) == Break(Problem.EVENT_ALTERED, one, first)


@pytest.mark.parametrize("one", ROWS[:-1])
def test_two_links_that_are_swapped_are_found(path: Path, one: int) -> None:
    tamper(
        path,
        ("UPDATE event_link SET number = 100 WHERE number = ? AND chain = ?", (one, WORKSPACE_ID)),
        ("UPDATE event_link SET number = ? WHERE number = ? AND chain = ?", (one, EVENTS, WORKSPACE_ID)),
        ("UPDATE event_link SET number = ? WHERE number = 100", (EVENTS,)),
    )

    found = broken(path)
    assert found is not None
    assert (found.problem, found.number) == (Problem.LINK_ALTERED, one)


@pytest.mark.parametrize("event_id", [0, -5, 1, 2, 100])
@pytest.mark.parametrize("workspace_id", [WORKSPACE_ID, OTHER_WORKSPACE_ID, None])
def test_an_event_that_is_inserted_is_found(path: Path, event_id: int, workspace_id: str | None) -> None:
    columns = ", ".join(f'"{name}"' for name in EVENT_COLUMNS if name not in ("event_id", "workspace_id"))
    tamper(
        path,
        (
            f"INSERT INTO event (event_id, workspace_id, {columns}) SELECT ?, ?, {columns} FROM event LIMIT 1",
            (event_id, workspace_id),
        ),
    )

    found = broken(path, workspace_id or INSTALLATION)
    assert found is not None
    assert (found.problem, found.event_id) == (Problem.EVENT_INSERTED, event_id)


def test_an_event_of_a_workspace_without_a_chain_is_found(path: Path) -> None:
    columns = ", ".join(f'"{name}"' for name in EVENT_COLUMNS if name not in ("event_id", "workspace_id"))
    statement = f"INSERT INTO event (event_id, workspace_id, {columns}) SELECT 99, ?, {columns} FROM event LIMIT 1"
    tamper(path, (statement, ("nowhere",)))

    with opened(path) as store, store.read() as reader:
        assert "nowhere" in [name for name, _ in reader.chains(None, 10)]
    assert broken(path, "nowhere") == Break(Problem.EVENT_INSERTED, 0, 99)


_MOVED = """UPDATE event_chain SET pruned_number = 4,
    pruned_mac = (SELECT mac FROM event_link WHERE chain = ? AND number = 4) WHERE chain = ?"""
_PUT_BACK = """UPDATE event_chain SET number = ?, mac = (SELECT mac FROM event_link WHERE chain = ? AND number = ?)
    WHERE chain = ?"""
CUTS: dict[str, Callable[[Path, int], tuple[str, tuple[Any, ...]]]] = {
    "events": lambda path, number: ("DELETE FROM event WHERE event_id >= ?", (event_of(path, number),)),
    "links": lambda _, number: ("DELETE FROM event_link WHERE chain = ? AND number >= ?", (WORKSPACE_ID, number)),
    "head": lambda _, number: (_PUT_BACK, (number - 1, WORKSPACE_ID, number - 1, WORKSPACE_ID)),
}


@pytest.mark.parametrize("number", ROWS)
def test_a_tail_that_is_cut_is_found(path: Path, number: int) -> None:
    tamper(path, CUTS["events"](path, number), CUTS["links"](path, number))

    assert broken(path) == Break(Problem.LINK_MISSING, number, None)


@pytest.mark.parametrize("number", ROWS[1:])
def test_a_tail_that_is_cut_with_the_head_put_back_is_found_by_an_earlier_head_alone(path: Path, number: int) -> None:
    head = head_of(path)
    tamper(path, CUTS["events"](path, number), CUTS["head"](path, number), CUTS["links"](path, number))

    assert broken(path) is None
    assert broken(path, WORKSPACE_ID, head) == Break(Problem.TAIL_MISSING, number, None)


def test_a_tail_that_was_cut_and_grew_again_is_found_by_an_earlier_head(path: Path) -> None:
    head, number = head_of(path), EVENTS - 1
    tamper(path, CUTS["events"](path, number), CUTS["head"](path, number), CUTS["links"](path, number))
    with opened(path) as store, store.write() as writer:
        writer.record([make_event()] * 5)

    assert broken(path) is None
    found = broken(path, WORKSPACE_ID, head)
    assert found is not None
    assert (found.problem, found.number) == (Problem.HISTORY_REPLACED, EVENTS)


@pytest.mark.parametrize("number", ROWS[1:])
def test_an_old_head_that_is_put_back_is_found(path: Path, number: int) -> None:
    tamper(path, CUTS["head"](path, number))

    assert broken(path) == Break(Problem.HEAD_ALTERED, EVENTS, None)


@pytest.mark.parametrize("number", ROWS)
def test_a_front_that_is_cut_is_found(path: Path, number: int) -> None:
    tamper(
        path,
        ("DELETE FROM event WHERE event_id <= ?", (event_of(path, number),)),
        ("DELETE FROM event_link WHERE chain = ? AND number <= ?", (WORKSPACE_ID, number)),
    )

    assert broken(path) == Break(Problem.LINK_MISSING, PRUNED + 1, None)


def test_a_front_that_is_cut_with_the_beginning_moved_is_found(path: Path) -> None:
    tamper(
        path,
        (_MOVED, (WORKSPACE_ID, WORKSPACE_ID)),
        ("DELETE FROM event_link WHERE chain = ? AND number <= 4", (WORKSPACE_ID,)),
    )
    assert broken(path) == Break(Problem.BEGINNING_ALTERED, 4, None)
    # Nor does the service put its seal to it when it prunes.
    with opened(path) as store, store.write() as writer:
        writer.prune_events(NOW + MOMENT, 100)
    assert broken(path) == Break(Problem.BEGINNING_ALTERED, 4, None)


def test_a_chain_that_is_gone_altogether_is_found_by_its_events_or_by_an_earlier_head(path: Path) -> None:
    head = head_of(path)
    tamper(
        path,
        ("DELETE FROM event_chain WHERE chain = ?", (WORKSPACE_ID,)),
        ("DELETE FROM event_link WHERE chain = ?", (WORKSPACE_ID,)),
    )
    found = broken(path)
    assert found is not None
    assert found.problem is Problem.EVENT_INSERTED
    tamper(path, ("DELETE FROM event WHERE workspace_id = ?", (WORKSPACE_ID,)))
    assert broken(path) is None
    assert broken(path, WORKSPACE_ID, head) == Break(Problem.TAIL_MISSING, 1, None)


def test_a_record_of_a_chain_that_is_gone_is_found(path: Path) -> None:
    tamper(path, ("DELETE FROM event_chain WHERE chain = ?", (OTHER_WORKSPACE_ID,)))

    assert broken(path, OTHER_WORKSPACE_ID) == Break(Problem.HEAD_ALTERED, 1, None)


def test_a_redaction_that_is_taken_back_or_forged_is_found(path: Path) -> None:
    ((number, event_id),) = rows_of(path, "SELECT number, event_id FROM event_link WHERE redaction_mac IS NOT NULL")
    cleared = ", ".join(f"{name} = NULL" for name in LINK_COLUMNS if name.startswith("redaction"))
    tamper(path, (f"UPDATE event_link SET {cleared} WHERE event_id = ?", (event_id,)))
    assert broken(path) == Break(Problem.EVENT_ALTERED, number, event_id)
    forged = "redaction_mac = mac, redaction_content_mac = x'', salt = x'', redaction_pepper_id = pepper_id"
    tamper(
        path,
        (f"UPDATE event_link SET {forged} WHERE event_id = ?", (event_id,)),
        ("DELETE FROM event WHERE event_id = ?", (event_id,)),
    )
    assert broken(path) == Break(Problem.REDACTION_ALTERED, number, event_id)


def test_earlier_heads_hold_as_long_as_what_they_are_of_is_kept(path: Path) -> None:
    links = rows_of(path, f"SELECT number, mac FROM event_link WHERE chain = '{WORKSPACE_ID}'")
    heads = [Head(number, mac) for number, mac in links]
    ((pruned_mac,),) = rows_of(path, f"SELECT pruned_mac FROM event_chain WHERE chain = '{WORKSPACE_ID}'")
    (found,) = audit(path, WORKSPACE_ID, (Head(1, bytes(32)), Head(PRUNED, pruned_mac), *heads))
    assert (found.broken, found.heads_passed) == (None, 1)
    for head in heads:
        wrong = broken(path, WORKSPACE_ID, Head(head.number, bytes(32)))
        assert wrong is not None
        assert (wrong.problem, wrong.number) == (Problem.HISTORY_REPLACED, head.number)
    assert broken(path, WORKSPACE_ID, Head(PRUNED, bytes(32))) == Break(Problem.HISTORY_REPLACED, PRUNED, None)


def test_what_was_made_under_a_pepper_that_is_gone_cannot_be_verified_and_is_not_broken(path: Path) -> None:
    both, new = Peppers([OTHER_PEPPER, PEPPER]), Peppers([OTHER_PEPPER])
    with opened(path, both) as store, store.write() as writer:
        writer.record([make_event()] * 2)
    (found,) = audit(path, peppers=both)
    assert (found.broken, found.verified, dict(found.unverifiable)) == (None, EVENTS - PRUNED + 2, {})
    (found,) = audit(path, peppers=new)
    assert (found.broken, found.verified, dict(found.unverifiable)) == (
        None,
        2,
        {PEPPER.pepper_id: EVENTS - PRUNED},
    )


def test_nothing_passes_for_a_link_of_a_pepper_that_is_gone_beside_one_that_is_here(path: Path) -> None:
    for number in ROWS:
        tamper(
            path, ("UPDATE event_link SET pepper_id = 'gone' WHERE chain = ? AND number <= ?", (WORKSPACE_ID, number))
        )
        found = broken(path)
        assert found is not None
        assert found.problem is (Problem.HEAD_ALTERED if number == EVENTS else Problem.LINK_ALTERED)


def test_events_of_a_release_without_a_chain_are_counted_and_do_not_break_it(tmp_path: Path) -> None:
    path = tmp_path / "auth.db"
    older = PeeweeStore(new_engine(path))
    populate(older)
    with older.write() as writer:
        writer.record([make_event()] * 3)
    older.close()
    # As the migration would, had it been applied now.
    tamper(path, ("UPDATE event_log SET sealed_from = 4", ()))
    (found,) = audit(path)
    assert (found.broken, found.verified, found.unsealed) == (None, 0, 3)
    with opened(path) as store, store.write() as writer:
        writer.record([make_event()] * 2)
    (found,) = audit(path)
    assert (found.broken, found.verified, found.unsealed) == (None, 2, 3)


def test_a_workspace_that_is_none_has_no_chain(path: Path) -> None:
    with pytest.raises(Refusal, match="no such workspace"):
        audit(path, "nowhere")
