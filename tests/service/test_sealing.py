"""Signing secrets at rest, and what a message is signed with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from server.domain.errors import ErrorReason, Refusal
from server.domain.peppers import Pepper, Peppers
from server.service.deliveries import retry_after, signed_message
from server.service.sealing import CannotUnseal, new_secret, seal, shown, unseal

OLD, NEW = Pepper("old", bytes(range(32))), Pepper("new", bytes(range(1, 33)))
SECRET = new_secret()
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_a_sealed_secret_is_had_again_under_any_pepper_that_is_here() -> None:
    pepper_id, sealed = seal(Peppers([OLD]), SECRET, "endpoint/1")
    assert pepper_id == "old"
    assert unseal(Peppers([NEW, OLD]), pepper_id, sealed, "endpoint/1") == SECRET
    assert SECRET not in sealed


def test_no_two_seals_are_alike() -> None:
    assert len({seal(Peppers([OLD]), SECRET, "endpoint/1") for _ in range(100)}) == 100


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_seal_with_any_byte_changed_cannot_be_opened(place: int, by: int) -> None:
    pepper_id, sealed = seal(Peppers([OLD]), SECRET, "endpoint/1")
    changed = bytearray(sealed)
    changed[place % len(sealed)] ^= by
    with pytest.raises(CannotUnseal):
        unseal(Peppers([OLD]), pepper_id, bytes(changed), "endpoint/1")


@pytest.mark.parametrize("sealed", [b"", b"x" * 11, b"x" * 12, b"x" * 60])
def test_what_was_never_sealed_cannot_be_opened(sealed: bytes) -> None:
    with pytest.raises(CannotUnseal):
        unseal(Peppers([OLD]), "old", sealed, "endpoint/1")


def test_a_seal_is_for_its_place_and_its_pepper() -> None:
    _, sealed = seal(Peppers([OLD]), SECRET, "endpoint/1")
    both = Peppers([NEW, OLD])
    for pepper_id, place in (("old", "endpoint/2"), ("old", "other/1"), ("new", "endpoint/1")):
        with pytest.raises(CannotUnseal):
            unseal(both, pepper_id, sealed, place)
    with pytest.raises(Refusal) as refused:
        unseal(Peppers([NEW]), "old", sealed, "endpoint/1")
    assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE


@given(st.binary(min_size=32, max_size=100), st.sampled_from(["webhook-secret", "another"]))
def test_a_derived_key_is_that_of_hkdf(secret: bytes, purpose: str) -> None:
    derived = Peppers([Pepper("p", secret)]).derive(purpose, "p")
    assert derived == HKDF(SHA256(), 32, salt=None, info=purpose.encode()).derive(secret)


# --- Messages -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=5), st.text(), max_size=3))
def test_a_message_is_accepted_by_the_library_with_each_of_the_secrets_and_no_other(payload: dict[str, str]) -> None:
    secrets, now = [new_secret(), new_secret()], datetime.now(UTC)
    headers, body = signed_message("msg_1", payload, secrets, now)
    for secret in secrets:
        assert Webhook(shown(secret)).verify(body, headers) == payload
    with pytest.raises(WebhookVerificationError):
        Webhook(shown(new_secret())).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(shown(secrets[0])).verify(body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(shown(secrets[0])).verify(body, headers | {"webhook-id": "msg_2"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("120", 120),
        ("-1", 0),
        ("1.5", 0),
        ("soon", 0),
        ("²", 0),
        ("9" * 400, 10**8),
        (format_datetime(NOW + timedelta(hours=1), usegmt=True), 3600),
        (format_datetime((NOW + timedelta(hours=1)).astimezone(timezone(timedelta(hours=5)))), 3600),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0),
        ("Tue, 99 Foo 2030 00:00:00 GMT", 0),
        (f"Tue, 01 Jan {'9' * 20} 00:00:00 GMT", 0),
        (f"Tue, 01 Jan 2030 00:00:00 +{'9' * 20}", 0),
    ],
)
def test_a_receiver_asks_for_time_in_seconds_or_by_a_date(text: str, seconds: float) -> None:
    assert retry_after(text, NOW) == timedelta(seconds=seconds)


@given(st.text())
def test_whatever_a_receiver_writes_is_a_time_to_wait(text: str) -> None:
    assert retry_after(text, NOW) >= timedelta()
