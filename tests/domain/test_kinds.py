from __future__ import annotations

import pytest

from server.domain.kinds import CEILING, NEEDS_DEVICE, TOKEN_KIND, KeyKind

# What each kind may do at most, written out once more, so that widening one takes two hands.
MOST = {
    KeyKind.SERVER: {
        "devices:list",
        "devices:read",
        "devices:command",
        "connect_links:create",
        "keys:manage",
        "workspace:configure",
    },
    KeyKind.CONNECT: {"connect_links:create"},
    KeyKind.SCOPED: {"devices:list", "devices:read", "devices:command"},
}


@pytest.mark.parametrize("kind", KeyKind)
def test_the_most_that_a_kind_may_do_is_what_the_design_says(kind: KeyKind) -> None:
    assert {permission.value for permission in CEILING[kind]} == MOST[kind]


def test_every_kind_has_a_ceiling_and_a_kind_of_token_of_its_own() -> None:
    assert set(CEILING) == set(KeyKind)
    assert set(TOKEN_KIND) == set(KeyKind)
    assert len(set(TOKEN_KIND.values())) == len(KeyKind)


def test_reading_and_commanding_are_about_one_device_and_nothing_else_is() -> None:
    assert {permission.value for permission in NEEDS_DEVICE} == {"devices:read", "devices:command"}
