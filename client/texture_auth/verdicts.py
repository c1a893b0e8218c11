"""What a guard makes of decisions, whatever the protocol: whether they let a call on, and who is told."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from texture_auth.answers import unanswered
from texture_auth.decision import Decision, Outcome
from texture_auth.rules import Mode

KEY_HEADER = "texture-api-key"
"""Where customers put their key: a header of HTTP, metadata of gRPC."""
DOMAIN = "auth.texture"
RETRY_SECONDS = 1
UNAVAILABLE = "AUTHORIZATION_UNAVAILABLE"
"""The reason that customers see when there is no answer. What exactly failed is for the log, and not for them."""

_log = logging.getLogger("texture_auth.guard")
_decision: ContextVar[Decision | None] = ContextVar("texture_auth_decision", default=None)

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
}
_SENTENCES = {
    "KEY_MISSING": "Send your API key in Texture-Api-Key.",
    "KEY_MALFORMED": "Texture-Api-Key must hold one API key and nothing else.",
    "KEY_UNKNOWN": "This API key is not known.",
    "KEY_EXPOSED": "This API key is secret, and was used where others can see it. Replace it.",
    "KEY_REVOKED": "This API key has been revoked.",
    "KEY_SUSPENDED": "This API key is suspended for now.",
    "KEY_EXPIRED": "This API key is past its expiry.",
    "KEY_RETIRED": "This API key has a newer secret. Use that one.",
    "ADDRESS_NOT_PERMITTED": "This API key is not for use from this network.",
    "PERMISSION_NOT_GRANTED": "This API key lacks a permission.",
    "DEVICE_NOT_FOUND": "This device does not exist.",
    "DEVICE_NOT_PERMITTED": "This API key does not reach this device.",
    "MANUFACTURER_NOT_PERMITTED": "This API key does not reach devices of this manufacturer.",
    UNAVAILABLE: "It could not be found out whether this API key may do this. Try again.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision about a call, and what became of it. Holds no key."""

    method: str
    """The full name of an RPC, or the path template of an HTTP route."""
    permission: str
    decision: Decision
    mode: Mode
    recheck: bool = False
    """Whether it is about a stream that had been let on before."""

    @property
    def passed(self) -> bool:
        """Whether the call goes on."""
        return self.decision.allowed or self.mode is Mode.SHADOW


Hook = Callable[[Verdict], None]


class Verdicts:
    """Tells of each verdict: counts it, logs what is not a plain yes, and calls the hook. Safe to share by threads."""

    def __init__(self, hook: Hook | None = None) -> None:
        self._hook = hook
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, bool]] = Counter()

    def counts(self) -> Mapping[tuple[str, str, bool], int]:
        """Return how many verdicts there were, by method, reason, and whether the call went on."""
        with self._lock:
            return dict(self._counts)

    def tell(self, verdict: Verdict) -> None:
        """Tell of one. A hook that fails changes nothing."""
        with self._lock:
            self._counts[verdict.method, verdict.decision.reason, verdict.passed] += 1
        if not verdict.decision.allowed:
            _log_no(verdict)
        if self._hook is not None:
            try:
                self._hook(verdict)
            except Exception:  # noqa: BLE001 - it is the adopter's own, and may raise anything
                _log.exception("the hook for verdicts failed")


def _log_no(verdict: Verdict) -> None:
    decision = verdict.decision
    fields = {
        "method": verdict.method,
        "permission": verdict.permission,
        "outcome": decision.outcome.value,
        "reason": decision.reason,
        "mode": verdict.mode.value,
        "recheck": verdict.recheck,
        "key_id": decision.key.key_id if decision.key is not None else "",
        "workspace_id": decision.key.workspace_id if decision.key is not None else "",
        "decision_id": decision.decision_id,
    }
    loud = verdict.passed or decision.outcome is Outcome.UNANSWERED
    _log.log(
        logging.WARNING if loud else logging.INFO,
        "%s: %s",
        "would be refused, and went on" if verdict.passed else "refused",
        " ".join(f"{name}={value}" for name, value in fields.items()),
        extra={"texture_auth": fields},
    )


def current_decision() -> Decision | None:
    """Return the decision about the call that is being served: who calls, and what a list may contain.

    With a stream of requests it is the one about the latest of them. None outside guarded methods. In shadow mode it
    may be a no.
    """
    return _decision.get()


@contextmanager
def deciding(decision: Decision | None) -> Iterator[None]:
    """Have `current_decision` return this one within the block."""
    token = _decision.set(decision)
    try:
        yield
    finally:
        _decision.reset(token)


def decided(decision: Decision) -> None:
    """Have `current_decision` return this one from now on."""
    _decision.set(decision)


def presented(values: Sequence[str | bytes]) -> str | Decision:
    """Return the key that came in `KEY_HEADER`, or the denial where no answer of the service could be another one.

    Whoever sends no key, or something that cannot be one, does not burden the service, and is told so while it is away.
    """
    if not any(values):
        return _denied("KEY_MISSING")
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or not value.isascii():
        return _denied("KEY_MALFORMED")
    return value


def _denied(reason: str) -> Decision:
    return Decision(outcome=Outcome.DENIED, reason=reason, http_status_code=401)


def checked(answer: object) -> Decision:
    """Return what an authorizer answered. What is no decision is no answer."""
    return answer if isinstance(answer, Decision) else unanswered("ANSWER_UNKNOWN", "the authorizer gave no decision")


def failed(error: Exception) -> Decision:
    """Return the no of an authorizer that failed in a way it never should."""
    # Without the error's text and frames, which may hold the question and so the key.
    _log.error("the authorizer raised %s", type(error).__name__)
    return unanswered("AUTHORIZER_FAILED", "the authorizer failed")


def too_late() -> Decision:
    """Return the no of a call whose deadline is past, so that nothing can be asked for it."""
    return unanswered("DEADLINE_TOO_SHORT", "the deadline is past", grpc.StatusCode.DEADLINE_EXCEEDED)


def public_reason(decision: Decision) -> str:
    """Return the reason that customers are told."""
    return UNAVAILABLE if decision.outcome is Outcome.UNANSWERED else decision.reason


def public_message(decision: Decision) -> str:
    """Return the sentence that customers are told."""
    reason = public_reason(decision)
    sentence = _SENTENCES.get(reason, "This API key may not do this.")
    if decision.missing_permission:
        return f"{sentence[:-1]}: {decision.missing_permission}."
    return sentence


def status_of(decision: Decision) -> grpc.Status:
    """Return the gRPC status that refuses a call, with its details."""
    code = _CODES.get(decision.http_status_code, grpc.StatusCode.PERMISSION_DENIED)
    if decision.outcome is Outcome.UNANSWERED:
        late = decision.code is grpc.StatusCode.DEADLINE_EXCEEDED
        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE
    metadata = {"decision_id": decision.decision_id, "missing_permission": decision.missing_permission}
    info = error_details_pb2.ErrorInfo(
        reason=public_reason(decision),
        domain=DOMAIN,
        metadata={name: value for name, value in metadata.items() if value},
    )
    status = status_pb2.Status(code=code.value[0], message=public_message(decision))
    status.details.append(_packed(info))
    if decision.outcome is Outcome.UNANSWERED:
        retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_SECONDS))
        status.details.append(_packed(retry))
    return rpc_status.to_status(status)


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> Packed:
    packed = Packed()
    packed.Pack(detail)
    return packed
