"""Why a decision is what it is: the same steps, every one of them taken, each with what it looked at.

For operators: the words tell what keys and devices there are, and never hold a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from server.domain.decision import STEPS, Decision, Evaluation, Question, present
from server.domain.exposure import assess
from server.domain.kinds import CEILING, NEEDS_DEVICE, TOKEN_KIND, KeyKind
from server.domain.model import Device, Key, KeyState
from server.domain.peppers import Peppers
from server.domain.reasons import Reason
from server.domain.token import parse


class StepResult(Enum):
    """How a step came out. SKIPPED had nothing to look at."""

    PASSED = auto()
    FAILED = auto()
    SKIPPED = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its name, how it came out, the reason it gives if it failed, and what it looked at."""

    name: str
    result: StepResult
    reason: Reason | None
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and how it came about."""

    decision: Decision
    steps: tuple[Step, ...]


def explain(
    question: Question, api_key: str | None, key: Key | None, device: Device | None, peppers: Peppers, now: datetime
) -> Explanation:
    """Take every step of an evaluation; the first that fails decides.

    `api_key` is what was presented as a key. None where `key` was named instead: then the answer is what it would be if
    its newest secret had been presented. Raises Refusal (PEPPER_UNAVAILABLE) as `decide` does.
    """
    evaluation = Evaluation(question, key, device, peppers, now)
    if api_key is None and key is not None:
        evaluation.generation = key.generations[-1]
        if key.state is not KeyState.REVOKED:
            peppers.require(evaluation.generation.pepper_id)
    decision = None
    steps = []
    for name, step in STEPS:
        skipped = _why_skipped(name, evaluation, api_key)
        if skipped:
            steps.append(Step(name, StepResult.SKIPPED, None, skipped))
            continue
        reason = step(evaluation)
        detail = _form(api_key or "") if name == "form" else _DETAILS[name](evaluation)
        steps.append(Step(name, StepResult.FAILED if reason else StepResult.PASSED, reason, detail))
        if decision is None and reason is not None:
            # Now, since the steps that follow find out more than a decision says.
            decision = evaluation.decision(reason)
    return Explanation(decision or evaluation.decision(Reason.PERMITTED), tuple(steps))


def _why_skipped(name: str, evaluation: Evaluation, api_key: str | None) -> str:
    if name in ("form", "secret") and api_key is None:
        return "the key was named by its id, and no secret presented"
    if name == "form":
        return ""
    if name == "secret":
        return "nothing was presented that could be a key" if evaluation.question.presented.token is None else ""
    return "the key is not known" if evaluation.generation is None else ""


def _form(api_key: str) -> str:
    if not api_key:
        return "nothing was presented"
    token = parse(api_key)
    if token is not None and present(api_key).token is not None:
        return f"a {token.kind.value} key with id {token.public_id}, its checksum right"
    if token is not None:
        return f"a {token.kind.value} token, which is no key of a customer"
    return "not of the form txk_{srv|con|scp}_ID_SECRET, or with a wrong checksum: mistyped, cut off, or something else"


def _secret(evaluation: Evaluation) -> str:
    token, key = evaluation.question.presented.token, evaluation.key
    if evaluation.generation is not None:
        return f"the whole secret is right: number {evaluation.generation.number} of the key"
    if token is None or key is None:
        return "there is no key with this id"
    if TOKEN_KIND[key.kind] is not token.kind:
        return f"the key with this id is a {key.kind.value} key, which the prefix denies"
    return f"the key exists, and this is none of its secrets ({_some(str(one.number) for one in key.generations)})"


def _exposure(evaluation: Evaluation) -> str:
    context = evaluation.question.context
    present_headers = {
        "Sec-Fetch-Site": context.sec_fetch_site,
        "Sec-Fetch-Mode": context.sec_fetch_mode,
        "Sec-Fetch-Dest": context.sec_fetch_dest,
        "Sec-Fetch-User": context.sec_fetch_user,
        "Origin": context.origin,
        "User-Agent": context.user_agent,
    }
    given = _some(name for name, value in present_headers.items() if value)
    finding = f"signs of a browser: {assess(context).name.lower()}, from {given}"
    if evaluation.known.kind is not KeyKind.SERVER:
        return f"{finding}; a {evaluation.known.kind.value} key may live in one"
    return finding


def _liveness(evaluation: Evaluation) -> str:
    key, generation = evaluation.known, evaluation.generation
    state = key.state_at(evaluation.now)
    since = key.revoke_time or key.suspend_time
    if state is KeyState.EXPIRED:
        since = key.expire_time
    words = f"the key is {state.value}"
    if state is not KeyState.ACTIVE and since is not None:
        words += f" since {_instant(since)}"
    elif key.expire_time is not None:
        words += f" until {_instant(key.expire_time)}"
    if generation is None or generation.retire_time is None:
        return f"{words}; the secret is its newest"
    verb = "ended" if generation.retired(evaluation.now) else "ends"
    return f"{words}; the secret was replaced, and its overlap {verb} at {_instant(generation.retire_time)}"


def _address(evaluation: Evaluation) -> str:
    networks = _some(str(network) for network in evaluation.known.allowed_networks)
    client = evaluation.question.context.client_ip
    where = "an unknown address" if client is None else str(client)
    return f"{where}, against {networks}" if evaluation.known.allowed_networks else f"{where}; any will do"


def _permission(evaluation: Evaluation) -> str:
    key, wanted = evaluation.known, evaluation.question.permission
    if wanted not in CEILING[key.kind]:
        return f"no {key.kind.value} key may ever hold {wanted.value}"
    held = _some(sorted(permission.value for permission in key.permissions))
    return f"{wanted.value}, against what the key holds: {held}"


def _ownership(evaluation: Evaluation) -> str:
    question, key, device = evaluation.question, evaluation.known, evaluation.device
    if question.permission not in NEEDS_DEVICE:
        return f"{question.permission.value} is not about one device"
    mine = f"workspace {key.workspace_id}" + (f", end user {key.reference_id}" if key.reference_id else "")
    if device is None:
        return f"there is no such device; the key is of {mine}"
    return f"the device is of workspace {device.workspace_id}, end user {device.reference_id}; the key is of {mine}"


def _manufacturer(evaluation: Evaluation) -> str:
    allowed = evaluation.known.allowed_manufacturers
    if not allowed:
        return "any will do"
    device = evaluation.device
    maker = "no device" if device is None else device.manufacturer or "an unknown manufacturer"
    return f"{maker}, against {_some(sorted(allowed))}"


_DETAILS: dict[str, Callable[[Evaluation], str]] = {
    "secret": _secret,
    "exposure": _exposure,
    "liveness": _liveness,
    "address": _address,
    "permission": _permission,
    "ownership": _ownership,
    "manufacturer": _manufacturer,
}


def _some(words: Iterable[str]) -> str:
    return ", ".join(words) or "nothing"


def _instant(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
