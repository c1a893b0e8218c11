"""The chain: a link holds for one content, at one place, after one other link, and for nobody without the pepper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.chain import Break, Chain, Content, Link, Place, Problem, Sealer, Stored, Verification
from server.domain.peppers import Pepper, Peppers

ONE, OTHER = Pepper("one", bytes(range(32))), Pepper("other", bytes(range(1, 33)))
SEALER = Sealer(Peppers([ONE]))
STRANGER = Sealer(Peppers([Pepper("one", bytes(32))]))
NAME = "grid-one"
CONTENTS = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=4)
LOGS = st.lists(CONTENTS, min_size=1, max_size=6)


def chained(contents: list[Content], sealer: Sealer = SEALER, name: str = NAME) -> list[Stored]:
    """Return a log whose events say this, with ids that go up by ten."""
    place, log = Place(), []
    for number, content in enumerate(contents, start=1):
        link = sealer.link(name, place, number * 10, content)
        log.append(Stored(link=link, content=content))
        place = link.place
    return log


def walk(log: list[Stored], sealer: Sealer = SEALER, head: Place | None = None, **given: Any) -> Verification:
    """Verify a log from its beginning to its end, which is where the head is unless another one is given."""
    walked = Verification(sealer=sealer, place=Place(), events_seen=0, **given)
    walked.take(log)
    if walked.broken is None:
        walked.end((log[-1].link.place if log else Place()) if head is None else head)
    return walked


@given(log=LOGS)
def test_a_log_that_nobody_touched_holds(log: list[Content]) -> None:
    walked = walk(chained(log))
    assert (walked.broken, walked.verified, walked.unverifiable) == (None, len(log), {})
    assert (walked.place.number, walked.events_seen) == (len(log), len(log) * 10)


@given(log=LOGS, other=CONTENTS, data=st.data())
def test_an_event_that_says_anything_else_is_found(log: list[Content], other: Content, data: st.DataObject) -> None:
    stored = chained(log)
    place = data.draw(st.integers(0, len(log) - 1))
    stored[place] = replace(stored[place], content=other)
    expected = None if other == log[place] else Break(Problem.EVENT_ALTERED, place + 1, (place + 1) * 10)
    assert walk(stored).broken == expected


@given(log=LOGS, data=st.data())
def test_whatever_is_taken_out_put_in_or_moved_is_found_where_it_was(log: list[Content], data: st.DataObject) -> None:
    stored = chained(log)
    head = stored[-1].link.place
    places = st.integers(0, len(log) - 1)
    one, two = data.draw(places), data.draw(places)
    order = data.draw(st.sampled_from(["out", "in", "moved"]))
    if order == "out":
        del stored[one]
    elif order == "in":
        stored.insert(one, stored[two])
    else:
        stored.insert(two, stored.pop(one))
    if [one.link.number for one in stored] == list(range(1, len(log) + 1)):
        assert walk(stored, head=head).broken is None
    else:
        first = next((n for n, one in enumerate(stored, 1) if one.link.number != n), len(stored) + 1)
        assert walk(stored, head=head).broken == Break(Problem.LINK_MISSING, first)


CHANGES: dict[str, Any] = {
    "chain": "grid-two",
    "event_id": 11,
    "content_mac": bytes(32),
    "mac": bytes(32),
    "pepper_id": "other",
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_part_of_a_link_that_is_changed_breaks_it(name: str) -> None:
    both = Sealer(Peppers([ONE, OTHER]))
    stored = chained([{"a": 1}, {"a": 2}, {"a": 3}])
    stored[1] = replace(stored[1], link=replace(stored[1].link, **{name: CHANGES[name]}))
    broken = walk(stored, both).broken
    assert broken is not None
    assert (broken.problem, broken.number) == (Problem.LINK_ALTERED, 2)


def test_a_link_of_another_chain_does_not_fit() -> None:
    one, other = chained([{"a": 1}, {"a": 2}]), chained([{"a": 1}, {"a": 2}], name="grid-two")
    assert walk([one[0], other[1]]).broken == Break(Problem.LINK_ALTERED, 2, 20)


def test_nobody_makes_a_link_without_the_pepper() -> None:
    stored = chained([{"a": 1}])
    forged = STRANGER.link(NAME, stored[0].link.place, 20, {"a": 2})
    assert walk([*stored, Stored(link=forged, content={"a": 2})]).broken == Break(Problem.LINK_ALTERED, 2, 20)
    redacted = STRANGER.redact(stored[0].link, {"a": 2})
    assert walk([Stored(link=redacted, content={"a": 2})]).broken == Break(Problem.REDACTION_ALTERED, 1, 10)
    assert SEALER.anchored(Chain(name=NAME, head=Place(), anchor=STRANGER.anchor(NAME, Place(), 1))) is False


def test_a_beginning_is_of_one_chain_one_place_and_one_first_event() -> None:
    anchor = SEALER.anchor(NAME, Place(3, b"mac", "one"), 1)

    def holds(**changes: Any) -> bool | None:
        name = changes.pop("name", NAME)
        return SEALER.anchored(Chain(name=name, head=Place(), anchor=replace(anchor, **changes)))

    assert holds()
    for changes in (
        {"name": "grid-two"},
        {"sealed_from": 2},
        {"place": Place(2, b"mac", "one")},
        {"place": Place(3, b"other", "one")},
        {"place": Place(3, b"mac", "other")},
    ):
        assert holds(**changes) is False
    assert holds(pepper_id="gone") is None


@given(log=LOGS, said=CONTENTS, again=CONTENTS, data=st.data())
def test_a_redacted_event_holds_for_what_it_says_now_alone(
    log: list[Content], said: Content, again: Content, data: st.DataObject
) -> None:
    stored = chained(log)
    place = data.draw(st.integers(0, len(log) - 1))
    for content in (said, again, None):
        link = SEALER.redact(stored[place].link, content)
        stored[place] = Stored(link=link, content=content)
        assert walk(stored).broken is None
        for other in (said, again, log[place], None):
            if other != content:
                assert walk([*stored[:place], Stored(link=link, content=other), *stored[place + 1 :]]).broken


def test_a_note_of_a_redaction_is_of_one_link() -> None:
    stored = chained([{"a": 1}, {"a": 1}])
    redacted = SEALER.redact(stored[0].link, {"a": 2})
    moved = replace(stored[1].link, salt=redacted.salt, redaction=redacted.redaction)
    broken = walk([stored[0], Stored(link=moved, content={"a": 2})]).broken
    assert broken == Break(Problem.REDACTION_ALTERED, 2, 20)


def test_links_under_one_pepper_after_another_hold_and_without_the_first_cannot_be_told() -> None:
    first = chained([{"a": 1}, {"a": 2}])
    newer = Sealer(Peppers([OTHER, ONE]))
    link = newer.link(NAME, first[-1].link.place, 30, {"a": 3})
    log = [*first, Stored(link=link, content={"a": 3})]
    assert (walk(log, newer).broken, walk(log, newer).verified) == (None, 3)
    alone = walk(log, Sealer(Peppers([OTHER])))
    assert (alone.broken, alone.verified, alone.unverifiable) == (None, 1, {"one": 2})
    # Nor does a pepper that is gone excuse what can be told without it.
    assert walk([log[0], log[2]], Sealer(Peppers([OTHER]))).broken == Break(Problem.LINK_MISSING, 2)
    gone = [replace(log[0], content=None), *log[1:]]
    assert walk(gone, Sealer(Peppers([OTHER]))).broken == Break(Problem.EVENT_MISSING, 1, 10)


@pytest.mark.parametrize(
    ("number", "mac", "expected"),
    [
        (1, None, None),
        (2, None, None),
        (2, bytes(32), Break(Problem.HISTORY_REPLACED, 2, 20)),
        (3, bytes(32), Break(Problem.TAIL_MISSING, 3)),
    ],
)
def test_heads_that_were_kept_are_compared(number: int, mac: bytes | None, expected: Break | None) -> None:
    log = chained([{"a": 1}, {"a": 2}])
    kept = log[number - 1].link.mac if mac is None else mac
    assert walk(log, expected={number: (kept,)}).broken == expected


def test_a_link_shows_no_code_of_its_own() -> None:
    link: Link = SEALER.redact(chained([{"a": 1}])[0].link, {"a": 2})
    assert link.mac.hex() not in repr(link)
    assert repr(link.mac) not in repr(link)
    assert repr(link.salt) not in repr(link)
