from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.kinds import ExposurePolicy, KeyKind
from server.domain.leaks import SOURCE_LENGTH, URL_LENGTH, Sighting, expose, sighting
from server.domain.model import KeyState
from server.domain.token import TokenKind, holds_token
from tests.builders import NOW, api_key_of, make_key, make_token

API_KEY = api_key_of(make_key())
SECRET = API_KEY.rpartition("_")[2]
LINK_TOKEN = make_token(TokenKind.LINK, "0" * 16)
MOMENT = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("", ""),
        ("https://code.example/a?b=c#L3", "https://code.example/a?b=c#L3"),
        ("repo/path/to/file.py:3", "repo/path/to/file.py:3"),
        (f"https://x.example/?key={API_KEY}&page=2", "https://x.example/?key=txk_srv_ServerKey0000001_…&page=2"),
        (f"https://x.example/{LINK_TOKEN}", "https://x.example/txl_…"),
        (f"https://x.example/?secret={SECRET}", "https://x.example/?secret=…"),
        ("https://me:word@x.example/", "https://x.example/"),
        ("https://token@x.example/a@b", "https://x.example/a@b"),
        (f"https://x.example/?next={quote(LINK_TOKEN.replace('_', '%5F'))}", "https://x.example/"),
        (f"https://x.example/{quote(LINK_TOKEN.replace('_', '%5F'))}/page", ""),
        ("  https://x.example/\x00\n", "https://x.example/"),
    ],
)
def test_of_where_a_key_was_found_nothing_secret_is_kept(url: str, kept: str) -> None:
    assert sighting(API_KEY, url, "").url == kept


@pytest.mark.parametrize("api_key", ["", "txk_srv_", "a_e"])
def test_what_is_too_short_to_be_a_secret_is_not_cut_out_of_a_place(api_key: str) -> None:
    assert sighting(api_key, "https://e.example/a_e", "see e").url == "https://e.example/a_e"


@given(st.text(max_size=3000), st.text(max_size=300), st.integers(0, 3000))
def test_whatever_is_said_of_a_place_is_kept_to_a_length_and_holds_no_key(url: str, source: str, at: int) -> None:
    found = sighting(API_KEY, url[:at] + API_KEY + url[at:], source + API_KEY)
    assert len(found.url) <= URL_LENGTH
    assert len(found.source) <= SOURCE_LENGTH
    assert not holds_token(found.url + found.source)
    assert SECRET not in found.url + found.source
    assert "\0" not in found.url + found.source


def test_places_are_told_apart_by_their_urls_and_not_by_who_says_so() -> None:
    assert Sighting(url="a", source="x").place == Sighting(url="a", source="y").place != Sighting(url="b").place
    assert Sighting(source="x").place == ""


@pytest.mark.parametrize("policy", ExposurePolicy)
@pytest.mark.parametrize("kind", [KeyKind.CONNECT, KeyKind.SCOPED])
def test_a_key_that_lives_among_people_is_noted_and_nothing_else(policy: ExposurePolicy, kind: KeyKind) -> None:
    key = make_key(kind)
    assert expose(key, key.generations[0], policy, "why", NOW) == replace(key, expose_time=NOW, update_time=NOW)


@pytest.mark.parametrize("policy", ExposurePolicy)
@pytest.mark.parametrize("state", [KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.REVOKED])
def test_exposing_a_key_twice_is_exposing_it_once(policy: ExposurePolicy, state: KeyState) -> None:
    key = make_key(
        state=state,
        suspend_time=NOW if state is KeyState.SUSPENDED else None,
        revoke_time=NOW if state is KeyState.REVOKED else None,
    )
    once = expose(key, key.generations[0], policy, "why", NOW)
    assert once.expose_time == NOW
    assert expose(once, key.generations[0], policy, "again", NOW + MOMENT) == once


def test_a_newer_secret_is_exposed_anew() -> None:
    key = make_key(expose_time=NOW)
    newer = replace(key.generations[0], number=2, create_time=NOW + MOMENT)
    later = NOW + 2 * MOMENT
    assert expose(key, newer, ExposurePolicy.NOTIFY_ONLY, "why", later).expose_time == later
