"""What an operator asks about a key in wrong hands, and how an old secret is ended."""

from __future__ import annotations

import json
import shlex
from datetime import timedelta
from typing import Any

import pytest

from server.store import usage_rows
from tests.cli.runner import Cli
from tests.cli.test_commands import SITE, create_key
from tests.cli.test_incident import state_of

HOUR = timedelta(hours=1)
BACKEND = "https://backend.example/done"


def use(cli: Cli, api_key: str, permission: str = "devices:read", device_id: str = "battery-1") -> None:
    cli.run("authorize", permission, device_id, stdin=api_key)


def rotated(cli: Cli) -> tuple[str, str]:
    """Return the id and the old secret of a key that was rotated."""
    key_id, api_key = create_key(cli)
    cli.good("keys", "rotate", key_id, "--overlap", "24h", "--only-key")
    return key_id, api_key


@pytest.fixture
def used(acme: Cli) -> tuple[Cli, str, str]:
    """A key that was used for this and that, its id and it in full."""
    acme.good("devices", "register", "acme", "battery-1", "battery-2", "--reference-id", "user-1")
    key_id, api_key = create_key(acme)
    for device_id in ("battery-1", "battery-2", "battery-2", "unheard-of"):
        use(acme, api_key, device_id=device_id)
    return acme, key_id, api_key


class TestIncident:
    def test_it_tells_whose_the_key_is_what_it_was_used_for_and_how_to_contain_it(
        self, used: tuple[Cli, str, str]
    ) -> None:
        cli, key_id, api_key = used
        for said in (cli.good("incident", key_id), cli.good("incident", stdin=api_key)):
            for word in ("acme", "dev-operator", "devices:read", "battery-1", "battery-2", "DEVICE_NOT_FOUND"):
                assert word in said
            assert f"texture-auth keys suspend {key_id}" in said
            assert f"texture-auth keys revoke {key_id}" in said
            assert "INCOMPLETE" not in said
            assert api_key.rsplit("_", 1)[-1][:8] not in said
        assert "generation 1 of its secrets" in said

    def test_for_scripts_it_is_one_object(self, used: tuple[Cli, str, str]) -> None:
        cli, key_id, _ = used
        told = cli.json("incident", key_id)
        assert told["key"]["key_id"] == key_id
        assert {(use["reason"], use["count"]) for use in told["usage"]["totals"]} == {
            ("REASON_PERMITTED", "3"),
            ("REASON_DEVICE_NOT_FOUND", "1"),
        }
        assert {touch["device_id"]: touch["count"] for touch in told["devices"]["touches"]} == {
            "battery-1": "1",
            "battery-2": "2",
        }
        assert (told["usage"]["incomplete"], told["devices"]["incomplete"]) == (False, False)
        assert (told["created_by_key"], told["connect_link"], told["created_keys"]["count"]) == (None, None, 0)
        assert [event["type"] for event in told["events"]] == ["key.created"]

    def test_the_commands_that_it_names_do_what_they_say(self, used: tuple[Cli, str, str]) -> None:
        cli, key_id, _ = used
        child, _ = create_key(cli, "connect", "--on-behalf-of", key_id)
        commands = cli.json("incident", key_id)["commands"]
        assert len(commands) == 4
        for command in commands:
            name, *arguments = shlex.split(command)
            assert name == "texture-auth"
            cli.good(*arguments)
        assert state_of(cli, key_id) == state_of(cli, child) == "REVOKED"
        assert cli.json("incident", key_id)["commands"] == []
        assert "nothing is left to be done" in cli.good("incident", key_id)

    def test_where_something_is_missing_it_says_so(
        self, used: tuple[Cli, str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(usage_rows, "MOST_TOUCHES", 2)
        cli, key_id, api_key = used
        cli.good("incident", key_id)
        cli.good("devices", "register", "acme", "battery-3", "--reference-id", "user-1")
        use(cli, api_key, device_id="battery-3")
        assert "INCOMPLETE: it has touched more devices" in cli.good("incident", key_id)
        assert cli.json("incident", key_id)["devices"]["incomplete"] is True
        assert "incomplete" in cli.run("devices", "keys", "battery-1").stderr

    def test_lineage_goes_up_to_the_key_that_asked_and_down_to_what_was_made(self, acme: Cli) -> None:
        parent, _ = create_key(acme)
        _, site = create_key(acme, "connect", "--on-behalf-of", parent)
        token = acme.good("links", "create", "--redirect-uri", SITE, "--only-token", stdin=site)
        scoped = acme.json("links", "complete", "battery-1", stdin=token)["scoped_key"]
        site_id = site.split("_")[2]

        def told(key_id: str) -> Any:
            return acme.json("incident", key_id)

        assert told(parent)["created_keys"] == {"count": 1, "key_ids": [site_id]}
        assert told(site_id)["created_by_key"]["key_id"] == parent
        assert told(site_id)["created_keys"]["key_ids"] == [scoped["key_id"]]
        of_scoped = told(scoped["key_id"])
        assert of_scoped["created_by_key"]["key_id"] == site_id
        assert of_scoped["connect_link"]["reference_id"] == scoped["reference_id"]
        assert scoped["reference_id"] in acme.good("incident", scoped["key_id"])

    def test_a_key_admin_may_ask_and_sees_all_but_the_link(self, acme: Cli) -> None:
        _, site = create_key(acme, "connect")
        token = acme.good("links", "create", "--redirect-uri", SITE, "--only-token", stdin=site)
        scoped = acme.json("links", "complete", "battery-1", stdin=token)["scoped_key"]
        caller = acme.json("callers", "create", "dashboard", "--role", "key-admin")["caller_key"]
        done = acme.run("incident", scoped["key_id"], "--json", env={"TEXTURE_AUTH_CALLER_KEY": caller})
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert (told["connect_link"], told["key"]["connect_link_id"]) == (None, scoped["connect_link_id"])

    def test_a_key_that_is_unknown_is_refused(self, acme: Cli) -> None:
        for done in (acme.run("incident", "0" * 16), acme.run("incident", stdin="noise")):
            assert (done.exit_code, done.stdout) == (1, "")


class TestUsage:
    def test_uses_are_listed_by_the_hour(self, used: tuple[Cli, str, str]) -> None:
        cli, key_id, _ = used
        said = cli.good("keys", "usage", key_id)
        assert "2030-01-01 12:00:00Z" in said
        assert "PERMITTED" in said
        assert cli.json("keys", "usage", key_id, "--before", "2030-01-01T12:00:00Z") == {"hours": []}

    def test_keys_are_listed_that_have_touched_a_device(self, used: tuple[Cli, str, str]) -> None:
        cli, key_id, _ = used
        assert [touch["key_id"] for touch in cli.json("devices", "keys", "battery-2")["touches"]] == [key_id]
        assert cli.run("devices", "keys", "unheard-of").exit_code == 1


class TestRotation:
    def test_an_old_secret_that_is_used_is_told_of_and_not_ended_unless_forced(self, acme: Cli) -> None:
        key_id, api_key = rotated(acme)
        use(acme, api_key, "devices:list", "")
        (old,) = acme.json("keys", "rotation", key_id)["replaced"]
        assert ([one["caller_id"] for one in old["uses"]], old["safe_to_retire"]) == (["dev-operator"], False)
        assert "dev-operator" in acme.good("keys", "rotation", key_id)
        refused = acme.run("keys", "retire", key_id, "1")
        assert refused.exit_code == 1
        assert "ROTATION_IN_USE" in refused.stderr
        assert "last_caller_id: dev-operator" in refused.stderr
        acme.good("keys", "retire", key_id, "1", "--force")
        assert acme.run("authorize", "devices:list", stdin=api_key).exit_code == 3

    def test_one_that_nobody_uses_is_ended(self, acme: Cli) -> None:
        key_id, _ = rotated(acme)
        acme.service.clock.turn(HOUR)
        assert acme.run("keys", "retire", key_id, "1", "--quiet-for", "2h").exit_code == 1
        acme.good("keys", "retire", key_id, "1", "--reason", "unused")
        assert acme.json("keys", "events", key_id)["events"][-1]["type"] == "key.generation_retired"
