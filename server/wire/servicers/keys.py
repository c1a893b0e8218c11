"""KeyService."""

from __future__ import annotations

from collections import Counter

import grpc
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1 import key_service_pb2_grpc
from texture.auth.v1.key_pb2 import Key as KeyMessage

from server.domain.errors import invalid
from server.domain.model import Key
from server.domain.usage import Retirement
from server.service.base import Clock
from server.service.keys import KeyFields, KeyService
from server.service.reports import Report, Reported, ReportService
from server.service.revocations import Match, RevocationService, Selection
from server.service.rotations import RotationService
from server.wire import convert
from server.wire.rpc import call_of, note, note_id


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """KeyService, as `key_service.proto` describes it."""

    def __init__(
        self,
        service: KeyService,
        revocations: RevocationService,
        reports: ReportService,
        rotations: RotationService,
        clock: Clock,
    ) -> None:
        self._service = service
        self._revocations = revocations
        self._reports = reports
        self._rotations = rotations
        self._clock = clock

    def CreateKey(self, request: pb.CreateKeyRequest, context: grpc.ServicerContext) -> pb.CreateKeyResponse:
        """Create a server or connect key."""
        mutation = self._service.create_key(
            call_of(request),
            request.workspace_id,
            convert.KIND.to_domain("kind", request.kind),
            _fields(request, ""),
        )
        created = mutation.value
        note(key_id=created.entity.key_id)
        return pb.CreateKeyResponse(
            key=self._message(created.entity), api_key=created.secret, revision=mutation.revision.encode()
        )

    def GetKey(self, request: pb.GetKeyRequest, context: grpc.ServicerContext) -> pb.GetKeyResponse:
        """Return a key."""
        return pb.GetKeyResponse(key=self._message(self._service.get_key(request.key_id)))

    def ListKeys(self, request: pb.ListKeysRequest, context: grpc.ServicerContext) -> pb.ListKeysResponse:
        """List the keys of a workspace."""
        listing = self._service.list_keys(
            request.workspace_id,
            convert.KIND.to_domain("kind", request.kind),
            convert.STATE.to_domain("state", request.state),
            request.reference_id,
            request.labels,
            request.page_size,
            request.page_token,
        )
        return pb.ListKeysResponse(
            keys=[self._message(key) for key in listing.rows], next_page_token=listing.next_page_token
        )

    def UpdateKey(self, request: pb.UpdateKeyRequest, context: grpc.ServicerContext) -> pb.UpdateKeyResponse:
        """Change fields of a key."""
        note_id("key_id", request.key.key_id)
        mutation = self._service.update_key(
            call_of(request), request.key.key_id, _fields(request.key, "key."), request.update_mask.paths
        )
        return pb.UpdateKeyResponse(
            key=self._message(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def SuspendKey(self, request: pb.SuspendKeyRequest, context: grpc.ServicerContext) -> pb.SuspendKeyResponse:
        """Switch a key off."""
        note_id("key_id", request.key_id)
        mutation = self._service.suspend_key(call_of(request), request.key_id)
        return pb.SuspendKeyResponse(
            key=self._message(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def ResumeKey(self, request: pb.ResumeKeyRequest, context: grpc.ServicerContext) -> pb.ResumeKeyResponse:
        """Switch a key on."""
        note_id("key_id", request.key_id)
        mutation = self._service.resume_key(call_of(request), request.key_id)
        return pb.ResumeKeyResponse(key=self._message(mutation.value), revision=mutation.revision.encode())

    def RotateKey(self, request: pb.RotateKeyRequest, context: grpc.ServicerContext) -> pb.RotateKeyResponse:
        """Give a key a new secret."""
        note_id("key_id", request.key_id)
        mutation = self._service.rotate_key(call_of(request), request.key_id, convert.rotation(request))
        rotated = mutation.value
        return pb.RotateKeyResponse(
            key=self._message(rotated.entity),
            api_key=rotated.secret,
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def GetRotation(self, request: pb.GetRotationRequest, context: grpc.ServicerContext) -> pb.GetRotationResponse:
        """Tell who still uses old secrets of a key."""
        note_id("key_id", request.key_id)
        quiet_for = convert.length_of_time(request, "quiet_for", "quiet_for")
        found = self._rotations.get_rotation(request.key_id, quiet_for)
        return pb.GetRotationResponse(replaced=map(_replaced, found))

    def RetireGeneration(
        self, request: pb.RetireGenerationRequest, context: grpc.ServicerContext
    ) -> pb.RetireGenerationResponse:
        """End an old secret of a key."""
        note_id("key_id", request.key_id)
        quiet_for = convert.length_of_time(request, "quiet_for", "quiet_for")
        mutation = self._rotations.retire_generation(
            call_of(request), request.key_id, request.generation, quiet_for, force=request.force
        )
        return pb.RetireGenerationResponse(
            key=self._message(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def RevokeKey(self, request: pb.RevokeKeyRequest, context: grpc.ServicerContext) -> pb.RevokeKeyResponse:
        """End a key for good."""
        note_id("key_id", request.key_id)
        mutation = self._service.revoke_key(call_of(request), request.key_id)
        return pb.RevokeKeyResponse(
            key=self._message(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def RevokeKeys(self, request: pb.RevokeKeysRequest, context: grpc.ServicerContext) -> pb.RevokeKeysResponse:
        """End all keys that match a filter."""
        note_id("workspace_id", request.workspace_id)
        call, selection = call_of(request), _selection(request.filter)
        if request.dry_run:
            if request.HasField("expected_count"):
                raise invalid("expected_count", "must be unset with dry_run, which finds it out")
            found, head = self._revocations.preview(call, request.workspace_id, selection)
            note(dry_run=True, count=found.count)
            return pb.RevokeKeysResponse(
                count=found.count,
                key_ids=found.key_ids,
                revision=head.encode(),
                keys=[self._matched(match) for match in found.matches],
            )
        if not request.HasField("expected_count"):
            raise invalid("expected_count", "is needed: ask with dry_run first, and give the count that it returns")
        mutation = self._revocations.revoke(call, request.workspace_id, selection, request.expected_count)
        note(count=mutation.value.count)
        return pb.RevokeKeysResponse(
            count=mutation.value.count,
            key_ids=mutation.value.key_ids,
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def ReportExposedKeys(
        self, request: pb.ReportExposedKeysRequest, context: grpc.ServicerContext
    ) -> pb.ReportExposedKeysResponse:
        """Take note of keys that were found where they must not be."""
        reports = [Report(one.api_key, one.url, one.source) for one in request.reports]
        mutation = self._reports.report_exposed_keys(call_of(request), reports)
        counts = Counter(one.outcome.value for one in mutation.value)
        note(reports=len(reports), **counts)
        return pb.ReportExposedKeysResponse(
            results=[self._reported(one) for one in mutation.value],
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def LookupKey(self, request: pb.LookupKeyRequest, context: grpc.ServicerContext) -> pb.LookupKeyResponse:
        """Say which key this is."""
        key, generation = self._service.lookup_key(request.api_key)
        note(key_id=key.key_id)
        return pb.LookupKeyResponse(key=self._message(key), generation=generation.number)

    def ListKeyEvents(
        self, request: pb.ListKeyEventsRequest, context: grpc.ServicerContext
    ) -> pb.ListKeyEventsResponse:
        """List what has happened to a key."""
        listing = self._service.list_key_events(request.key_id, request.page_size, request.page_token)
        return pb.ListKeyEventsResponse(
            events=[convert.event(event) for event in listing.rows], next_page_token=listing.next_page_token
        )

    def _message(self, key: Key) -> KeyMessage:
        return convert.key(key, self._clock())

    def _matched(self, match: Match) -> pb.MatchedKey:
        key = match.key
        return pb.MatchedKey(
            key_id=key.key_id,
            kind=convert.KIND.to_proto(key.kind),
            state=convert.STATE.to_proto(key.state_at(self._clock())),
            display_name=key.display_name,
            created_by_key_id=key.created_by_key_id or "",
            connect_link_id=key.connect_link_id or "",
            reference_id=key.reference_id or "",
            last_use_time=convert.timestamp(match.last_use_time),
        )

    def _reported(self, done: Reported) -> pb.ReportedKey:
        answer = pb.ReportedKey(outcome=convert.EXPOSURE_OUTCOME.to_proto(done.outcome), key_id=done.key_id)
        if done.key is not None:
            answer.kind = convert.KIND.to_proto(done.key.kind)
            answer.workspace_id = done.key.workspace_id
            answer.state = convert.STATE.to_proto(done.key.state_at(self._clock()))
        return answer


def _replaced(found: Retirement) -> pb.ReplacedSecret:
    return pb.ReplacedSecret(
        generation=found.generation,
        rotation_time=convert.timestamp(found.rotation_time),
        retire_time=convert.timestamp(found.retire_time),
        uses=[
            pb.ReplacedSecretUse(
                caller_id=use.caller_id,
                count=use.span.count,
                first_time=convert.timestamp(use.span.first_time),
                last_time=convert.timestamp(use.span.last_time),
            )
            for use in found.uses
        ],
        safe_to_retire=found.safe,
        safe_time=convert.timestamp(found.safe_time),
        reported_until_time=convert.timestamp(found.reported_until),
        unsure_until_time=convert.timestamp(found.unsure_until),
        processes_silent=found.silent_processes,
    )


def _selection(message: pb.RevokeKeysFilter) -> Selection:
    """Return which keys a message selects. Raises Refusal (FIELD_INVALID)."""
    return Selection(
        kind=convert.KIND.to_domain("filter.kind", message.kind),
        reference_id=message.reference_id,
        labels=dict(message.labels),
        created_by_key_id=message.created_by_key_id,
        created_from=convert.instant(message, "created_from", "filter.created_from"),
        created_before=convert.instant(message, "created_before", "filter.created_before"),
        descends_from_key_id=message.descends_from_key_id,
        connect_link_id=message.connect_link_id,
        device_id=message.device_id,
    )


def _fields(message: pb.CreateKeyRequest | KeyMessage, prefix: str) -> KeyFields:
    """Return what a message says a key should be. Raises Refusal (FIELD_INVALID)."""
    return KeyFields(
        display_name=message.display_name,
        description=message.description,
        labels=dict(message.labels),
        permissions=list(message.permissions),
        allowed_cidrs=list(message.allowed_cidrs),
        allowed_manufacturers=list(message.allowed_manufacturers),
        redirect_uris=list(message.redirect_uris),
        expire_time=convert.instant(message, "expire_time", f"{prefix}expire_time"),
    )
