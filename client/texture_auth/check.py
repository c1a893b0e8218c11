"""Can the service be reached, does it trust the caller, and does it answer in time? One step after another.

Nothing is created or changed: the only question that is asked is about a key that cannot exist. No finding holds a key.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub

from texture_auth import reach
from texture_auth.credentials import CallerKey
from texture_auth.finding import Finding, Level, failure, ok, warning
from texture_auth.reach import Place

REFUSED = 1
UNAVAILABLE = 4
NOT_ADMITTED = 5

CALLER_KEY_VARIABLE = "TEXTURE_AUTH_CALLER_KEY"

DEFAULT_QUESTIONS = 100
DEFAULT_DEADLINE = 1.0

# Well-formed, its checksum right. That anybody was ever given it is as likely as guessing a key.
_NOBODYS_KEY = f"txk_srv_{'0' * 16}_{'0' * 32}07Blcc"
_SERVICE = "texture.auth.v1.AuthorizeService"
_PUBLIC_ID = re.compile(r"txk_svc_([0-9A-Za-z]{16})_")
# After so many questions without an answer in time there is no need to ask more.
_ENOUGH_LATE = 3

_GET_A_KEY = "have an operator run 'texture-auth callers create ID --role authorizer', and give its key"
_TO_DO_ABOUT_CALLER = {
    "CALLER_CREDENTIAL_MISSING": f"set {CALLER_KEY_VARIABLE}, or {CALLER_KEY_VARIABLE}_FILE; {_GET_A_KEY}",
    "CALLER_CREDENTIAL_MALFORMED": "give the whole svc key, txk_svc_…: a customer's key is none",
    "CALLER_CREDENTIAL_UNKNOWN": f"see that it is a key of this installation, and not of another one; or {_GET_A_KEY}",
    "CALLER_CREDENTIAL_RETIRED": "give the new secret: 'texture-auth callers rotate' has replaced this one",
    "CALLER_REVOKED": f"it cannot come back; {_GET_A_KEY}",
    "CALLER_CERTIFICATE_UNKNOWN": "have an operator run 'texture-auth callers update ID --certificate-name NAME' with "
    "a DNS name or URI of the certificate",
}
_LOOK_AT_SERVICE = "tell the service's operator, who has 'texture-auth doctor' and the log"


class CredentialInvalid(Exception):  # noqa: N818 - it names a state
    """A file or a variable that holds no caller's key. The message never quotes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be checked, and as whom."""

    place: Place
    caller_key: str = field(default="", repr=False)
    """The `svc` key; empty where a client certificate stands for it, or where there is none."""
    deadline: float = DEFAULT_DEADLINE
    """The seconds that the adopter's own calls leave for an answer."""
    questions: int = DEFAULT_QUESTIONS
    """How many are asked to see how long answers take, one after another."""
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)
    """By which that is measured, in seconds."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error, and what it says."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str]


def read_caller_key(environment: Mapping[str, str], file: Path | None) -> str:
    """Return the caller's own key, from a file or else from the environment; empty where there is none.

    Raises CredentialInvalid.
    """
    key = environment.get(CALLER_KEY_VARIABLE, "")
    if file is not None:
        try:
            key = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", "it is not text")
            raise CredentialInvalid(f"--caller-key-file: {file}: {why}") from None
    key = key.strip()
    try:
        CallerKey(lambda: key).metadata()
    except ValueError as error:
        raise CredentialInvalid(str(error)) from None
    return key


def examine(subject: Subject) -> Iterator[Finding]:
    """Take one step after another, each told as soon as it is known. Ends with the first failure."""
    found = Finding("name", Level.OK, "")
    for found in reach.examine(subject.place):
        yield found
    if found.level is Level.FAILURE:
        return
    with subject.place.channel() as channel:
        for step in (_health, _caller, _time):
            for found in step(subject, channel):
                yield found
                if found.level is Level.FAILURE:
                    return


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of the command line: 0, or by what failed."""
    failed = [finding.check for finding in findings if finding.level is Level.FAILURE]
    if not failed:
        return 0
    return {"caller": NOT_ADMITTED, "role": NOT_ADMITTED, "answer": REFUSED}.get(failed[0], UNAVAILABLE)


def report(subject: Subject, as_json: bool, echo: Callable[[str], None]) -> int:
    """Check, tell what was found, and return the exit code."""
    findings = []
    for finding in examine(subject):
        findings.append(finding)
        if not as_json:
            echo(_line(finding))
    code = exit_code(findings)
    if as_json:
        rows = [asdict(finding) | {"level": finding.level.value} for finding in findings]
        echo(json.dumps({"healthy": code == 0, "findings": rows}, indent=2))
    elif code and findings[-1].check != "time":
        echo("stopped here: what comes after depends on it")
    return code


_MARKS = {Level.OK: "✓", Level.WARNING: "!", Level.FAILURE: "✗"}


def _line(finding: Finding) -> str:
    to_do = f"\n           -> {finding.to_do}" if finding.to_do else ""
    return f"{_MARKS[finding.level]} {finding.check:<8} {finding.found}{to_do}"


def _health(subject: Subject, channel: grpc.Channel) -> Iterator[Finding]:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types leave its methods out
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=_SERVICE), timeout=subject.place.timeout)
    except grpc.RpcError as error:
        refusal = _refusal(error)
        if refusal.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}:
            yield failure("grpc", "a gRPC server, but not of Texture Auth", "see that this is its address")
        elif refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            text = f"it does not say within {subject.place.timeout:g} s whether it serves"
            yield failure("health", text, "see whether the service hangs")
        else:
            yield failure("grpc", f"there is no gRPC: {refusal.reason}: {refusal.message}", reach.OTHER_PORT)
        return
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        yield ok("health", status)
    else:
        text = f"{status}: it cannot ask its database, or it is about to end"
        yield failure("health", text, f"try again in a minute; {_LOOK_AT_SERVICE}")


def _caller(subject: Subject, channel: grpc.Channel) -> Iterator[Finding]:
    """Ask as the caller about a key that nobody has: only who may ask is answered that there is no such key."""
    try:
        answer = _ask(subject, channel, subject.place.timeout)
    except grpc.RpcError as error:
        yield from _not_answered(subject, _refusal(error))
        return
    yield ok("caller", f"{_who(subject)} is known")
    if (answer.decision, answer.reason) != (pb.DECISION_DENY, pb.REASON_KEY_UNKNOWN):
        text = f"a key that cannot exist was answered with {answer.decision}, reason {answer.reason}"
        yield failure("answer", text, "see what answers in the place of the service: it is not to be trusted")
        return
    yield ok("role", "it may ask: a key that cannot exist was denied as KEY_UNKNOWN")


def _not_answered(subject: Subject, refusal: _Refusal) -> Iterator[Finding]:
    if refusal.reason == "CALLER_ROLE_MISSING":
        caller_id = refusal.metadata.get("caller_id", "it")
        yield ok("caller", f"{_who(subject)} is known: {caller_id}")
        yield failure(
            "role",
            f"{caller_id} may not ask: that takes one of these roles: {refusal.metadata.get('roles', '')}",
            f"have an operator run 'texture-auth callers update {caller_id} --role authorizer', beside those it has",
        )
    elif refusal.code is grpc.StatusCode.UNAUTHENTICATED:
        missing = refusal.reason == "CALLER_CREDENTIAL_MISSING"
        what = "no credential is given" if missing else f"{_who(subject)} is not let in"
        to_do = _TO_DO_ABOUT_CALLER.get(refusal.reason, _GET_A_KEY)
        yield failure("caller", f"{what}: {refusal.reason}: {refusal.message}", to_do)
    elif refusal.code in _LATE:
        yield failure("time", f"no answer: {refusal.reason}: {refusal.message}", _LOOK_AT_SERVICE)
    else:
        yield failure("answer", f"no answer: {refusal.reason}: {refusal.message}", _LOOK_AT_SERVICE)


_LATE = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}


def _time(subject: Subject, channel: grpc.Channel) -> Iterator[Finding]:
    """Ask the same again and again, as hurriedly as the adopter's own calls are made."""
    milliseconds: list[float] = []
    late, why = 0, ""
    while late < _ENOUGH_LATE and len(milliseconds) + late < subject.questions:
        begun = subject.clock()
        try:
            _ask(subject, channel, subject.deadline)
        except grpc.RpcError as error:
            late, why = late + 1, _refusal(error).reason
        else:
            milliseconds.append((subject.clock() - begun) * 1000)
    told = f"{len(milliseconds)} answers"
    if milliseconds:
        told += f": p50 {_percentile(milliseconds, 50):.1f} ms, p99 {_percentile(milliseconds, 99):.1f} ms"
    allowed = f"of {subject.deadline * 1000:g} ms"
    to_do = "give calls more time, or move nearer; see the service's metrics for how long it takes itself"
    if late:
        yield failure("time", f"{told}; {late} without an answer within the deadline {allowed} ({why})", to_do)
    elif _percentile(milliseconds, 99) > subject.deadline * 1000 / 2:
        yield warning("time", f"{told}: more than half of the deadline {allowed}", to_do)
    else:
        yield ok("time", f"{told}, of a deadline {allowed}")


def _ask(subject: Subject, channel: grpc.Channel, timeout: float) -> pb.AuthorizeResponse:
    metadata = CallerKey(lambda: subject.caller_key).metadata()
    request = pb.AuthorizeRequest(api_key=_NOBODYS_KEY, permission="devices:list")
    return AuthorizeServiceStub(channel).Authorize(request, timeout=timeout, metadata=metadata)


def _who(subject: Subject) -> str:
    """Return a name for the credential that tells nothing secret: a key's id is public."""
    if not subject.caller_key:
        return "the holder of the client certificate"
    found = _PUBLIC_ID.match(subject.caller_key)
    return f"the caller of svc key {found[1]}" if found else "the holder of the caller's key"


def _refusal(error: grpc.RpcError) -> _Refusal:
    if not isinstance(error, grpc.Call):  # pragma: no cover - every RpcError of a stub is one
        raise error
    info = error_details_pb2.ErrorInfo(reason=error.code().name)
    status = rpc_status.from_call(error)
    for packed in () if status is None else status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            packed.Unpack(info)
    return _Refusal(error.code(), info.reason, error.details() or "", dict(info.metadata))


def _percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many of a hundred do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
