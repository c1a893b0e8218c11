"""What happens to a server key that has leaked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime

from server.domain import lifecycle
from server.domain.decision import Decision
from server.domain.events import EventType, Origin, describe
from server.domain.kinds import ExposurePolicy
from server.domain.model import Key, KeyState
from server.domain.reasons import Reason
from server.service.base import Resources, require_workspace
from server.store.contract import Reader, deadline_within

# How long a decision waits to deal with what it found; the next use of the key tries again.
LOCK_SECONDS = 0.2
# How many keys one transaction deals with, so that no writer waits long for it.
AT_ONCE = 100
REASON = "seen in a browser or an app"


@dataclass(frozen=True, slots=True)
class _Finding:
    """A key as it is and as it is to be, now that it is known to be exposed."""

    before: Key
    after: Key


class ExposureService:
    """Records exposed keys and applies the policies of their workspaces to them."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def contain(self, decisions: Iterable[Decision], caller_id: str) -> None:
        """Deal with the keys that decisions found exposed, each once: what has been dealt with stays as it is.

        A secret that was replaced is of no more use to anybody, and ends nothing: otherwise whoever finds an old one
        could revoke the key that took its place. Raises StoreUnavailable; a later use of the key tries again.
        """
        exposed: dict[str, set[int]] = defaultdict(set)
        for decision in decisions:
            if decision.reason is Reason.KEY_EXPOSED and decision.key is not None and decision.generation is not None:
                exposed[decision.key.key_id].add(decision.generation.number)
        if not exposed:
            return
        # Without the write lock first, so that an exposed key in use costs no writer its turn; and not for long with
        # it, so that no decision waits for writers.
        with self._resources.store.read() as reader:
            if not self._findings(reader, exposed, self._resources.clock()):
                return
        found = list(exposed)
        for start in range(0, len(found), AT_ONCE):
            self._contain({key_id: exposed[key_id] for key_id in found[start : start + AT_ONCE]}, caller_id)

    def _contain(self, exposed: Mapping[str, set[int]], caller_id: str) -> None:
        with ExitStack() as stack:
            with deadline_within(LOCK_SECONDS):
                writer = stack.enter_context(self._resources.store.write())
            now = self._resources.time(writer)
            findings = self._findings(writer, exposed, now)
            writer.replace_keys([finding.after for finding in findings])
            origin = Origin(caller_id=caller_id, reason=REASON)
            writer.record(
                describe(EventType.KEY_EXPOSED, origin, finding.before, finding.after, now) for finding in findings
            )
        # After the transaction, which has taken effect. The answer is a denial whether this is heard of or not.
        self._resources.barrier.settle(writer.revision)

    def _findings(self, reader: Reader, exposed: Mapping[str, set[int]], now: datetime) -> list[_Finding]:
        findings = []
        for key_id, before in reader.keys(exposed).items():
            usable = [one for one in before.generations if one.number in exposed[key_id] and not one.retired(now)]
            if not usable:
                continue
            after = _contained(before, require_workspace(reader, before.workspace_id).exposure_policy, now)
            if before.expose_time is None or before.expose_time < usable[-1].create_time:
                after = replace(after, expose_time=now, update_time=now)
            if after != before:
                findings.append(_Finding(before, after))
        return findings


def _contained(key: Key, policy: ExposurePolicy, now: datetime) -> Key:
    """Return an exposed key as its workspace's policy has it. NOTIFY_ONLY leaves it as it is."""
    if policy is ExposurePolicy.REVOKE:
        return lifecycle.revoke(key, REASON, now)
    if policy is ExposurePolicy.SUSPEND and key.state is not KeyState.REVOKED:
        return lifecycle.suspend(key, REASON, now)
    return key
