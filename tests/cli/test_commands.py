"""Every command on its good path, for people and for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from server.cli.root import root
from tests.cli.runner import Cli

SITE = "https://app.example/connected"


def create_key(cli: Cli, kind: str = "server", *more: str) -> tuple[str, str]:
    """Create a key, and return its id and the key in full."""
    given = ("--redirect-uri", SITE) if kind == "connect" else ()
    made = cli.json("keys", "create", "acme", "--kind", kind, "--display-name", "Backend", *given, *more)
    return made["key"]["key_id"], made["api_key"]


class TestWorkspaces:
    def test_create_get_list_and_update_for_scripts(self, cli: Cli) -> None:
        made = cli.json(
            *("workspaces", "create", "acme", "--display-name", "Acme Energy", "--environment", "production"),
            *("--redirect-uri", SITE, "--exposure-policy", "notify-only", "--scoped-key-lifetime", "30d"),
            *("--connect-link-lifetime", "90s", "--request-id", "once"),
        )
        workspace = made["workspace"]
        assert workspace["workspace_id"] == "acme"
        assert workspace["environment"] == "ENVIRONMENT_PRODUCTION"
        assert workspace["redirect_uris"] == [SITE]
        assert workspace["exposure_policy"] == "EXPOSURE_POLICY_NOTIFY_ONLY"
        assert workspace["scoped_key_lifetime"] == "2592000s"
        assert workspace["connect_link_lifetime"] == "90s"
        assert made["revision"]
        assert cli.json("workspaces", "get", "acme")["workspace"] == workspace
        assert cli.json("workspaces", "list") == {"workspaces": [workspace]}
        updated = cli.json(
            *("workspaces", "update", "acme", "--display-name", "New", "--no-redirect-uris"),
            *("--exposure-policy", "suspend", "--scoped-key-lifetime", "1h", "--connect-link-lifetime", "15m"),
        )["workspace"]
        assert (updated["display_name"], updated["redirect_uris"]) == ("New", [])
        assert updated["exposure_policy"] == "EXPOSURE_POLICY_SUSPEND"
        assert (updated["scoped_key_lifetime"], updated["connect_link_lifetime"]) == ("3600s", "900s")

    def test_create_get_list_and_update_for_people(self, cli: Cli) -> None:
        said = cli.good("workspaces", "create", "--display-name", "Acme Energy", "--environment", "sandbox")
        workspace_id = said.split("workspace_id")[1].split()[0]
        assert workspace_id.startswith("ws-")
        for said in (
            cli.good("workspaces", "get", workspace_id),
            cli.good("workspaces", "list"),
            cli.good("workspaces", "update", workspace_id, "--redirect-uri", SITE),
        ):
            assert workspace_id in said
            assert "Acme Energy" in said
            assert "SANDBOX" in said


class TestErasingEndUsers:
    ERASE = ("workspaces", "erase-end-user", "acme", "user-1")

    def test_an_end_user_is_erased_for_scripts(self, acme: Cli) -> None:
        acme.good("devices", "register", "acme", "b-1", "b-2", "--reference-id", "user-1")
        actor, _ = create_key(acme)
        said = acme.json(*self.ERASE, "--yes", "--reason", "asked", "--on-behalf-of", actor, "--request-id", "once")
        assert (said["devices_removed"], said["keys_removed"], said["connect_links_removed"]) == (2, 0, 0)
        assert said["events_rewritten"] == 2
        assert said["propagation"]["complete"]
        assert acme.json("devices", "list", "acme") == {"devices": []}
        assert (
            acme.json(*self.ERASE, "--yes", "--reason", "asked", "--on-behalf-of", actor, "--request-id", "once")[
                "devices_removed"
            ]
            == 0
        )
        (event,) = acme.service.query("SELECT * FROM event WHERE subject_kind = 'end_user'")
        assert (event["reason"], event["on_behalf_of_key_id"], event["request_id"]) == ("asked", actor, "once")

    def test_people_are_asked_first_and_told_what_was_removed(self, acme: Cli) -> None:
        acme.good("devices", "register", "acme", "b-1", "--reference-id", "user-1")
        done = acme.run(*self.ERASE, stdin="y\n")
        assert done.exit_code == 0
        assert "'user-1'" in done.stderr
        assert done.stdout == "removed 1 devices, 0 keys, 0 links; rewrote 1 events\n"

    @pytest.mark.parametrize("answer", ["n\n", "\n", ""])
    def test_without_a_yes_nothing_is_erased(self, acme: Cli, answer: str) -> None:
        acme.good("devices", "register", "acme", "b-1", "--reference-id", "user-1")
        assert acme.run(*self.ERASE, stdin=answer).exit_code == 1
        assert "b-1" in acme.good("devices", "list", "acme")


class TestKeys:
    def test_create_get_list_and_update_for_scripts(self, acme: Cli) -> None:
        made = acme.json(
            *("keys", "create", "acme", "--kind", "server", "--display-name", "Nightly", "--description", "report"),
            *("--label", "team=grid", "--label", "stage=test", "--permission", "devices:read"),
            *("--allowed-cidr", "192.0.2.0/24", "--allowed-manufacturer", "acme", "--expires", "2031-01-01T00:00:00Z"),
        )
        key = made["key"]
        assert made["api_key"].startswith(f"txk_srv_{key['key_id']}_")
        assert key["labels"] == {"team": "grid", "stage": "test"}
        assert key["permissions"] == ["devices:read"]
        assert key["allowed_cidrs"] == ["192.0.2.0/24"]
        assert key["allowed_manufacturers"] == ["acme"]
        assert key["expire_time"] == "2031-01-01T00:00:00Z"
        assert acme.json("keys", "get", key["key_id"])["key"] == key
        create_key(acme, "connect")
        assert acme.json("keys", "list", "acme", "--kind", "server", "--label", "team=grid") == {"keys": [key]}
        assert acme.json("keys", "list", "acme", "--state", "revoked") == {"keys": []}
        updated = acme.json(
            *("keys", "update", key["key_id"], "--display-name", "Daily", "--label", "a=b", "--reason", "renamed"),
            *("--clear", "allowed_cidrs", "--clear", "expire_time", "--clear", "description"),
            *("--permission", "devices:read", "--permission", "devices:list", "--allowed-manufacturer", "volt"),
        )["key"]
        assert updated["display_name"] == "Daily"
        assert updated["labels"] == {"a": "b"}
        assert updated["description"] == ""
        assert updated["allowed_cidrs"] == []
        assert updated["allowed_manufacturers"] == ["volt"]
        assert updated["permissions"] == ["devices:list", "devices:read"]
        assert "expire_time" not in updated

    def test_suspend_resume_revoke_and_events_for_scripts(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        assert acme.json("keys", "suspend", key_id, "--reason", "audit")["key"]["state"] == "KEY_STATE_SUSPENDED"
        assert acme.json("keys", "resume", key_id)["key"]["state"] == "KEY_STATE_ACTIVE"
        assert acme.json("keys", "revoke", key_id, "--reason", "lost")["key"]["state_reason"] == "lost"
        events = acme.json("keys", "events", key_id)["events"]
        assert [event["type"] for event in events] == ["key.created", "key.suspended", "key.resumed", "key.revoked"]

    def test_rotate_and_lookup_for_scripts(self, acme: Cli) -> None:
        key_id, old = create_key(acme)
        rotated = acme.json("keys", "rotate", key_id, "--overlap", "24h")
        assert rotated["key"]["key_id"] == key_id
        assert acme.json("keys", "lookup", stdin=old)["generation"] == 1
        assert acme.json("keys", "lookup", stdin=rotated["api_key"] + "\n")["generation"] == 2
        again = acme.json("keys", "rotate", key_id, "--force")
        assert acme.json("keys", "lookup", stdin=again["api_key"])["generation"] == 3

    def test_the_same_for_people(self, acme: Cli) -> None:
        said = acme.good("keys", "create", "acme", "--kind", "server", "--display-name", "Backend", "--label", "a=b")
        assert "Shown once" in said
        api_key = said.split()[-1]
        key_id = api_key.split("_")[2]
        assert "a=b" in said
        for arguments in (
            ("get", key_id),
            ("list", "acme"),
            ("update", key_id, "--description", "x"),
            ("suspend", key_id),
            ("resume", key_id),
        ):
            assert key_id in acme.good("keys", *arguments), arguments
        assert key_id in acme.good("keys", "lookup", stdin=api_key)
        assert "key.suspended" in acme.good("keys", "events", key_id)
        assert acme.good("keys", "rotate", key_id).split()[-1].startswith(f"txk_srv_{key_id}_")
        assert "REVOKED" in acme.good("keys", "revoke", key_id)

    def test_a_change_may_be_asked_for_on_behalf_of_a_customers_key(self, acme: Cli) -> None:
        actor, _ = create_key(acme)
        made = acme.json(
            *("keys", "create", "acme", "--kind", "server", "--display-name", "x", "--on-behalf-of", actor)
        )
        assert made["key"]["created_by_key_id"] == actor


class TestLinks:
    def test_create_get_and_complete_for_scripts(self, acme: Cli) -> None:
        _, site = create_key(acme, "connect")
        made = acme.json("links", "create", "--redirect-uri", SITE, "--client-state", "s 1", stdin=site)
        link_id, token = made["connect_link"]["connect_link_id"], made["link_token"]
        assert acme.json("links", "get", link_id)["connect_link"] == made["connect_link"]
        assert acme.json("links", "get", stdin=token)["connect_link"] == made["connect_link"]
        done = acme.json("links", "complete", "battery-1", "battery-2", "--manufacturer", "acme", stdin=token)
        assert [device["device_id"] for device in done["devices"]] == ["battery-1", "battery-2"]
        assert done["scoped_api_key"] in done["redirect_uri"]
        assert done["connect_link"]["state"] == "CONNECT_LINK_STATE_COMPLETED"

    def test_cancel_for_scripts(self, acme: Cli) -> None:
        _, backend = create_key(acme)
        made = acme.json(
            *("links", "create", "--redirect-uri", "https://backend.example/done", "--reference-id", "user-1"),
            stdin=backend,
        )
        assert made["connect_link"]["reference_id"] == "user-1"
        cancelled = acme.json("links", "cancel", made["connect_link"]["connect_link_id"], "--reason", "left")
        assert cancelled["connect_link"]["state"] == "CONNECT_LINK_STATE_CANCELLED"

    def test_the_same_for_people(self, acme: Cli) -> None:
        _, site = create_key(acme, "connect")
        said = acme.good("links", "create", "--redirect-uri", SITE, stdin=site)
        token = said.split()[-1]
        link_id = token.split("_")[1]
        assert "Shown once" in said
        assert "OPEN" in acme.good("links", "get", link_id)
        assert "OPEN" in acme.good("links", "get", stdin=token)
        done = acme.good("links", "complete", "battery-1", stdin=token)
        assert "COMPLETED" in done
        assert done.split()[-1].startswith(SITE + "?texture_scoped_key=txk_scp_")
        other = acme.good("links", "create", "--redirect-uri", SITE, "--only-token", stdin=site).strip()
        assert "CANCELLED" in acme.good("links", "cancel", other.split("_")[1])


class TestDevices:
    def test_every_command_for_scripts(self, acme: Cli) -> None:
        registered = acme.json(
            *("devices", "register", "acme", "b-1", "b-2", "--reference-id", "user-1", "--manufacturer", "acme")
        )
        assert [device["device_id"] for device in registered["devices"]] == ["b-1", "b-2"]
        assert acme.json("devices", "get", "b-1")["device"] == registered["devices"][0]
        assert acme.json("devices", "list", "acme", "--reference-id", "user-1", "--manufacturer", "acme") == registered
        moved = acme.json(
            *("devices", "transfer", "acme", "b-1", "--from", "user-1", "--to", "user-2", "--reason", "sold")
        )
        assert moved["devices"][0]["reference_id"] == "user-2"
        removed = acme.json("devices", "remove", "acme", "b-1", "b-9", "--allow-missing")
        assert removed["removed_device_ids"] == ["b-1"]

    def test_every_command_for_people(self, acme: Cli) -> None:
        for arguments in (
            ("register", "acme", "b-1", "--reference-id", "user-1"),
            ("get", "b-1"),
            ("list", "acme"),
            ("transfer", "acme", "b-1", "--from", "user-1", "--to", "user-2"),
            ("remove", "acme", "b-1"),
        ):
            assert "b-1" in acme.good("devices", *arguments), arguments
        done = acme.run("devices", "list", "acme")
        assert (done.stdout, done.stderr) == ("", "no devices\n")


class TestCallers:
    def test_every_command_for_scripts(self, cli: Cli) -> None:
        made = cli.json("callers", "create", "device-api", "--role", "authorizer", "--role", "key-admin")
        caller = made["caller"]
        assert made["caller_key"].startswith(f"txk_svc_{caller['key_id']}_")
        assert caller["roles"] == ["ROLE_AUTHORIZER", "ROLE_KEY_ADMIN"]
        assert cli.json("callers", "get", "device-api")["caller"] == caller
        assert caller in cli.json("callers", "list")["callers"]
        updated = cli.json("callers", "update", "device-api", "--display-name", "Device API", "--role", "devices")
        assert (updated["caller"]["display_name"], updated["caller"]["roles"]) == ("Device API", ["ROLE_DEVICES"])
        assert cli.json("callers", "rotate", "device-api", "--overlap", "1h")["caller_key"] != made["caller_key"]
        assert cli.json("callers", "rotate", "device-api", "--force")["caller_key"]
        assert cli.json("callers", "revoke", "device-api", "--reason", "gone")["caller"]["revoke_reason"] == "gone"

    def test_every_command_for_people(self, cli: Cli) -> None:
        assert "Shown once" in cli.good("callers", "create", "device-api", "--role", "watcher")
        for arguments in (
            ("get", "device-api"),
            ("list",),
            ("update", "device-api", "--role", "connect"),
            ("rotate", "device-api"),
            ("revoke", "device-api"),
        ):
            assert "device-api" in cli.good("callers", *arguments), arguments


class TestAuthorize:
    def test_an_answer_for_scripts(self, acme: Cli) -> None:
        _, api_key = create_key(acme)
        acme.good("devices", "register", "acme", "b-1", "--reference-id", "user-1")
        answer = acme.json("authorize", "devices:read", "b-1", stdin=api_key)
        assert (answer["decision"], answer["reason"]) == ("DECISION_ALLOW", "REASON_PERMITTED")
        assert acme.json("authorize", "devices:list", "--at-least-revision", answer["revision"], stdin=api_key)

    def test_what_a_gateway_saw_counts(self, acme: Cli) -> None:
        _, api_key = create_key(acme, "server", "--allowed-cidr", "192.0.2.0/24")
        assert "ALLOW" in acme.good("authorize", "devices:list", "--client-ip", "192.0.2.1", stdin=api_key)
        denied = acme.run("authorize", "devices:list", "--client-ip", "198.51.100.1", stdin=api_key)
        assert "ADDRESS_NOT_PERMITTED" in denied.stdout
        for signs in (
            ("--sec-fetch-site", "cross-site"),
            ("--origin", "https://shop.example", "--user-agent", "Mozilla/5.0 (X11) AppleWebKit/537"),
        ):
            _, other = create_key(acme)
            exposed = acme.run("authorize", "devices:list", *signs, stdin=other)
            assert exposed.exit_code == 3
            assert "KEY_EXPOSED" in exposed.stdout
        _, other = create_key(acme)
        assert "ALLOW" in acme.good("authorize", "devices:list", "--sec-fetch-mode", "cors", stdin=other)

    def test_every_denial_says_why(self, acme: Cli) -> None:
        _, api_key = create_key(acme, "connect")
        denied = acme.run("authorize", "keys:manage", stdin=api_key)
        assert denied.exit_code == 3
        for word in ("DENY", "PERMISSION_NOT_GRANTED", "403", "keys:manage"):
            assert word in denied.stdout
        told = json.loads(acme.run("authorize", "devices:list", "--json").stdout)
        assert (told["decision"], told["reason"]) == ("DECISION_DENY", "REASON_KEY_MISSING")


class TestWebhooks:
    URL = "https://hooks.invalid/acme"

    def test_an_endpoint_from_its_creation_to_its_end_for_scripts(self, acme: Cli) -> None:
        actor, _ = create_key(acme)
        asked = ("--on-behalf-of", actor, "--request-id")
        types = ("--event-type", "key.revoked", "--event-type", "key.created")
        made = acme.json("webhooks", "create", "acme", "--url", self.URL, "--description", "CRM", *types, *asked, "1")
        endpoint = made["webhook_endpoint"]
        name = endpoint["webhook_endpoint_id"]
        assert made["signing_secret"].startswith("whsec_")
        assert (endpoint["url"], endpoint["description"]) == (self.URL, "CRM")
        assert endpoint["event_types"] == ["key.created", "key.revoked"]
        assert acme.json("webhooks", "get", name)["webhook_endpoint"] == endpoint
        assert acme.json("webhooks", "list", "acme") == {"webhook_endpoints": [endpoint]}
        tested = acme.json("webhooks", "test", name, *asked, "2")["webhook_delivery"]
        assert tested["event_type"] == "webhook.test"
        listed = acme.json("webhooks", "deliveries", name)["webhook_deliveries"]
        assert [one["webhook_delivery_id"] for one in listed] == [tested["webhook_delivery_id"]]
        assert acme.json("webhooks", "deliveries", name, "--state", "delivered") == {"webhook_deliveries": []}
        assert acme.json("webhooks", "replay", name, "msg_nothing", *asked, "3")["count"] == 0
        assert acme.json("webhooks", "replay", name, "--failed-since", "2020-01-01T00:00:00Z")["count"] in (0, 1)
        rotated = acme.json("webhooks", "rotate-secret", name, "--overlap", "24h", *asked, "4")
        assert [one["number"] for one in rotated["webhook_endpoint"]["secrets"]] == [1, 2]
        more = ("--url", f"{self.URL}/2", "--description", "", "--all-event-types", "--state", "disabled")
        updated = acme.json("webhooks", "update", name, *more, *asked, "5")["webhook_endpoint"]
        assert (updated["url"], updated["description"], updated["event_types"]) == (f"{self.URL}/2", "", [])
        assert updated["disable_reason"] == "WEBHOOK_DISABLE_REASON_REQUESTED"
        assert acme.json("webhooks", "delete", name, "--reason", "moved", *asked, "6")["revision"]
        assert acme.json("webhooks", "list", "acme") == {"webhook_endpoints": []}

    def test_an_endpoint_for_people(self, acme: Cli) -> None:
        said = acme.good("webhooks", "create", "acme", "--url", self.URL)
        name = said.split("webhook_endpoint_id")[1].split()[0]
        assert "Shown once" in said
        assert "whsec_" in said
        for said in (acme.good("webhooks", "get", name), acme.good("webhooks", "list", "acme")):
            assert self.URL in said
            assert "ACTIVE" in said
            assert "whsec_" not in said
        acme.good("webhooks", "test", name)
        assert "webhook.test" in acme.good("webhooks", "deliveries", name)
        secret = acme.good("webhooks", "rotate-secret", name, "--only-secret")
        assert secret.startswith("whsec_")
        assert secret.count("\n") == 1


def test_only_key_prints_the_key_and_nothing_else(acme: Cli) -> None:
    key = acme.good("keys", "create", "acme", "--kind", "server", "--display-name", "x", "--only-key")
    assert key.startswith("txk_srv_")
    assert key.count("\n") == 1
    key_id = key.split("_")[2]
    assert acme.good("keys", "rotate", key_id, "--only-key").startswith(f"txk_srv_{key_id}_")
    assert acme.good("callers", "create", "abc", "--role", "devices", "--only-key").startswith("txk_svc_")
    assert acme.good("callers", "rotate", "abc", "--only-key").startswith("txk_svc_")
    site = create_key(acme, "connect")[1]
    token = acme.good("links", "create", "--redirect-uri", SITE, "--only-token", stdin=site)
    assert token.startswith("txl_")
    scoped = acme.good("links", "complete", "b-1", "--only-key", stdin=token)
    assert scoped.startswith("txk_scp_")
    assert scoped.count("\n") == token.count("\n") == 1


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Name every command and group."""
    yield path
    if isinstance(group, click.Group):
        for name in group.list_commands(click.Context(group)):
            yield from commands(part(group, name), (*path, name))


def part(command: click.Command, *path: str) -> click.Command:
    """Return the command that a path of names leads to."""
    for name in path:
        assert isinstance(command, click.Group)
        inner = command.get_command(click.Context(command), name)
        assert inner is not None
        command = inner
    return command


COMMANDS = list(commands(root))
CALLERS_MODULES = (
    "authorize",
    "callers",
    "client",
    "devices",
    "keys",
    "links",
    "output",
    "root",
    "webhooks",
    "workspaces",
)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(path: tuple[str, ...]) -> None:
    command = part(root, *path)
    assert command.help
    context = click.Context(command, info_name="texture-auth")
    assert "Usage:" in command.get_help(context)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_takes_a_secret_as_an_argument(path: tuple[str, ...]) -> None:
    names = {parameter.name for parameter in part(root, *path).params}
    assert names.isdisjoint({"api_key", "caller_key", "link_token", "key", "token", "secret", "peppers"})


def test_what_calls_a_service_brings_nothing_of_the_server_along() -> None:
    program = f"import sys, {', '.join(f'server.cli.{name}' for name in CALLERS_MODULES)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    assert {"server.app", "server.settings", "peewee", "psycopg", "pydantic"}.isdisjoint(done.stdout.split())
