from __future__ import annotations

import re
import string
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.revision import Revision, decode

REVISION = Revision(UUID("0198c3a0-7000-7000-8000-000000000001"), 42, 2**63 - 1)

numbers = st.integers(0, 2**63 - 1)
revisions = st.builds(Revision, st.uuids(), numbers, numbers)


@given(revisions)
def test_a_revision_is_read_back_as_it_was_written(revision: Revision) -> None:
    assert decode(revision.encode()) == revision


@given(revisions)
def test_a_token_has_43_characters_that_need_no_escaping_in_a_url(revision: Revision) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", revision.encode())


@given(revisions, revisions)
def test_two_revisions_never_share_a_token(one: Revision, other: Revision) -> None:
    assert (one.encode() == other.encode()) is (one == other)


@given(revisions, st.data())
def test_a_changed_token_is_none_or_another_revision(revision: Revision, data: st.DataObject) -> None:
    token = revision.encode()
    place = data.draw(st.integers(0, len(token)))
    removed = data.draw(st.integers(0, 2))
    added = data.draw(st.text(string.ascii_letters + string.digits + "-_+/= \n", max_size=2) | st.text(max_size=2))
    changed = token[:place] + added + token[place + removed :]
    if changed != token:
        assert decode(changed) != revision


@given(st.text(max_size=60))
def test_what_was_never_written_is_none_and_no_error(noise: str) -> None:
    revision = decode(noise)
    assert revision is None or revision.encode() == noise


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param(REVISION.encode() + "=", id="with the padding of base64"),
        pytest.param(REVISION.encode() + "\n", id="with a newline"),
        pytest.param(REVISION.encode()[:-1], id="one character short"),
        pytest.param(REVISION.encode() + "A", id="one character long"),
        pytest.param(REVISION.encode() * 2, id="twice"),
        pytest.param("/" * 42 + "8", id="in the other alphabet of base64"),
        pytest.param("_" * 43, id="with bits set that mean nothing"),
        pytest.param("\N{SNOWMAN}" * 43, id="in no alphabet of base64"),
        pytest.param("A" * 1_000_000, id="a million characters"),
    ],
)
def test_a_token_in_any_other_form_is_none(token: str) -> None:
    assert decode(token) is None


def test_a_restored_backup_has_other_tokens_than_its_original() -> None:
    restored = Revision(REVISION.epoch, REVISION.number, REVISION.nonce - 1)
    assert restored.encode() != REVISION.encode()
    assert decode(restored.encode()) != REVISION
