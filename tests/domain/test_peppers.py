from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import ErrorReason, Refusal
from server.domain.peppers import MINIMUM_BYTES, Pepper, Peppers

OLD = Pepper("old", b"o" * 32)
NEW = Pepper("new", b"n" * 32)
HEXADECIMAL = "5a" * 32


def test_the_first_pepper_signs() -> None:
    assert Peppers([NEW, OLD]).signing_id == "new"
    assert Peppers([NEW, OLD]).digest("text")[0] == "new"


def test_its_ids_are_told_in_order() -> None:
    assert Peppers([NEW, OLD]).pepper_ids == ("new", "old")


def test_a_digest_is_hmac_sha256_under_the_signing_pepper() -> None:
    assert Peppers([NEW, OLD]).digest("text") == ("new", hmac.new(NEW.secret, b"text", hashlib.sha256).digest())


def test_every_pepper_verifies() -> None:
    pepper_id, digest = Peppers([OLD]).digest("text")
    assert Peppers([NEW, OLD]).matches("text", pepper_id, digest)


@pytest.mark.parametrize(
    ("text", "pepper_id", "digest"),
    [
        pytest.param("texts", "old", Peppers([OLD]).digest("text")[1], id="another text"),
        pytest.param("text", "new", Peppers([OLD]).digest("text")[1], id="another pepper's digest"),
        pytest.param("text", "old", b"", id="no digest"),
        pytest.param("text", "old", Peppers([OLD]).digest("text")[1][:31], id="a digest cut short"),
    ],
)
def test_a_digest_of_anything_else_does_not_match(text: str, pepper_id: str, digest: bytes) -> None:
    assert not Peppers([NEW, OLD]).matches(text, pepper_id, digest)


def test_a_digest_whose_pepper_is_not_here_cannot_be_told_and_is_no_mismatch() -> None:
    _, digest = Peppers([OLD]).digest("text")
    with pytest.raises(Refusal) as refused:
        Peppers([NEW]).matches("text", "old", digest)
    assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE
    assert refused.value.metadata == {"pepper_id": "old"}


@given(st.binary(max_size=40))
def test_any_pepper_recognises_the_tag_that_one_of_them_made(message: bytes) -> None:
    tag = Peppers([OLD]).sign("page", message)
    assert len(tag) == 16
    assert Peppers([NEW, OLD]).signed("page", message, tag)


def test_a_tag_holds_for_its_purpose_its_message_and_its_pepper_only() -> None:
    tag = Peppers([OLD]).sign("page", b"message")
    assert not Peppers([OLD]).signed("other", b"message", tag)
    assert not Peppers([OLD]).signed("page", b"messages", tag)
    assert not Peppers([OLD]).signed("page", b"message", tag[:-1])
    assert not Peppers([NEW]).signed("page", b"message", tag)


def test_a_purpose_and_a_message_do_not_run_into_each_other() -> None:
    tag = Peppers([OLD]).sign("page", b"token")
    assert not Peppers([OLD]).signed("pagetoken", b"", tag)
    assert not Peppers([OLD]).signed("pa", b"getoken", tag)


def test_a_tag_is_no_digest_cut_short() -> None:
    peppers = Peppers([OLD])
    assert peppers.sign("", b"text") != peppers.digest("text")[1][:16]


@pytest.mark.parametrize(
    ("peppers", "complaint"),
    [
        pytest.param([], "at least one pepper is needed", id="none"),
        pytest.param([OLD, Pepper("old", b"x" * 32)], "same id", id="an id twice"),
        pytest.param([Pepper("short", b"x" * 31)], "pepper number 1 has fewer than 32 bytes", id="short secret"),
        pytest.param([NEW, Pepper("", b"x" * 32)], "1 to 32 characters", id="no id"),
        pytest.param([Pepper("Old", b"x" * 32)], "1 to 32 characters", id="a capital in the id"),
        pytest.param([Pepper("-old", b"x" * 32)], "1 to 32 characters", id="an id that begins with a hyphen"),
        pytest.param([Pepper("old\n", b"x" * 32)], "1 to 32 characters", id="an id with a newline"),
        pytest.param([Pepper("o" * 33, b"x" * 32)], "1 to 32 characters", id="a long id"),
    ],
)
def test_peppers_that_would_be_a_mistake_are_refused(peppers: list[Pepper], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Peppers(peppers)


def test_a_secret_of_the_least_length_and_an_id_of_the_greatest_are_accepted() -> None:
    assert Peppers([Pepper("o" * 32, b"x" * MINIMUM_BYTES)]).signing_id == "o" * 32


def test_a_file_has_one_pepper_a_line_and_the_first_signs() -> None:
    peppers = Peppers.parse(
        f"""
        # made in July
        new {NEW.secret.hex()}   # signs

        old\t{OLD.secret.hex().upper()}
        """
    )
    assert peppers.signing_id == "new"
    assert peppers.digest("text") == Peppers([NEW]).digest("text")
    assert peppers.matches("text", *Peppers([OLD]).digest("text"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("", "at least one pepper", id="empty"),
        pytest.param("# only a comment", "at least one pepper", id="only a comment"),
        pytest.param(f"\nold={HEXADECIMAL}", "line 2 is not", id="an equals sign"),
        pytest.param(f"old {HEXADECIMAL} more", "line 1 is not", id="three words"),
        pytest.param(f"old {HEXADECIMAL}g", "line 1 is not", id="not hexadecimal"),
        pytest.param(f"old {HEXADECIMAL[:-1]}", "line 1 is not", id="half a byte"),
        pytest.param("old 5a5a", "pepper number 1 has fewer than 32 bytes", id="short secret"),
        pytest.param(f"{HEXADECIMAL} 01d", "line 1 is not", id="the two swapped"),
        # A secret that is too short, and swapped with an id that looks hexadecimal, must not be quoted as an id.
        pytest.param(f"{HEXADECIMAL[:32]} 01d0", ".", id="the two swapped and the secret short"),
    ],
)
def test_a_malformed_file_is_refused_without_quoting_a_secret(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        Peppers.parse(text)
    assert "5a5a" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_no_representation_shows_a_secret() -> None:
    assert repr(Peppers([NEW, OLD])) == "Peppers(new, old)"
    assert repr(OLD) == "Pepper(pepper_id='old')"
