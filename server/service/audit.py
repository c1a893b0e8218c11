"""Whether the event log is what was recorded."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.domain.chain import INSTALLATION, Break, Place, Problem, Sealer, Verification
from server.domain.validation import Fields
from server.service.base import Listing, Resources, require_workspace
from server.store.contract import Cursor, Reader

# How many links one call looks at: some tenths of a second.
LINKS_AT_ONCE = 5_000
# How many earlier heads one call compares with.
MOST_HEADS = 1_000
MAC_BYTES = 32
BEFORE_EVENTS = -(2**63)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain at some time: the number and the code of what was then its last link.

    Its workspace may be left out.
    """

    number: int
    mac: bytes = field(repr=False)
    workspace_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a portion of a chain turned out to be.

    `unsealed` are events of a release that had no chain, `heads_passed` earlier heads that lie before all that is kept;
    both are counted in the first portion. `next_portion_token` is empty at the end of the chain and where it is broken.
    """

    verified: int
    unverifiable: Mapping[str, int]
    unsealed: int
    heads_passed: int
    broken: Break | None
    last: Place
    next_portion_token: str


class AuditService:
    """Verifies chains, and tells where they end."""

    def __init__(self, resources: Resources, links_at_once: int = LINKS_AT_ONCE) -> None:
        self._resources = resources
        self._sealer = Sealer(resources.peppers)
        self._links_at_once = links_at_once

    def list_heads(self, page_size: int, page_token: str) -> Listing[tuple[str, Place]]:
        """List the chains with their heads; one in which nothing is has number 0. Raises Refusal (FIELD_INVALID)."""
        fields = Fields()
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        after = tokens.decode(page_token, "chains")
        with self._resources.store.read() as reader:
            found = reader.chains(None if after is None else after.row_id, limit + 1)
        rows = tuple((name, Place() if chain is None else chain.head) for name, chain in found[:limit])
        following = Cursor(0, rows[-1][0]) if len(found) > limit else None
        return Listing(rows, tokens.encode(following, "chains"))

    def verify_chain(self, workspace_id: str, heads: Sequence[Head], portion_token: str) -> Audit:
        """Verify a portion of the chain of a workspace, or of the installation where none is named.

        Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND where there is neither a workspace nor anything of a chain.
        """
        expected = _expected(workspace_id, heads)
        scope = ("chain", workspace_id)
        after = self._resources.page_tokens.decode(portion_token, *scope, field="portion_token")
        with self._resources.store.read() as reader:
            found = _Portion(reader, self._sealer, workspace_id, expected)
            if after is None:
                found.begin()
            else:
                found.resume(after)
            found.walk(self._links_at_once)
        walk = found.verification
        following = None if found.over else _cursor(walk)
        return Audit(
            verified=walk.verified,
            unverifiable=walk.unverifiable,
            unsealed=found.unsealed,
            heads_passed=found.heads_passed,
            broken=walk.broken,
            last=walk.place,
            next_portion_token=self._resources.page_tokens.encode(following, *scope),
        )


class _Portion:
    """A walk along a portion of a chain, in one snapshot."""

    def __init__(self, reader: Reader, sealer: Sealer, name: str, expected: Mapping[int, Sequence[bytes]]) -> None:
        self._reader = reader
        self._sealer = sealer
        self._name = name
        self._chain = reader.chain(name)
        self.verification = Verification(sealer=sealer, place=Place(), events_seen=0, expected=expected)
        self.unsealed = 0
        self.heads_passed = 0
        self.over = False

    def begin(self) -> None:
        """Go to where the chain begins."""
        walk, chain = self.verification, self._chain
        sealed_from = self._sealed_from() if chain is None else chain.anchor.sealed_from
        # Where every event is to be in a chain, none can be before the first.
        walk.events_seen = BEFORE_EVENTS if sealed_from <= 1 else sealed_from - 1
        if sealed_from > 1:
            self.unsealed = self._reader.count_unsealed(self._name, sealed_from)
        if chain is None:
            return
        walk.begin(chain)
        self.heads_passed = sum(number < walk.place.number for number in walk.expected)

    def resume(self, after: Cursor) -> None:
        """Go to where the portion before has come or, where that was pruned meanwhile, to what is left."""
        walk, chain = self.verification, self._chain
        mac, pepper_id, walk.events_seen = json.loads(after.row_id)
        walk.place = Place(after.position, bytes.fromhex(mac), pepper_id)
        if chain is not None and chain.anchor.place.number > walk.place.number:
            walk.begin(chain)

    def walk(self, limit: int) -> None:
        """Walk along so many links, and look for events between them that have none.

        Raises Refusal (WORKSPACE_NOT_FOUND) where there is neither a workspace nor anything to verify.
        """
        walk = self.verification
        began, seen = walk.place.number, walk.events_seen
        links = [] if walk.broken else self._reader.chain_links(self._name, began, limit)
        walk.take(links)
        at_end = len(links) < limit and walk.broken is None
        loose = self._reader.loose_event(self._name, seen, None if at_end else walk.events_seen)
        if loose is not None:
            # It comes before whatever else is wrong.
            number = max((one.link.number for one in links if one.link.event_id < loose), default=began)
            walk.broken = Break(Problem.EVENT_INSERTED, number, loose)
        elif at_end:
            if self._chain is None and not (links or self.unsealed or walk.expected or self._name == INSTALLATION):
                require_workspace(self._reader, self._name)
            walk.end(Place() if self._chain is None else self._chain.head)
        self.over = at_end or walk.broken is not None

    def _sealed_from(self) -> int:
        """Return the first event that must be in a chain, for a workspace that has none."""
        installation = self._reader.chain(INSTALLATION)
        return self._reader.event_log().sealed_from if installation is None else installation.anchor.sealed_from


def _cursor(walk: Verification) -> Cursor:
    place = walk.place
    return Cursor(place.number, json.dumps([place.mac.hex(), place.pepper_id, walk.events_seen]))


def _expected(workspace_id: str, heads: Sequence[Head]) -> Mapping[int, Sequence[bytes]]:
    """Return the codes by number. Raises Refusal (FIELD_INVALID)."""
    fields = Fields()
    if len(heads) > MOST_HEADS:
        fields.fault("expected_heads", f"must have at most {MOST_HEADS} entries")
        heads = ()
    by_number: dict[int, list[bytes]] = defaultdict(list)
    for index, head in enumerate(heads):
        if head.number < 1:
            fields.fault(f"expected_heads[{index}].number", "must be 1 or larger")
        if len(head.mac) != MAC_BYTES:
            fields.fault(f"expected_heads[{index}].mac", f"must have {MAC_BYTES} bytes")
        if head.workspace_id not in ("", workspace_id):
            fields.fault(f"expected_heads[{index}].workspace_id", "is not that of the chain")
        by_number[head.number].append(head.mac)
    fields.refuse_if_invalid()
    return by_number
