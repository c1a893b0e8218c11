from __future__ import annotations

import pytest

from server.domain.errors import ErrorReason, Refusal, Violation, invalid


def test_a_refusal_is_raised_with_a_reason_for_programs_and_a_message_for_people() -> None:
    with pytest.raises(Refusal, match=r"^there is no such key$") as refused:
        raise Refusal(ErrorReason.KEY_NOT_FOUND, "there is no such key", metadata={"key_id": "k"})
    assert refused.value.reason is ErrorReason.KEY_NOT_FOUND
    assert refused.value.message == "there is no such key"
    assert refused.value.metadata == {"key_id": "k"}
    assert refused.value.violations == ()


def test_two_refusals_share_no_metadata() -> None:
    one, other = Refusal(ErrorReason.KEY_NOT_FOUND, "one"), Refusal(ErrorReason.KEY_NOT_FOUND, "other")
    one.metadata["key_id"] = "k"
    assert other.metadata == {}


def test_an_invalid_field_is_named_in_the_message_and_in_a_violation() -> None:
    refusal = invalid("overlap", "must be from 0 to 30 days")
    assert refusal.reason is ErrorReason.FIELD_INVALID
    assert refusal.message == "overlap: must be from 0 to 30 days"
    assert refusal.violations == (Violation("overlap", "must be from 0 to 30 days"),)
