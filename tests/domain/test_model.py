from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from datetime import timedelta
from importlib import import_module
from pkgutil import iter_modules

import pytest

import server.domain
from server.domain.kinds import KeyKind
from server.domain.model import Caller, ConnectLink, Device, Generation, Key, KeyState, Workspace
from server.domain.token import TokenKind
from tests.builders import NOW, make_caller, make_connect_link, make_generation, make_key

SECOND = timedelta(seconds=1)
DATA_CLASSES = sorted(
    {
        thing
        for module in iter_modules(server.domain.__path__)
        for _, thing in inspect.getmembers(import_module(f"server.domain.{module.name}"), is_dataclass)
    },
    key=str,
)


@pytest.mark.parametrize("data_class", DATA_CLASSES)
def test_facts_cannot_be_changed_and_have_no_other_attributes(data_class: type) -> None:
    assert data_class.__dataclass_params__.frozen  # type: ignore[attr-defined] # the standard library's own name
    assert "__slots__" in vars(data_class)


@pytest.mark.parametrize("entity", [Workspace, Generation, Key, Device, ConnectLink, Caller])
def test_the_many_fields_of_an_entity_are_given_by_name(entity: type) -> None:
    assert all(part.kw_only for part in fields(entity))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(-SECOND, KeyState.ACTIVE, id="a second before"),
        pytest.param(timedelta(), KeyState.EXPIRED, id="at the instant"),
        pytest.param(SECOND, KeyState.EXPIRED, id="a second after"),
    ],
)
def test_a_key_is_expired_from_its_expire_time_on(after: timedelta, expected: KeyState) -> None:
    assert make_key(expire_time=NOW).state_at(NOW + after) is expected


def test_a_key_without_an_expire_time_never_expires() -> None:
    assert make_key().state_at(NOW + timedelta(days=36500)) is KeyState.ACTIVE


@pytest.mark.parametrize("state", [KeyState.SUSPENDED, KeyState.REVOKED])
def test_a_key_that_was_switched_off_is_not_called_expired(state: KeyState) -> None:
    assert make_key(state=state, expire_time=NOW - SECOND).state_at(NOW) is state


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(-SECOND, False, id="a second before"),
        pytest.param(timedelta(), True, id="at the instant"),
        pytest.param(SECOND, True, id="a second after"),
    ],
)
def test_a_generation_is_retired_from_its_retire_time_on(after: timedelta, expected: bool) -> None:
    generation = make_generation(TokenKind.SERVER, "0" * 16, retire_time=NOW)
    assert generation.retired(NOW + after) is expected


def test_a_generation_in_force_is_not_retired() -> None:
    assert not make_generation(TokenKind.SERVER, "0" * 16).retired(NOW + timedelta(days=36500))


def test_no_representation_shows_a_digest() -> None:
    for thing in (make_key(), make_key(KeyKind.SCOPED), make_caller(), make_connect_link()):
        assert "digest" not in repr(thing)
