from __future__ import annotations

import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.token import (
    ALPHABET,
    Token,
    TokenKind,
    checksum,
    holds_token,
    is_id,
    mint,
    new_id,
    parse,
    redact,
)
from tests.builders import make_token

PUBLISHED_FORM = re.compile(r"\btxk_(?:srv|con|scp|svc)_[0-9A-Za-z]{16}_[0-9A-Za-z]{38}\b")
ID = "0123456789abcXYZ"

kinds = st.sampled_from(TokenKind)
ids = st.text(ALPHABET, min_size=16, max_size=16)
secrets = st.text(ALPHABET, min_size=32, max_size=32)


def text_of(kind: TokenKind, public_id: str, secret: str) -> str:
    body = f"{kind.value}_{public_id}_{secret}"
    return body + checksum(body)


def test_the_checksum_is_the_one_that_github_published() -> None:
    assert checksum("zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ") == "0mLq17"


def test_the_checksum_is_crc32_as_a_number_of_six_base62_digits() -> None:
    # The check value that descriptions of CRC-32 quote for these nine digits.
    digits = checksum("123456789")
    assert len(digits) == 6
    assert sum(ALPHABET.index(digit) * 62**place for place, digit in enumerate(reversed(digits))) == 0xCBF43926


def test_the_checksum_is_padded_with_zeros() -> None:
    assert checksum("") == "000000"


def test_the_alphabet_is_digits_then_capitals_then_small_letters() -> None:
    assert list(ALPHABET) == [*string.digits, *string.ascii_uppercase, *string.ascii_lowercase]


@given(kinds, ids, secrets)
def test_a_well_formed_token_is_read_back_as_it_was_made(kind: TokenKind, public_id: str, secret: str) -> None:
    text = text_of(kind, public_id, secret)
    assert parse(text) == Token(kind, public_id, text)


@pytest.mark.parametrize("kind", TokenKind)
def test_a_minted_token_is_read_back_as_it_was_made(kind: TokenKind) -> None:
    token = mint(kind, ID)
    assert token.kind is kind
    assert token.public_id == ID
    assert parse(token.text) == token


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        (TokenKind.SERVER, "txk_srv_"),
        (TokenKind.CONNECT, "txk_con_"),
        (TokenKind.SCOPED, "txk_scp_"),
        (TokenKind.SERVICE, "txk_svc_"),
        (TokenKind.LINK, "txl_"),
    ],
)
def test_a_token_begins_with_its_kind_and_its_id(kind: TokenKind, start: str) -> None:
    assert mint(kind, ID).text.startswith(f"{start}{ID}_")


@pytest.mark.parametrize("kind", [kind for kind in TokenKind if kind is not TokenKind.LINK])
def test_a_scanner_finds_a_key_in_the_middle_of_a_line(kind: TokenKind) -> None:
    text = mint(kind, new_id()).text
    assert PUBLISHED_FORM.findall(f'KEY="{text}";') == [text]


def test_a_link_token_is_not_taken_for_a_key_by_a_scanner() -> None:
    assert PUBLISHED_FORM.search(mint(TokenKind.LINK, new_id()).text) is None


def test_two_tokens_of_one_id_have_different_secrets() -> None:
    assert mint(TokenKind.SERVER, ID).text != mint(TokenKind.SERVER, ID).text


def test_a_new_id_has_sixteen_base62_characters_and_is_new() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"[0-9A-Za-z]{16}", one) for one in made)


@given(kinds, ids, secrets, st.data())
def test_a_token_with_one_changed_character_is_malformed(
    kind: TokenKind, public_id: str, secret: str, data: st.DataObject
) -> None:
    text = text_of(kind, public_id, secret)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw((st.sampled_from(ALPHABET) | st.characters()).filter(lambda char: char != text[place]))
    assert parse(text[:place] + other + text[place + 1 :]) is None


@given(kinds, ids, secrets, st.data())
def test_a_token_with_two_neighbours_swapped_is_malformed(
    kind: TokenKind, public_id: str, secret: str, data: st.DataObject
) -> None:
    text = text_of(kind, public_id, secret)
    places = [place for place in range(len(text) - 1) if text[place] != text[place + 1]]
    place = data.draw(st.sampled_from(places))
    assert parse(text[:place] + text[place + 1] + text[place] + text[place + 2 :]) is None


@given(kinds, kinds, ids, secrets)
def test_a_token_whose_kind_was_changed_under_its_old_checksum_is_malformed(
    kind: TokenKind, other: TokenKind, public_id: str, secret: str
) -> None:
    text = text_of(kind, public_id, secret)
    changed = other.value + text.removeprefix(kind.value)
    assert (parse(changed) is None) is (other is not kind)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda _: "", id="nothing"),
        pytest.param(lambda text: text[:-1], id="last character lost"),
        pytest.param(lambda text: text[1:], id="first character lost"),
        pytest.param(lambda text: text + "0", id="one character more"),
        pytest.param(lambda text: text + "\n", id="newline at the end"),
        pytest.param(lambda text: " " + text, id="space before"),
        pytest.param(lambda text: text + text, id="twice"),
        pytest.param(lambda text: text.upper(), id="in capitals"),
        pytest.param(lambda text: text.replace("_", "-"), id="hyphens for underscores"),
        pytest.param(lambda text: text.replace("txk_srv", "txk_adm"), id="unknown kind"),
        pytest.param(lambda text: text.replace("0", "\N{FULLWIDTH DIGIT ZERO}"), id="digits of another script"),
        pytest.param(lambda text: "Bearer " + text, id="with the scheme of a header"),
    ],
)
def test_what_is_not_letter_for_letter_a_token_is_malformed(spoil: Callable[[str], str]) -> None:
    assert parse(make_token(TokenKind.SERVER, ID)) is not None
    assert parse(spoil(make_token(TokenKind.SERVER, ID))) is None


def test_an_unknown_kind_is_malformed_even_with_a_right_checksum() -> None:
    body = f"txk_adm_{ID}_{'0' * 32}"
    assert parse(body + checksum(body)) is None


@given(st.text(max_size=200))
def test_noise_is_no_token_and_no_error(noise: str) -> None:
    assert parse(noise) is None


def test_an_id_is_sixteen_base62_characters_and_nothing_else() -> None:
    assert is_id(ID)
    assert is_id(new_id())
    for text in ("", ID[1:], ID + "0", ID + "\n", ID[1:] + "-", ID[1:] + "\N{FULLWIDTH DIGIT ZERO}"):
        assert not is_id(text)


@given(kinds, ids, secrets, st.text(max_size=10), st.text(max_size=10), st.integers(0, 30))
def test_a_token_is_found_and_taken_out_wherever_it_stands_even_cut_short(
    kind: TokenKind, public_id: str, secret: str, before: str, after: str, lost: int
) -> None:
    token = text_of(kind, public_id, secret)
    text = before + token[: len(token) - lost] + after
    assert holds_token(text)
    assert redact(text) == f"{before}{kind.value}_…{after.lstrip(ALPHABET)}"


def test_what_is_left_of_a_token_is_its_kind_and_the_words_around_it() -> None:
    assert redact(f"a key ({make_token(TokenKind.SERVER, ID)}) leaked") == "a key (txk_srv_…) leaked"
    link = make_token(TokenKind.LINK, ID)
    assert redact(f"{link}, {link}") == "txl_…, txl_…"


def test_a_token_with_a_wrong_checksum_or_an_unknown_kind_is_taken_out_too() -> None:
    token = make_token(TokenKind.SERVER, ID)
    assert redact(token[:-6] + "000000") == "txk_srv_…"
    assert redact(token.replace("srv", "adm")) == "txk_adm_…"


@pytest.mark.parametrize("text", ["", "words", "txk_srv_", f"txk_srv_{ID}", f"txk_srv_{ID}_0000000", ID, "txk_srv_…"])
def test_what_gives_no_secret_away_is_left_alone(text: str) -> None:
    assert not holds_token(text)
    assert redact(text) == text


def test_the_representation_of_a_token_hides_its_text() -> None:
    token = mint(TokenKind.SERVER, ID)
    assert token.text[-38:] not in repr(token)
    assert ID in repr(token)
