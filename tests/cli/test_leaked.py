"""What people and scanners do about keys that are where they must not be: find them, make sure, report them."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import pytest

from server.domain.token import ALPHABET, TokenKind, mint, new_id
from tests.cli.runner import Cli
from tests.cli.test_commands import create_key

GITLEAKS = Path(sys.executable).with_name("gitleaks")
KINDS = {kind: mint(kind, new_id()).text for kind in TokenKind}


def look_alike(random: Random, kind: TokenKind) -> str:
    """Return what has the form of a key and, all but surely, another checksum."""
    public_id = "".join(random.choices(ALPHABET, k=16))
    return f"{kind.value}_{public_id}_{''.join(random.choices(ALPHABET, k=38))}"


def places_of(api_key: str) -> dict[str, str]:
    """Return files that hold a key, as keys are found in the wild."""
    return {
        "source.py": f'import requests\nrequests.get(URL, headers={{"Texture-Api-Key": "{api_key}"}})\n',
        "source.ts": f"const key = `{api_key}`;\n",
        "config.json": json.dumps({"texture": {"apiKey": api_key}}),
        "escaped.json": json.dumps({"body": json.dumps({"apiKey": f"{api_key}\n"})}),
        "values.yaml": f"texture:\n  api_key: {api_key}\n",
        ".env": f"TEXTURE_API_KEY={api_key}\n",
        "urls.txt": f"https://app.example/connected?texture_scoped_key={api_key}&client_state=1\n",
        "encoded-urls.txt": f"https://login.example/?next=https%3A%2F%2Fapp.example%2F%3Fkey%3D{api_key}%26x%3D1\n",
        "server.log": f"2030-01-01T12:00:00Z INFO request header='Texture-Api-Key: {api_key}' status=200\n",
        "prefixed.log": f"key_{api_key}_end\n",
    }


def gitleaks(folder: Path, rules: str) -> str:
    """Run the real gitleaks over a folder, and return its report."""
    config, report = folder.parent / "rules.toml", folder.parent / "report.json"
    config.write_text(rules)
    command = [GITLEAKS, "dir", folder, "--config", config, "--report-format", "json", "--report-path", report]
    done = subprocess.run(
        [*map(str, command), "--exit-code", "0"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return report.read_text()


@pytest.fixture
def rules(cli: Cli) -> str:
    return cli.good("keys", "gitleaks-rule")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


class TestGitleaks:
    def test_there_is_a_rule_for_every_kind_of_key(self, rules: str) -> None:
        keywords = [rule["keywords"] for rule in tomllib.loads(rules)["rules"]]
        assert keywords == [[f"{kind.value}_"] for kind in TokenKind]

    def test_keys_of_every_kind_are_found_wherever_they_stand(self, cli: Cli, rules: str, corpus: Path) -> None:
        expected = set()
        for kind, api_key in KINDS.items():
            for name, content in places_of(api_key).items():
                place = corpus / kind.name / name
                place.parent.mkdir(exist_ok=True)
                place.write_text(content)
                expected.add((kind.name, api_key.split("_")[-2], str(place)))

        report = gitleaks(corpus, rules)

        assert {found["RuleID"] for found in json.loads(report)} == {
            f"texture-auth-{name}" for name in ("server-key", "connect-key", "scoped-key", "caller-key", "link-token")
        }
        said = cli.run("keys", "verify-format", "--json", stdin=report)
        assert said.exit_code == 1
        found = {(one["kind"], one["key_id"], one["file"]) for one in json.loads(said.stdout)["keys"]}
        assert found == expected

    def test_look_alikes_are_all_dropped_once_their_checksums_are_looked_at(
        self, cli: Cli, rules: str, corpus: Path
    ) -> None:
        random = Random(7)
        texts = [look_alike(random, kind) for kind in TokenKind for _ in range(100)]
        # And real ones with a typing error, anywhere in the secret.
        for api_key in KINDS.values():
            for at in range(-38, 0):
                other = random.choice([one for one in ALPHABET if one != api_key[at]])
                texts.append(api_key[:at] + other + (api_key[at + 1 :] if at < -1 else ""))
        (corpus / "look-alikes.txt").write_text("".join(f"key = '{text}'\n" for text in texts))
        report = gitleaks(corpus, rules)
        assert len(json.loads(report)) == len(set(texts))

        said = cli.run("keys", "verify-format", stdin=report)

        assert (said.exit_code, said.output) == (0, "")

    def test_nothing_is_found_in_what_merely_resembles_a_key(self, rules: str, corpus: Path) -> None:
        (corpus / "prose.md").write_text(
            "Keys begin with `txk_srv_`, `txk_con_` or `txk_scp_`, tokens with `txl_`.\n"
            "txk_srv_<16 characters>_<38 characters>\n"
            f"txk_abc_{'a' * 16}_{'b' * 38}\ntxk_srv_{'a' * 15}_{'b' * 38}\ntxk_srv_{'a' * 16}_{'b' * 37}\n"
        )
        assert json.loads(gitleaks(corpus, rules)) == []


class TestVerifyFormat:
    def test_of_lines_it_says_which_hold_a_key_and_never_the_key(self, cli: Cli) -> None:
        api_key = KINDS[TokenKind.SERVER]
        said = cli.run(
            "keys", "verify-format", stdin=f"nothing\nsee {api_key} there\n{look_alike(Random(1), TokenKind.SERVER)}\n"
        )
        assert said.exit_code == 1
        assert said.stdout == f"SERVER key {api_key.split('_')[2]} in the input, line 2\n"
        assert api_key.rpartition("_")[2][:8] not in said.output

    @pytest.mark.parametrize("text", ["", "[]", "null", "words\n", '{"a": 1}', "[1, 2]", "\x00\xff"])
    def test_where_there_is_no_key_the_exit_code_is_0(self, cli: Cli, text: str) -> None:
        said = cli.run("keys", "verify-format", stdin=text)
        assert (said.exit_code, said.output) == (0, "")

    def test_a_report_without_what_was_found_is_not_taken_for_a_clean_one(self, cli: Cli) -> None:
        finding: dict[str, Any] = {"RuleID": "texture-auth-server-key", "Secret": "REDACTED", "Match": "REDACTED"}
        said = cli.run("keys", "verify-format", stdin=json.dumps([finding]))
        assert (said.exit_code, said.stdout) == (1, "")
        assert "--redact" in said.stderr

    def test_no_server_and_no_credential_are_needed(self, cli: Cli) -> None:
        nowhere = {"TEXTURE_AUTH_ADDRESS": "127.0.0.1:1", "TEXTURE_AUTH_CALLER_KEY": ""}
        assert cli.run("keys", "verify-format", stdin="x", env=nowhere).exit_code == 0


class TestReportExposed:
    def test_keys_are_found_in_whatever_is_pasted_and_each_is_dealt_with(self, acme: Cli) -> None:
        server_id, server_key = create_key(acme)
        connect_id, connect_key = create_key(acme, "connect")
        pasted = (
            f"GET / key={server_key} 200\n  again {server_key}\n{{'k': '{connect_key}'}}\n{KINDS[TokenKind.SERVER]}\n"
        )

        said = acme.run("keys", "report-exposed", "--url", "https://paste.example/1", "--source", "me", stdin=pasted)

        assert said.exit_code == 0, said.output
        rows = [line.split() for line in said.stdout.splitlines()[1:]]
        assert [row[:3] for row in rows[:2]] == [
            ["REVOKED", server_id, "SERVER"],
            ["NOTED", connect_id, "CONNECT"],
        ]
        assert rows[2][0] == "UNKNOWN"
        assert server_key.rpartition("_")[2][:8] not in said.output
        event, end = acme.json("keys", "events", server_id)["events"][-2:]
        assert (event["type"], event["after"]["exposure_url"]) == ("key.exposed", "https://paste.example/1")
        assert end["type"] == "key.revoked"
        assert acme.json("keys", "get", server_id)["key"]["state"] == "KEY_STATE_REVOKED"

    def test_more_than_one_call_carries_are_reported(self, acme: Cli) -> None:
        made = [mint(TokenKind.SERVER, new_id()).text for _ in range(150)]
        _, api_key = create_key(acme)
        answer = acme.json("keys", "report-exposed", stdin="\n".join([*made, api_key]))
        found = [one["outcome"].removeprefix("EXPOSURE_OUTCOME_") for one in answer["results"]]
        assert found == ["UNKNOWN"] * 150 + ["REVOKED"]

    def test_a_report_of_gitleaks_is_reported_as_it_is(self, acme: Cli, rules: str, corpus: Path) -> None:
        key_id, api_key = create_key(acme)
        (corpus / "a.py").write_text(f"KEY = '{api_key}'\n")
        answer = acme.json("keys", "report-exposed", "--source", "gitleaks", stdin=gitleaks(corpus, rules))
        assert [one["key_id"] for one in answer["results"]] == [key_id]

    def test_where_there_is_no_key_nothing_is_reported(self, acme: Cli) -> None:
        said = acme.run("keys", "report-exposed", stdin="hunter2\n")
        assert (said.exit_code, said.stdout) == (1, "")
        assert "no key" in said.stderr

    def test_a_key_in_the_arguments_is_refused(self, acme: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        _, api_key = create_key(acme)
        monkeypatch.setattr(sys, "argv", ["texture-auth", "keys", "report-exposed", api_key])
        assert acme.run("keys", "report-exposed", api_key).exit_code == 2
