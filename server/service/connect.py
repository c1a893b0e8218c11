"""Connect links: how devices arrive, and how scoped keys are minted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from uuid6 import uuid7

from server.domain import lifecycle, links, redirects
from server.domain.decision import Decision, Question, decide
from server.domain.errors import ErrorReason, Refusal
from server.domain.events import EventType, Origin, describe
from server.domain.kinds import CEILING, TOKEN_KIND, KeyKind
from server.domain.links import ConnectLinkState
from server.domain.model import ConnectLink, Device, Key
from server.domain.reasons import OUTCOMES
from server.domain.token import Token, TokenKind, mint, new_id, parse
from server.domain.validation import DISPLAY_NAME_LENGTH, Fields
from server.service.base import Call, Issued, Mutation, Resources, repeated, require_key, require_workspace
from server.service.counting import UNCOUNTED, Counter, Use
from server.service.devices import Registration, check_registrations, record_devices
from server.service.exposures import ExposureService
from server.service.rehashing import Rehashing
from server.store.contract import Reader, Writer


@dataclass(frozen=True, slots=True)
class LinkView:
    """A link, and where it stands."""

    link: ConnectLink
    state: ConnectLinkState


@dataclass(frozen=True, slots=True)
class Completion:
    """A completed link, its devices, the scoped key, and where to send the end user, which holds the key."""

    view: LinkView
    devices: tuple[Device, ...]
    scoped_key: Issued[Key]
    redirect_uri: str = field(repr=False)


class ConnectService:
    """Creates, finds, completes and cancels links."""

    def __init__(
        self, resources: Resources, exposures: ExposureService, rehashing: Rehashing, counter: Counter = UNCOUNTED
    ) -> None:
        self._resources = resources
        self._exposures = exposures
        self._rehashing = rehashing
        self._counter = counter

    def create_connect_link(
        self, call: Call, question: Question, redirect_uri: str, reference_id: str, client_state: str
    ) -> Mutation[Issued[LinkView]]:
        """Create a link for the holder of the key in `question`, which asks for `connect_links:create`.

        Refusals: see ConnectService.CreateConnectLink in `connect_service.proto`.
        """
        # Once without the lock, so that nobody without a key can make writers queue, and once with it. Before anything
        # else is looked at, since a leak is one whatever the rest would say.
        with self._resources.store.read() as reader:
            decision = self._decide(reader, question, self._resources.clock())
        self._exposures.contain([decision], call.caller_id)
        if question.presented.token is not None and decision.generation is not None:
            self._rehashing.offer(question.presented.token, decision.generation)
            self._counter.count(Use(decision, question.permission.value, ""), call.caller_id)
        _require_permitted(decision)
        fields = Fields()
        call.check(fields)
        fields.required("redirect_uri", redirect_uri)
        if reference_id:
            fields.visible("reference_id", reference_id)
        fields.client_state("client_state", client_state)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[LinkView]:
            key = _require_permitted(self._decide(writer, question, now))
            workspace = require_workspace(writer, key.workspace_id)
            links.check_redirect(redirect_uri, key, workspace)
            owner = links.choose_reference_id(key, reference_id, uuid7())
            token = mint(TokenKind.LINK, new_id())
            pepper_id, digest = self._resources.peppers.digest(token.text)
            link = ConnectLink(
                connect_link_id=token.public_id,
                workspace_id=key.workspace_id,
                key_id=key.key_id,
                reference_id=owner,
                redirect_uri=redirect_uri,
                client_state=client_state,
                pepper_id=pepper_id,
                digest=digest,
                create_time=now,
                expire_time=now + workspace.connect_link_lifetime,
            )
            writer.add_connect_link(link)
            origin = _on_behalf_of(call, key.key_id)
            writer.record([describe(EventType.CONNECT_LINK_CREATED, origin, None, link, now)])
            return Issued(LinkView(link, ConnectLinkState.OPEN), token.text)

        return self._resources.carry_out(call, work, lambda issued: issued.entity.link.connect_link_id, _no_token_again)

    def get_connect_link(self, connect_link_id: str) -> LinkView:
        """Return a link by its public id. Raises Refusal (CONNECT_LINK_NOT_FOUND)."""
        with self._resources.store.read() as reader:
            return _view(reader, _require_link(reader, connect_link_id), self._resources.clock())

    def find_connect_link(self, link_token: str) -> LinkView:
        """Return a link by its token. Raises Refusal (CONNECT_LINK_NOT_FOUND)."""
        token = _require_token(link_token)
        with self._resources.store.read() as reader:
            return _view(reader, self._require_link_of(reader, token), self._resources.clock())

    def complete_connect_link(
        self, call: Call, link_token: str, registrations: Sequence[Registration]
    ) -> Mutation[Completion]:
        """Close a link, record its devices and mint the scoped key. The registrations' owner is the link's to say.

        Refusals: see ConnectService.CompleteConnectLink in `connect_service.proto`.
        """
        fields = Fields()
        call.check(fields)
        check_registrations(fields, "devices", registrations)
        fields.refuse_if_invalid()
        token = _require_token(link_token)

        def work(writer: Writer, now: datetime) -> Completion:
            link = self._require_link_of(writer, token)
            key = require_key(writer, link.key_id)
            workspace = require_workspace(writer, link.workspace_id)
            links.check_completable(link, key, workspace, now)
            origin = _on_behalf_of(call, key.key_id)
            owned = [Registration(given.device_id, link.reference_id, given.manufacturer) for given in registrations]
            devices = record_devices(writer, origin, link.workspace_id, owned, now)
            return self._complete(writer, origin, link, key, devices, now)

        def again(writer: Writer, _link_id: str, now: datetime) -> Completion:
            """Answer a completion whose answer was lost: the key that nobody saw is revoked for a fresh one."""
            link = self._require_link_of(writer, token)
            key = require_key(writer, link.key_id)
            links.check_unblocked(link, key, require_workspace(writer, link.workspace_id), now)
            origin = _on_behalf_of(call, key.key_id)
            lost = require_key(writer, link.scoped_key_id or "")
            if not links.unseen(lost):
                # Somebody has it, or has ended it: a replay must not undo that.
                raise repeated("key_id", lost.key_id)
            revoked = lifecycle.revoke(lost, "the answer that held it was lost", now)
            writer.replace_key(revoked)
            writer.record([describe(EventType.KEY_REVOKED, origin, lost, revoked, now)])
            found = writer.devices([given.device_id for given in registrations])
            mine = (link.workspace_id, link.reference_id)
            devices = tuple(
                found[given.device_id]
                for given in registrations
                if given.device_id in found
                and (found[given.device_id].workspace_id, found[given.device_id].reference_id) == mine
            )
            return self._complete(writer, origin, link, key, devices, now)

        return self._resources.carry_out(call, work, lambda completion: completion.view.link.connect_link_id, again)

    def cancel_connect_link(self, call: Call, connect_link_id: str) -> Mutation[LinkView]:
        """Cancel an open link. Raises Refusal: FIELD_INVALID, CONNECT_LINK_NOT_FOUND, CONNECT_LINK_COMPLETED."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> LinkView:
            before = _require_link(writer, connect_link_id)
            after = links.cancel(before, now)
            if after != before:
                writer.replace_connect_link(after)
                writer.record([describe(EventType.CONNECT_LINK_CANCELLED, call.origin, before, after, now)])
            return LinkView(after, ConnectLinkState.CANCELLED)

        def again(writer: Writer, link_id: str, now: datetime) -> LinkView:
            return _view(writer, _require_link(writer, link_id), now)

        return self._resources.carry_out(call, work, lambda view: view.link.connect_link_id, again)

    def _complete(
        self,
        writer: Writer,
        origin: Origin,
        link: ConnectLink,
        maker: Key,
        devices: tuple[Device, ...],
        now: datetime,
    ) -> Completion:
        """Mint the scoped key of a link, limited to the manufacturers that its maker is, and close the link with it."""
        workspace = require_workspace(writer, link.workspace_id)
        key_id = new_id()
        minted = lifecycle.mint_generation(TOKEN_KIND[KeyKind.SCOPED], key_id, 1, self._resources.peppers, now)
        scoped_key = Key(
            key_id=key_id,
            workspace_id=link.workspace_id,
            kind=KeyKind.SCOPED,
            display_name=f"End user {link.reference_id}"[:DISPLAY_NAME_LENGTH],
            permissions=CEILING[KeyKind.SCOPED],
            allowed_manufacturers=maker.allowed_manufacturers,
            reference_id=link.reference_id,
            connect_link_id=link.connect_link_id,
            expire_time=now + workspace.scoped_key_lifetime,
            generations=(minted.generation,),
            create_time=now,
            update_time=now,
            created_by_caller_id=origin.caller_id,
            created_by_key_id=link.key_id,
        )
        closed = links.complete(link, key_id, now)
        writer.add_key(scoped_key)
        writer.replace_connect_link(closed)
        writer.record(
            [
                describe(EventType.KEY_CREATED, origin, None, scoped_key, now),
                describe(EventType.CONNECT_LINK_COMPLETED, origin, link, closed, now),
            ]
        )
        return Completion(
            LinkView(closed, ConnectLinkState.COMPLETED),
            devices,
            Issued(scoped_key, minted.text),
            redirects.with_scoped_key(link.redirect_uri, minted.text, link.client_state),
        )

    def _decide(self, reader: Reader, question: Question, now: datetime) -> Decision:
        token = question.presented.token
        key = None if token is None else reader.keys([token.public_id]).get(token.public_id)
        return decide(question, key, None, self._resources.peppers, now)

    def _require_link_of(self, reader: Reader, token: Token) -> ConnectLink:
        """Return the link of a token. Raises Refusal (CONNECT_LINK_NOT_FOUND), for a wrong secret too."""
        link = _require_link(reader, token.public_id)
        if not self._resources.peppers.matches(token.text, link.pepper_id, link.digest):
            raise _not_found()
        return link


def _require_permitted(decision: Decision) -> Key:
    """Return the customer's key if it may create links. Raises Refusal (API_KEY_DENIED)."""
    if decision.allowed and decision.key is not None:
        return decision.key
    outcome = OUTCOMES[decision.reason]
    metadata = {
        "deny_reason": decision.reason.name,
        "http_status_code": str(outcome.http_status_code),
    }
    if decision.missing_permission is not None:
        metadata["missing_permission"] = decision.missing_permission.value
    if decision.key is not None:
        metadata["key_id"] = decision.key.key_id
    raise Refusal(ErrorReason.API_KEY_DENIED, f"api_key: {outcome.explanation}", metadata=metadata)


def _require_token(link_token: str) -> Token:
    token = parse(link_token)
    if token is None or token.kind is not TokenKind.LINK:
        raise _not_found()
    return token


def _require_link(reader: Reader, connect_link_id: str) -> ConnectLink:
    link = reader.connect_link(connect_link_id)
    if link is None:
        raise _not_found()
    return link


def _not_found() -> Refusal:
    return Refusal(ErrorReason.CONNECT_LINK_NOT_FOUND, "there is no such Connect link")


def _view(reader: Reader, link: ConnectLink, now: datetime) -> LinkView:
    key = require_key(reader, link.key_id)
    return LinkView(link, links.state_of(link, key, require_workspace(reader, link.workspace_id), now))


def _on_behalf_of(call: Call, key_id: str) -> Origin:
    """Return the origin of what a link brings about: the customer's key that made the link asked for it."""
    return Origin(
        caller_id=call.caller_id,
        on_behalf_of_key_id=key_id,
        reason=call.reason,
        request_id=call.request_id,
    )


def _no_token_again(_writer: Writer, connect_link_id: str, _now: datetime) -> Issued[LinkView]:
    raise repeated("connect_link_id", connect_link_id)
