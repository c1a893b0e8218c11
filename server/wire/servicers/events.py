"""EventService."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
from texture.auth.v1 import event_service_pb2 as pb
from texture.auth.v1 import event_service_pb2_grpc

from server.domain.chain import Break, Link, Problem
from server.service.audit import AuditService, Head
from server.service.events import Batch, EventService, Logged
from server.wire import convert
from server.wire.rpc import CURRENT, note_id

# How often it is made sure that a caller who watches may still do so.
ADMISSION_SECONDS = 2.0

_PROBLEM = convert.EnumMap(Problem, pb.ChainProblem, "CHAIN_PROBLEM")


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    """EventService, as `event_service.proto` describes it."""

    def __init__(self, events: EventService, audit: AuditService) -> None:
        self._events = events
        self._audit = audit

    def ListEvents(self, request: pb.ListEventsRequest, context: grpc.ServicerContext) -> pb.ListEventsResponse:
        """List events."""
        listing = self._events.list_events(
            request.workspace_id, request.types, request.after, request.page_size, request.page_token
        )
        return pb.ListEventsResponse(
            events=[_logged(event) for event in listing.rows], next_page_token=listing.next_page_token
        )

    def WatchEvents(
        self, request: pb.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchEventsResponse]:
        """Send events as they are recorded, until the caller has gone, or may not watch any more."""
        if request.workspace_id:
            note_id("workspace_id", request.workspace_id)
        watch = self._events.watch(request.workspace_id, request.types, request.after, only_new=request.only_new)
        admit_again = CURRENT.get().admit_again
        admitted = time.monotonic()
        while context.is_active():
            batch = watch.next(ADMISSION_SECONDS)
            if time.monotonic() >= admitted + ADMISSION_SECONDS:
                admit_again()
                admitted = time.monotonic()
            if batch is not None:
                yield _response(batch)

    def ListChainHeads(
        self, request: pb.ListChainHeadsRequest, context: grpc.ServicerContext
    ) -> pb.ListChainHeadsResponse:
        """List the ends of the chains."""
        listing = self._audit.list_heads(request.page_size, request.page_token)
        return pb.ListChainHeadsResponse(
            heads=[pb.ChainHead(workspace_id=name, number=head.number, mac=head.mac) for name, head in listing.rows],
            next_page_token=listing.next_page_token,
        )

    def VerifyChain(self, request: pb.VerifyChainRequest, context: grpc.ServicerContext) -> pb.VerifyChainResponse:
        """Verify a portion of a chain."""
        if request.workspace_id:
            note_id("workspace_id", request.workspace_id)
        audit = self._audit.verify_chain(
            request.workspace_id,
            [Head(head.number, head.mac, head.workspace_id) for head in request.expected_heads],
            request.portion_token,
        )
        return pb.VerifyChainResponse(
            verified_count=audit.verified,
            unverifiable_counts=audit.unverifiable,
            unsealed_count=audit.unsealed,
            expired_head_count=audit.heads_passed,
            broken=_broken(audit.broken),
            last=pb.ChainHead(workspace_id=request.workspace_id, number=audit.last.number, mac=audit.last.mac),
            next_portion_token=audit.next_portion_token,
        )


def _response(batch: Batch) -> pb.WatchEventsResponse:
    return pb.WatchEventsResponse(events=[_logged(event) for event in batch.events], cursor=batch.place.encode())


def _logged(logged: Logged) -> pb.LoggedEvent:
    return pb.LoggedEvent(
        event=convert.event(logged.event),
        cursor=logged.place.encode(),
        link=None if logged.link is None else _link(logged.link),
    )


def _link(link: Link) -> pb.ChainLink:
    return pb.ChainLink(
        number=link.number,
        pepper_id=link.pepper_id,
        content_mac=link.content_mac,
        mac=link.mac,
        redacted=link.redaction is not None,
    )


def _broken(found: Break | None) -> pb.ChainBreak | None:
    if found is None:
        return None
    return pb.ChainBreak(
        problem=_PROBLEM.to_proto(found.problem),
        number=found.number,
        event_id="" if found.event_id is None else str(found.event_id),
    )
