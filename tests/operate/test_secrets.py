"""No secret ever reaches the log, an error or a file beside the ones that are made for it."""

from __future__ import annotations

import base64
import importlib
import json
import pkgutil
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import FieldDescriptor
from pydantic import SecretStr
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.caller_pb2 import ROLE_WATCHER

import server
from server import app
from server.domain.decision import Evaluation, ask, present
from server.domain.exposure import Context
from server.domain.kinds import KeyKind, Role
from server.domain.lifecycle import Rotation, mint_generation
from server.domain.peppers import Pepper, Peppers
from server.domain.token import TokenKind, mint, parse, redact
from server.service.authorization import AuthorizationService, DecisionIds
from server.service.base import Call
from server.service.callers import CallerFields, CallerService
from server.service.connect import ConnectService
from server.service.devices import Registration
from server.service.exposures import ExposureService
from server.service.keys import KeyFields, KeyService
from server.service.rehashing import Rehashing
from server.settings import Settings
from server.wire.rpc import Rpc
from tests.harness import Service
from tests.operate.drive import METHODS, World, is_secret, life, secrets_in, with_text
from tests.operate.process import Server, client, serving
from tests.wire.links_helpers import (
    SITE_URI,
    WORKSPACE,
    connect_key,
    create_workspace,
    server_key,
    with_wrong_secret,
)

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

DIGESTS = ("key_generation", "caller_generation", "connect_link")


def try_to(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Make a call whatever comes of it, and return its error."""
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        return str(error)
    return ""


# --- Every RPC, in every way ----------------------------------------------------------------------------------------

PEPPERS = {"2030-01": bytes(range(100, 132)), "2029-01": bytes(range(180, 212))}
UNKNOWN_ID = "0" * 16


@dataclass(frozen=True)
class Hidden:
    """What must be seen nowhere: 8 characters in a row of any secret, and digests and peppers in any form."""

    grams: frozenset[str]
    hexadecimal: frozenset[str]
    blobs: frozenset[bytes]
    spelled: frozenset[str]

    @classmethod
    def of(cls, tokens: Iterable[str], blobs: Iterable[bytes]) -> Hidden:
        blobs = frozenset(blobs)
        secrets = [token.rsplit("_", 1)[-1] for token in tokens]
        spelled = set()
        for blob in blobs:
            spelled |= {base64.b64encode(blob).decode()[:20], base64.urlsafe_b64encode(blob).decode()[:20]}
            spelled |= {repr(blob)[2:-1], json.dumps(repr(blob)[2:-1])[1:-1]}
        return cls(
            frozenset(gram for secret in secrets for gram in _windows(secret, 8)),
            frozenset(gram for blob in blobs for gram in _windows(blob.hex(), 16)),
            blobs,
            frozenset(spelled),
        )

    def within(self, said: bytes) -> set[str]:
        """Return what of it stands in some output."""
        text = said.decode("utf-8", errors="replace")
        found = {gram for run in re.findall("[0-9A-Za-z]{8,}", text) for gram in _windows(run, 8)} & self.grams
        runs = re.findall("[0-9a-f]{16,}", text.lower())
        found |= {gram for run in runs for gram in _windows(run, 16)} & self.hexadecimal
        found |= {spelled for spelled in self.spelled if spelled in text}
        return found | {repr(blob) for blob in self.blobs if blob in said}


def _windows(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}


@contextmanager
def production(folder: Path, log_format: str) -> Iterator[tuple[Server, World]]:
    """Run a server as in production, but in plain text, which logs all that there is to log."""
    (folder / "peppers").write_text("".join(f"{name} {secret.hex()}\n" for name, secret in PEPPERS.items()))
    settings = Settings(database=f"sqlite:{folder / 'auth.db'}", peppers_file=folder / "peppers")
    app.migrate(settings)
    operator_key = app.bootstrap(settings, "operator")
    flags = ("--insecure-plaintext", "--peppers-file", "peppers", "--database", "sqlite:auth.db")
    logging = ("--log-level", "debug", "--log-allow-sample", "1", "--log-format", log_format)
    with serving(folder, *flags, *logging) as server, grpc.insecure_channel(server.address) as channel:
        yield server, World(channel, operator_key)


def without_leave(world: World) -> None:
    """Call everything as callers who may not."""
    watcher: Any = world.call(caller_pb.CreateCallerRequest(caller_id="a-watcher", roles=[ROLE_WATCHER]), "rightly")
    customers = next(iter(sorted(token for token in world.secrets if token.startswith("txk_srv_"))))
    credentials = {
        "without the role": watcher.caller_key,
        "without a credential": None,
        "with a wrong credential": with_wrong_secret(world.operator_key),
        "with a credential cut off": world.operator_key[:-1],
        "with a customer's key for a credential": customers,
    }
    world.secrets.add(with_wrong_secret(world.operator_key))
    for how, credential in credentials.items():
        for request in world.every_request():
            world.call(request, how, credential)


def malformed(world: World) -> None:
    """Send what is no message at all, and what is too large a one, each with a key in it."""
    for path in METHODS:
        world.call_raw(path, b"\xff\xff" + world.operator_key.encode(), "with no message")
    world.call(
        authorize_pb.AuthorizeRequest(api_key=world.operator_key * 20_000, permission="devices:list"), "too large"
    )


def is_id(descriptor: FieldDescriptor) -> bool:
    return descriptor.name.endswith(("_id", "_ids"))


def wrong_secrets_and_ids(world: World) -> None:
    """Give a secret that is nearly right, or parts of one, where a secret belongs, and unknown ids where an id does."""
    for request in world.every_request():
        for where, changed in with_text(request, UNKNOWN_ID, is_id):
            world.call(changed, f"with an unknown {where}")
        for right in set(secrets_in(request)):
            wrong = with_wrong_secret(right)
            world.secrets.add(wrong)
            for text in (wrong, right[:-1], f" {right}", f"Bearer {right}", right.rsplit("_", 1)[-1]):
                for where, changed in with_text(request, text, is_secret):
                    world.call(changed, f"with a wrong {where}")


def misplaced_everywhere(world: World) -> None:
    """Put a key into every field that takes text, and by turns a token of every other kind among words."""
    kinds = {token.split("_")[1] if token.startswith("txk") else "txl": token for token in sorted(world.secrets)}
    assert set(kinds) == {"srv", "con", "scp", "svc", "txl"}
    others = cycle(sorted(kinds))
    for request in world.every_request():
        for where, changed in with_text(request, kinds["srv"]):
            world.call(changed, f"with a key in {where}")
        kind = next(others)
        for where, changed in with_text(request, f"see {kinds[kind]} there"):
            world.call(changed, f"with words and a {kind} in {where}")


def after_the_end(world: World) -> None:
    """Revoke every key and every caller but the operator, and ask everything again."""
    workspace_id = next(world.every_request_of("GetWorkspace")).workspace_id
    listed: Any = world.call(key_pb.ListKeysRequest(workspace_id=workspace_id, page_size=1000), "rightly")
    for key in listed.keys:
        world.call(key_pb.RevokeKeyRequest(key_id=key.key_id, reason="the end"), "rightly")
        world.call(key_pb.ListKeyEventsRequest(key_id=key.key_id, page_size=1000), "rightly")
    callers: Any = world.call(caller_pb.ListCallersRequest(page_size=1000), "rightly")
    for caller in callers.callers:
        if caller.caller_id != "operator":
            world.call(caller_pb.RevokeCallerRequest(caller_id=caller.caller_id), "rightly")
    for request in world.every_request():
        world.call(request, "after its key was revoked")


@contextmanager
def damaged(folder: Path, table: str, column: str) -> Iterator[None]:
    """Write nonsense into a column, which the code above the store does not expect."""
    with closing(sqlite3.connect(folder / "auth.db", isolation_level=None)) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute(f"CREATE TEMP TABLE saved AS SELECT rowid AS place, {column} AS value FROM {table}")
        database.execute(f"UPDATE {table} SET {column} = '[\"nonsense\"]'")
        _begin_history(database)
        yield
        # What was written meanwhile is sound.
        saved = f"SELECT value FROM saved WHERE place = {table}.rowid"
        database.execute(f"UPDATE {table} SET {column} = ({saved}) WHERE EXISTS ({saved})")
        _begin_history(database)


def _begin_history(database: sqlite3.Connection) -> None:
    """Have servers forget what they remember: what was written here is in no log of changes."""
    database.execute("UPDATE revision SET epoch = ?", (str(uuid.uuid4()),))


def faults_of_ours(world: World, folder: Path) -> None:
    """Ask everything of a store whose rows cannot be, and of one that is away."""
    for table, column in (("api_key", "kind"), ("connect_link", "create_time"), ("caller", "roles")):
        with damaged(folder, table, column):
            for request in world.every_request():
                world.call(request, f"with nonsense for {table}.{column}")
    elsewhere = (folder / "auth.db").rename(folder / "elsewhere.db")
    for request in world.every_request():
        world.call(request, "with the store away")
    elsewhere.rename(folder / "auth.db")


def rows_of(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that is stored."""
    with closing(sqlite3.connect(folder / "auth.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def digests_of(stored: dict[str, list[tuple[Any, ...]]]) -> set[bytes]:
    """Return all digests that are stored; the codes of the event log's chain are none, and are told to who asks."""
    tables = stored.keys() - {"event_link", "event_chain"}
    return {value for table in tables for row in stored[table] for value in row if isinstance(value, bytes)}


ENDINGS = {"OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "INTERNAL", "UNAVAILABLE"}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_whatever_is_asked_of_any_rpc_no_secret_is_told_but_where_it_is_handed_out(
    tmp_path: Path, log_format: str
) -> None:
    with production(tmp_path, log_format) as (server, world):
        world.play(life())
        assert set(world.outcomes) == set(METHODS), "an RPC that life() does not call is driven by no test here"
        without_leave(world)
        malformed(world)
        wrong_secrets_and_ids(world)
        misplaced_everywhere(world)
        after_the_end(world)
        faults_of_ours(world, tmp_path)
        process = Path(f"/proc/{server.process.pid}")
        shown = process.joinpath("cmdline").read_bytes() + process.joinpath("environ").read_bytes()
    assert {path: ENDINGS - codes for path, codes in world.outcomes.items() if ENDINGS - codes} == {}
    stored = rows_of(tmp_path)
    hidden = Hidden.of(world.secrets, [*digests_of(stored), *PEPPERS.values()])
    assert len(world.secrets) > 15
    assert len(world.told) > 800
    assert len(hidden.blobs) > 15
    # All of it is looked at once: only where something is found is it looked for.
    assert {about: found for about, said in world.told if (found := hidden.within(said.encode()))} == {}
    lines = server.stderr.read_bytes().splitlines() + server.stdout.read_bytes().splitlines()
    assert len(lines) > len(world.told)
    assert {line: found for line in lines if (found := hidden.within(line))} == {}
    assert hidden.within(shown) == set()
    texts = {
        table: "\n".join(repr(tuple(one for one in row if not isinstance(one, bytes))) for row in rows)
        for table, rows in stored.items()
    }
    assert texts["event"].count("key.revoked") > 3
    assert {table: found for table, text in texts.items() if (found := hidden.within(text.encode()))} == {}
    assert not re.search(r"tx[kl](_[a-z]{3})?_[0-9A-Za-z]{16}_[0-9A-Za-z]", server.output + "".join(texts.values()))


def test_what_is_searched_for_is_found_in_every_form() -> None:
    secret, digest = "0123456789abcdefghijABCDEFGHIJ01kLmNoP", bytes(range(32))
    hidden = Hidden.of([f"txk_srv_{UNKNOWN_ID}_{secret}"], [digest])
    for said in (
        f"a key {secret}!",
        f"a part {secret[9:17]}.",
        f"in hexadecimal {digest.hex()}",
        f"a part of it \\x{digest.hex().upper()[6:24]}",
        f"in base64 {base64.b64encode(digest).decode()}",
        f"as Python shows it {digest!r}",
        json.dumps({"as JSON shows that": repr(digest)}),
    ):
        assert hidden.within(said.encode()), said
    assert hidden.within(b"as it is: " + digest)
    for said in (f"the last four {secret[-4:]}", f"seven {secret[:7]}", f"an id {UNKNOWN_ID}", digest.hex()[:15]):
        assert hidden.within(said.encode()) == set(), said


def test_every_field_that_holds_a_secret_is_marked_in_the_contract() -> None:
    named = {
        found.full_name
        for method in METHODS.values()
        for message in (method.input_type, method.output_type)
        for found in message.fields
        if re.search("(^|_)(api_key|caller_key|link_token|secret)$", found.name)
    }
    marked = {
        found.full_name
        for method in METHODS.values()
        for message in (method.input_type, method.output_type)
        for found in message.fields
        if is_secret(found)
    }
    assert named <= marked
    assert len(named) >= 10


# --- What Python shows of an object ---------------------------------------------------------------------------------


def objects_of(service: Service) -> Iterator[tuple[Any, list[str]]]:
    """Return objects that were near a secret, as the services make them, and the secrets that were given out."""
    create_workspace(service.operator)
    resources = service.app._resources
    exposures = ExposureService(resources)
    rehashing = Rehashing(replace(resources, peppers=Peppers([Pepper("other", b"o" * 32), Pepper("dev", b"d" * 32)])))
    keys, callers = KeyService(resources), CallerService(resources)
    connect = ConnectService(resources, exposures, rehashing)
    call = Call(caller_id="operator", method="Test")
    remembered = replace(call, request_id="once", fingerprint="f")
    made = keys.create_key(remembered, WORKSPACE, KeyKind.SERVER, KeyFields(display_name="Backend"))
    api_key = made.value.secret
    yield made, [api_key]
    rotated = keys.rotate_key(call, made.value.entity.key_id, Rotation())
    api_key = rotated.value.secret
    yield rotated, [api_key]
    yield keys.lookup_key(api_key), [api_key]
    site = connect_key(service.operator)
    question = ask(site.api_key, "connect_links:create", "", Context(user_agent="curl/8"))
    yield question, [site.api_key]
    link = connect.create_connect_link(call, question, SITE_URI, "", "state")
    yield link, [link.value.secret]
    completion = connect.complete_connect_link(call, link.value.secret, [Registration("battery-1", "", "acme")])
    yield completion, [link.value.secret, completion.value.scoped_key.secret]
    caller = callers.create_caller(call, "device-api", CallerFields(roles=[Role.AUTHORIZER]))
    yield (caller, callers.authenticate(caller.value.secret)), [caller.value.secret]
    authorization = AuthorizationService(resources, exposures, rehashing, DecisionIds())
    question = ask(api_key, "devices:list", "", Context())
    yield authorization.answer([question], "", "operator"), [api_key]
    yield authorization.explain(question, api_key, "", ""), [api_key]
    yield (present(api_key), parse(api_key), redact(f"see {api_key}"), remembered), [api_key]
    key = keys.get_key(made.value.entity.key_id)
    evaluation = Evaluation(question, key, None, resources.peppers, service.clock())
    yield (key, evaluation, Rpc("Test", "operator", notes={"key_id": key.key_id})), [api_key]
    token = mint(TokenKind.SERVER, key.key_id)
    yield (token, mint_generation(TokenKind.SERVER, key.key_id, 1, resources.peppers, service.clock())), [token.text]
    with resources.store.read() as reader:
        yield reader.list_key_events(key.key_id, None, 10), [api_key]
        yield reader.connect_link(link.value.entity.link.connect_link_id), [link.value.secret]
        yield reader.carried_out("operator", "Test", "once"), [api_key]
    yield (resources, resources.peppers, resources.page_tokens), []


def test_no_object_shows_a_secret_that_it_was_made_with(service: Service) -> None:
    (peppers,) = [line.split()[1] for line in (service.folder / "peppers").read_text().splitlines()]
    text = f"{'a' * 3} {peppers}"
    objects = list(objects_of(service))
    digests = [bytes(row["digest"]) for table in DIGESTS for row in service.query(f"SELECT digest FROM {table}")]
    tokens = [token for _, given in objects for token in given]
    hidden = Hidden.of(tokens, [*digests, bytes.fromhex(peppers)])
    objects.append((Peppers.parse(text), []))
    objects.append((Pepper("aaa", bytes.fromhex(peppers)), []))
    objects.append((Settings(peppers=SecretStr(text), database="postgresql://us:pass-word@127.0.0.1/x"), []))
    for thing, _ in objects:
        for shown in (repr(thing), str(thing), f"{thing}", repr([thing])):
            assert hidden.within(shown.encode()) == set(), type(thing)
            assert "pass-word" not in shown
    assert len(digests) > 5
    assert {type(thing).__name__ for thing, _ in objects} > {"Mutation", "Question", "Answers", "Settings", "Peppers"}


# Where a secret, or what is made of one, is kept in an object.
TELLING_NAMES = re.compile("(^|_)(text|secret|digest|private_key|api_key|caller_key|link_token|pepper)$")


def test_no_class_shows_a_field_that_holds_a_secret_or_bytes() -> None:
    shown = []
    for found in pkgutil.walk_packages(server.__path__, "server."):
        if ".migrations" in found.name or found.name.endswith("__main__"):
            continue
        for cls in vars(importlib.import_module(found.name)).values():
            if isinstance(cls, type) and is_dataclass(cls) and cls.__module__ == found.name:
                shown += [
                    f"{found.name}.{cls.__name__}.{part.name}"
                    for part in fields(cls)
                    if part.repr
                    and (part.type == "bytes" or TELLING_NAMES.search(part.name))
                    # Where a secret is kept is none.
                    and "Path" not in str(part.type)
                ]
    assert shown == []


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_row_that_postgres_refuses_is_not_quoted_in_the_log(
    tmp_path: Path, postgres_url: str, log_format: str
) -> None:
    flags = ("--development", "--database", postgres_url, "--log-level", "debug", "--log-format", log_format)
    with serving(tmp_path, *flags) as server, client(server) as calling:
        create_workspace(calling)
        made = server_key(calling)
        with psycopg.connect(postgres_url, autocommit=True) as database:
            database.execute("ALTER TABLE key_generation ADD CONSTRAINT fewer CHECK (number < 2)")
            said = try_to(calling.keys.RotateKey, key_pb.RotateKeyRequest(key_id=made.key.key_id))
            digests = [digest for (digest,) in database.execute("SELECT digest FROM key_generation")]
        output = server.output
    assert "INTERNAL" in said
    assert "fewer" in output
    assert "Failing row" not in output + said
    hidden = Hidden.of([made.api_key], digests)
    assert hidden.within((output + said).encode()) == set()
