"""The checker finds what is wrong in histories made by hand, and finds nothing wrong in what may be."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from texture.auth.v1 import authorize_service_pb2 as pb

from server.domain.revision import Revision
from tests.history.checker import Asked, Change, Fault, History, Kind, Question, check

WAIT = 2.0
EPOCH = uuid.UUID(int=1)
KEY = Question("key", 1)
ROTATED = Question("key", 2)
SCOPED = Question("key", 1, "battery", frozenset({"anna"}), pb.REASON_DEVICE_NOT_PERMITTED)
ALLOW = pb.REASON_PERMITTED
UNKNOWN, REVOKED, SUSPENDED = pb.REASON_KEY_UNKNOWN, pb.REASON_KEY_REVOKED, pb.REASON_KEY_SUSPENDED
RETIRED, NOT_PERMITTED = pb.REASON_KEY_RETIRED, pb.REASON_DEVICE_NOT_PERMITTED


def token(number: int, *, epoch: uuid.UUID = EPOCH, nonce: int = 7) -> str:
    return Revision(epoch, number, nonce).encode()


def change(kind: Kind, began: float, ended: float | None, number: int = 0, subject: str = "key", **more: Any) -> Change:
    """Return a change that was answered with a revision, and was waited for, unless told otherwise."""
    values = {"exact": bool(number), "complete": True, "revision": token(number) if number else "", **more}
    return Change(kind=kind, subject=subject, began=began, ended=ended, **values)


CREATED = change(Kind.CREATE, 0, 1, 1)


def asked(began: float, reason: int, number: int, at_least: int = 0, **more: Any) -> Asked:
    """Return a call of a tenth of a second about the first question of a history, and its answer."""
    values = {"questions": (0,), "reasons": bytes([reason]), "revision": token(number), **more}
    return Asked(began=began, ended=began + 0.1, process=0, at_least=token(at_least) if at_least else "", **values)


def faults(
    changes: Sequence[Change], calls: Sequence[Asked], *questions: Question, linearizable: bool = False
) -> list[Fault]:
    """Return what is wrong with a history of one key and a battery that is Anna's at first."""
    history = History(
        linearizable=linearizable,
        owners={"battery": "anna"},
        questions=list(questions or (KEY,)),
        changes=[CREATED, *changes],
        asked=list(calls),
    )
    return [violation.fault for violation in check(history, WAIT)]


def test_what_is_as_it_should_be_is_not_found_fault_with() -> None:
    changes = [change(Kind.SUSPEND, 5, 6, 2), change(Kind.RESUME, 7, 8, 3), change(Kind.REVOKE, 9, 10, 4)]
    calls = [asked(4, ALLOW, 1), asked(6.5, SUSPENDED, 2), asked(8.5, ALLOW, 3, at_least=3), asked(11, REVOKED, 4)]
    assert faults(changes, calls) == []


def test_an_allow_after_a_revocation_has_returned_is_wrong() -> None:
    revoked = [change(Kind.REVOKE, 5, 6, 2)]
    assert faults(revoked, [asked(6.1, ALLOW, 1)]) == [Fault.WRONG_ALLOW]
    assert faults(revoked, [asked(6.1, ALLOW, 2)]) == [Fault.WRONG_ALLOW]
    assert faults(revoked, [asked(5.95, ALLOW, 1)]) == []


def test_an_allow_after_a_suspension_and_before_anybody_asked_for_a_resumption_is_wrong() -> None:
    changes = [change(Kind.SUSPEND, 5, 6, 2), change(Kind.RESUME, 8, 9, 3)]
    assert faults(changes, [asked(7, ALLOW, 1)]) == [Fault.WRONG_ALLOW]
    assert faults(changes, [asked(8.5, ALLOW, 3)]) == []


def test_a_change_that_was_not_waited_for_may_be_missed_for_as_long_as_a_lease_and_no_longer() -> None:
    revoked = [change(Kind.REVOKE, 5, 6, 2, complete=False)]
    assert faults(revoked, [asked(6 + WAIT - 0.1, ALLOW, 1)]) == []
    assert faults(revoked, [asked(6 + WAIT + 0.1, ALLOW, 1)]) == [Fault.WRONG_ALLOW]


def test_where_decisions_are_linearizable_no_change_may_be_missed() -> None:
    revoked = [change(Kind.REVOKE, 5, 6, 2, complete=False)]
    assert faults(revoked, [asked(6.1, ALLOW, 1)], linearizable=True) == [Fault.WRONG_ALLOW]
    resumed = [change(Kind.SUSPEND, 3, 4, 2), change(Kind.RESUME, 5, 6, 3, complete=False)]
    assert faults(resumed, [asked(6.1, SUSPENDED, 2)], linearizable=True) == [Fault.WRONG_DENY]


def test_the_old_secret_is_not_allowed_after_a_rotation_without_an_overlap() -> None:
    rotated = [change(Kind.ROTATE, 5, 6, 2, generation=2)]
    assert faults(rotated, [asked(6.1, ALLOW, 2)]) == [Fault.WRONG_ALLOW]
    assert faults(rotated, [asked(6.1, RETIRED, 2)]) == []
    assert faults(rotated, [asked(6.1, ALLOW, 2)], ROTATED) == []


def test_the_old_secret_may_be_allowed_until_the_overlap_ends() -> None:
    rotated = [change(Kind.ROTATE, 5, 6, 2, generation=2, overlap=10.0, complete=False)]
    assert faults(rotated, [asked(15, ALLOW, 2)]) == []
    assert faults(rotated, [asked(17, ALLOW, 2)]) == [Fault.WRONG_ALLOW]


def test_a_scoped_key_does_not_reach_a_device_that_was_transferred_away() -> None:
    away = change(Kind.TRANSFER, 5, 6, 2, subject="battery", owner="bob")
    back = change(Kind.TRANSFER, 8, 9, 3, subject="battery", owner="anna", complete=False)
    assert faults([away], [asked(6.1, ALLOW, 1)], SCOPED) == [Fault.WRONG_ALLOW]
    assert faults([away], [asked(6.1, NOT_PERMITTED, 2)], SCOPED) == []
    assert faults([away, back], [asked(8.5, ALLOW, 3)], SCOPED) == []
    assert faults([away, back], [asked(9 + WAIT + 0.1, NOT_PERMITTED, 2)], SCOPED) == [Fault.WRONG_DENY]


def test_nothing_is_allowed_before_a_key_is_there() -> None:
    assert faults([], [asked(-1, ALLOW, 1)]) == [Fault.WRONG_ALLOW]
    assert faults([change(Kind.ROTATE, 5, 6, 2, generation=2)], [asked(4, ALLOW, 1)], ROTATED) == [Fault.WRONG_ALLOW]


def test_an_answer_that_is_older_than_was_asked_for_is_wrong() -> None:
    assert faults([], [asked(4, ALLOW, 1, at_least=2)]) == [Fault.TOO_OLD]
    assert faults([], [asked(4, ALLOW, 2, at_least=2)]) == []


def test_an_answer_that_is_not_true_at_its_revision_is_wrong_even_where_either_answer_would_do() -> None:
    suspending = [change(Kind.SUSPEND, 5, 6, 2)]
    assert faults(suspending, [asked(5.5, SUSPENDED, 2), asked(5.6, ALLOW, 1)]) == []
    assert faults(suspending, [asked(5.5, ALLOW, 2)]) == [Fault.UNTRUE]
    assert faults(suspending, [asked(5.5, SUSPENDED, 1)]) == [Fault.UNTRUE]


def test_an_answer_of_another_history_is_wrong() -> None:
    elsewhere = token(1, epoch=uuid.UUID(int=2))
    assert faults([], [asked(4, ALLOW, 1, revision=elsewhere)]) == [Fault.ANOTHER_HISTORY]
    assert faults([], [asked(4, ALLOW, 1, revision=token(1, nonce=8))]) == [Fault.ANOTHER_HISTORY]
    assert faults([], [asked(4, ALLOW, 1, revision="")]) == [Fault.ANOTHER_HISTORY]


def test_a_denial_of_what_was_allowed_all_the_time_is_wrong_and_one_for_another_reason_too() -> None:
    assert faults([], [asked(4, SUSPENDED, 1)]) == [Fault.WRONG_DENY]
    assert faults([], [asked(4, UNKNOWN, 1)]) == [Fault.WRONG_DENY]
    assert faults([change(Kind.REVOKE, 5, 6, 2)], [asked(7, SUSPENDED, 2)]) == [Fault.WRONG_DENY]
    assert faults([], [asked(4, 0, 1)]) == [Fault.WRONG_DENY]


def test_a_denial_of_what_was_given_a_moment_ago_is_right_for_as_long_as_a_lease() -> None:
    created = [change(Kind.ROTATE, 5, 6, 2, generation=2, complete=False)]
    assert faults(created, [asked(6 + WAIT - 0.1, UNKNOWN, 1)], ROTATED) == []
    assert faults(created, [asked(6 + WAIT + 0.1, UNKNOWN, 1)], ROTATED) == [Fault.WRONG_DENY]


def test_of_two_changes_at_the_same_time_the_later_revision_wins() -> None:
    both = [change(Kind.SUSPEND, 5, 6, 2), change(Kind.RESUME, 5, 6, 3, complete=False)]
    assert faults(both, [asked(5.5, SUSPENDED, 2), asked(5.5, ALLOW, 3)]) == []
    later = 6 + WAIT + 0.1
    assert faults(both, [asked(later, ALLOW, 3)]) == []
    assert faults(both, [asked(later, SUSPENDED, 3)]) == [Fault.WRONG_DENY]
    other_way = [change(Kind.RESUME, 5, 6, 2, complete=False), change(Kind.SUSPEND, 5, 6, 3)]
    assert faults([change(Kind.SUSPEND, 3, 4, 1), *other_way], [asked(later, ALLOW, 3)]) == [Fault.WRONG_ALLOW]


def test_a_change_that_was_never_answered_may_be_made_at_any_time_or_never() -> None:
    unknown = [change(Kind.SUSPEND, 5, None)]
    assert faults(unknown, [asked(100, ALLOW, 1), asked(200, SUSPENDED, 5), asked(300, ALLOW, 1)]) == []
    assert faults(unknown, [asked(4, SUSPENDED, 1)]) == [Fault.WRONG_DENY]


def test_a_change_that_was_repeated_is_of_its_revision_or_of_one_before() -> None:
    repeated = [change(Kind.SUSPEND, 5, 9, 4, exact=False)]
    assert faults(repeated, [asked(6, SUSPENDED, 3), asked(7, SUSPENDED, 4), asked(6.5, ALLOW, 2)]) == []
    assert faults(repeated, [asked(9.1, ALLOW, 3)]) == [Fault.WRONG_ALLOW]
    over = [*repeated, change(Kind.RESUME, 10, 11, 5, complete=False)]
    assert faults(over, [asked(10.5, SUSPENDED, 5)]) == [Fault.UNTRUE]


def test_of_two_repeated_changes_at_the_same_time_either_may_have_been_the_last() -> None:
    both = [change(Kind.SUSPEND, 5, 8, 4, exact=False), change(Kind.RESUME, 6, 7, 4, exact=False)]
    assert faults(both, [asked(20, ALLOW, 4), asked(20, SUSPENDED, 4)]) == []


def test_a_batch_is_answered_from_one_snapshot() -> None:
    suspending = [change(Kind.SUSPEND, 5, 6, 2, exact=False)]
    batch = asked(5.5, ALLOW, 1, questions=(0, 0), reasons=bytes([ALLOW, SUSPENDED]))
    assert faults(suspending, [batch]) == [Fault.TWO_SNAPSHOTS]


def test_a_violation_says_in_words_what_was_known_and_of_what_changes() -> None:
    revoked = change(Kind.REVOKE, 5, 6, 2)
    history = History(linearizable=False, questions=[KEY], changes=[CREATED, revoked], asked=[asked(7, ALLOW, 1)])
    (violation,) = check(history, WAIT)
    assert "PERMITTED of revision 1" in violation.words
    assert "revoked key: True, at its revision False" in violation.words
    assert revoked in violation.changes
