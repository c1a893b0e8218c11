"""What an operator does when something has happened: asks why, and ends many keys at once."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import Result

from tests.cli.runner import Cli
from tests.cli.test_commands import SITE, create_key
from tests.wire.links_helpers import with_wrong_secret

STEPS = ["form", "secret", "exposure", "liveness", "address", "permission", "ownership", "manufacturer"]


def revoke_all(cli: Cli, *options: str) -> Result:
    return cli.run("keys", "revoke-all", "acme", *options)


def state_of(cli: Cli, key_id: str) -> str:
    state: str = cli.json("keys", "get", key_id)["key"]["state"]
    return state.removeprefix("KEY_STATE_")


class TestRevokeAll:
    def test_first_it_shows_what_matches_and_says_how_to_go_on_and_then_it_is_done(self, acme: Cli) -> None:
        keys = [create_key(acme, "server", "--label", "team=grid")[0] for _ in range(2)]
        other, _ = create_key(acme)

        shown = revoke_all(acme, "--label", "team=grid")

        assert shown.exit_code == 0
        assert all(key_id in shown.stdout for key_id in keys)
        assert other not in shown.stdout
        assert shown.stderr == "nothing was revoked yet: repeat this with --expected-count 2\n"
        assert [state_of(acme, key_id) for key_id in (*keys, other)] == ["ACTIVE", "ACTIVE", "ACTIVE"]

        done = revoke_all(acme, "--label", "team=grid", *shown.stderr.split()[-2:], "--reason", "laptop stolen")

        assert (done.exit_code, done.stderr) == (0, "")
        assert all(key_id in done.stdout for key_id in keys)
        assert [state_of(acme, key_id) for key_id in (*keys, other)] == ["REVOKED", "REVOKED", "ACTIVE"]
        assert acme.json("keys", "events", keys[1])["events"][-1]["reason"] == "laptop stolen"

    def test_for_scripts_the_answer_is_json_and_the_hint_stays_beside_it(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        shown = revoke_all(acme, "--kind", "server", "--json")
        answer = json.loads(shown.stdout)
        assert (answer["count"], answer["key_ids"]) == (1, [key_id])
        assert "propagation" not in answer
        assert "--expected-count 1" in shown.stderr
        arguments = ("--kind", "server", "--expected-count", "1", "--request-id", "once", "--json")
        done = json.loads(revoke_all(acme, *arguments).stdout)
        assert (done["count"], done["key_ids"], done["propagation"]["complete"]) == (1, [key_id], True)
        again = json.loads(revoke_all(acme, *arguments).stdout)
        assert (again["count"], again["key_ids"], again["revision"]) == (1, [], done["revision"])

    def test_every_option_narrows_what_matches(self, acme: Cli) -> None:
        clock = acme.service.clock
        actor, _ = create_key(acme)
        clock.turn(timedelta(hours=1))
        middle = f"{clock.now:%Y-%m-%dT%H:%M:%SZ}"
        _, site = create_key(acme, "connect", "--label", "a=1", "--label", "b=2", "--on-behalf-of", actor)
        token = acme.good("links", "create", "--redirect-uri", SITE, "--only-token", stdin=site)
        scoped = acme.json("links", "complete", "battery-1", stdin=token)["scoped_key"]
        clock.turn(timedelta(hours=1))
        latest, _ = create_key(acme, "server", "--label", "a=1")
        now = f"{clock.now:%Y-%m-%dT%H:%M:%SZ}"
        site_id = site.split("_")[2]

        def shown(*options: str) -> set[str]:
            return set(json.loads(revoke_all(acme, *options, "--json").stdout)["key_ids"])

        assert shown("--kind", "server") == {actor, latest}
        assert shown("--kind", "connect") == {site_id}
        assert shown("--reference-id", scoped["reference_id"]) == {scoped["key_id"]}
        assert shown("--label", "a=1") == {site_id, latest}
        assert shown("--label", "a=1", "--label", "b=2") == {site_id}
        assert shown("--created-by-key", actor) == {site_id}
        assert shown("--created-by-key", site_id) == {scoped["key_id"]}
        assert shown("--created-from", middle) == {site_id, scoped["key_id"], latest}
        assert shown("--created-before", middle) == {actor}
        assert shown("--created-from", middle, "--created-before", now, "--kind", "scoped") == {scoped["key_id"]}

    def test_where_nothing_matches_it_says_so(self, acme: Cli) -> None:
        create_key(acme)
        shown = revoke_all(acme, "--kind", "connect")
        assert (shown.exit_code, shown.stdout.strip(), shown.stderr) == (0, "", "no key matches\n")

    def test_when_something_else_matches_nothing_is_revoked_and_both_counts_are_said(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        done = revoke_all(acme, "--kind", "server", "--expected-count", "2")
        assert (done.exit_code, done.stdout) == (1, "")
        assert "MATCHES_CHANGED" in done.stderr
        assert "expected_count: 2" in done.stderr
        assert "found_count: 1" in done.stderr
        assert state_of(acme, key_id) == "ACTIVE"

    def test_a_whole_workspace_is_never_meant(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        for options in ((), ("--expected-count", "1")):
            done = revoke_all(acme, *options)
            assert done.exit_code == 1
            assert "FIELD_INVALID" in done.stderr
            assert "filter: " in done.stderr
        assert state_of(acme, key_id) == "ACTIVE"

    @pytest.mark.parametrize(
        "options",
        [("--kind", "svc"), ("--label", "team"), ("--created-from", "yesterday"), ("--expected-count", "all")],
    )
    def test_what_cannot_be_an_option_is_wrong_usage(self, cli: Cli, options: tuple[str, ...]) -> None:
        done = revoke_all(cli, *options)
        assert (done.exit_code, done.stdout) == (2, "")


class TestExplain:
    def test_a_key_from_standard_input_is_explained_step_by_step(self, acme: Cli) -> None:
        key_id, api_key = create_key(acme)
        said = acme.good("authorize", "devices:list", "--explain", stdin=api_key + "\n")
        for word in ("ALLOW", "PERMITTED", "Every check passed.", f"txk_srv key with id {key_id}", "PASSED"):
            assert word in said
        lines = [line.split() for line in said.splitlines()]
        assert [line[0] for line in lines if line and line[0] in STEPS] == STEPS
        assert api_key.rsplit("_", 1)[-1][:8] not in said

    def test_a_key_named_by_its_id_is_explained_and_nothing_is_read(self, acme: Cli) -> None:
        key_id, _ = create_key(acme, "server", "--allowed-cidr", "192.0.2.0/24")
        allowed = acme.good(
            "authorize", "devices:list", "--explain", "--key-id", key_id, "--client-ip", "192.0.2.1", stdin="not a key"
        )
        assert "SKIPPED" in allowed
        assert "192.0.2.1, against 192.0.2.0/24" in allowed
        denied = acme.run("authorize", "devices:list", "--explain", "--key-id", key_id)
        assert denied.exit_code == 3
        assert "ADDRESS_NOT_PERMITTED" in denied.stdout
        assert "FAILED" in denied.stdout

    def test_a_denial_is_exit_code_3_and_the_key_is_left_as_it_is(self, acme: Cli) -> None:
        key_id, api_key = create_key(acme)
        for stdin, reason in (
            (api_key, "KEY_EXPOSED"),
            (with_wrong_secret(api_key), "KEY_UNKNOWN"),
            ("noise", "KEY_MALFORMED"),
            ("", "KEY_MISSING"),
        ):
            done = acme.run("authorize", "keys:manage", "--explain", "--sec-fetch-site", "cross-site", stdin=stdin)
            assert done.exit_code == 3
            assert reason in done.stdout
        assert state_of(acme, key_id) == "ACTIVE"

    def test_for_scripts_it_is_the_whole_answer(self, acme: Cli) -> None:
        key_id, api_key = create_key(acme)
        acme.good("keys", "suspend", key_id)
        for subject, stdin in (((), api_key), (("--key-id", key_id), "")):
            done = acme.run("authorize", "devices:read", "b-9", "--explain", *subject, "--json", stdin=stdin)
            assert done.exit_code == 3
            told = json.loads(done.stdout)
            assert (told["answer"]["reason"], told["answer"]["decision_id"]) == ("REASON_KEY_SUSPENDED", "")
            assert [step["name"] for step in told["steps"]] == STEPS
            failed = [step["reason"] for step in told["steps"] if step["result"] == "STEP_RESULT_FAILED"]
            assert failed == ["REASON_KEY_SUSPENDED", "REASON_DEVICE_NOT_FOUND"]
            assert (told["explanation"], told["generation"]) == ("The key is suspended.", 1)

    def test_a_key_id_without_explain_is_wrong_usage(self, acme: Cli) -> None:
        key_id, api_key = create_key(acme)
        done = acme.run("authorize", "devices:list", "--key-id", key_id, stdin=api_key)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "--key-id needs --explain" in done.stderr

    def test_a_key_id_that_is_unknown_is_refused(self, acme: Cli) -> None:
        done = acme.run("authorize", "devices:list", "--explain", "--key-id", "0" * 16)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "KEY_NOT_FOUND" in done.stderr

    def test_it_is_for_operators(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        caller = acme.json("callers", "create", "device-api", "--role", "authorizer")["caller_key"]
        done = acme.run(
            *("authorize", "devices:list", "--explain", "--key-id", key_id), env={"TEXTURE_AUTH_CALLER_KEY": caller}
        )
        assert done.exit_code == 5
        assert "CALLER_ROLE_MISSING" in done.stderr
