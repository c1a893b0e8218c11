"""From what Envoy asks to questions of this service, and from its answers to what Envoy is to do."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import attribute_context_pb2, external_auth_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import request_context_pb2

from server.domain.reasons import OUTCOMES, Reason
from server.domain.routes import Ambiguous, Route, Routes, Template, query_names_device, segments_of
from server.domain.validation import HEADER_LENGTH, parse_address
from server.wire import convert
from server.wire.errors import DOMAIN

API_KEY = "texture-api-key"
# All that tells the server behind who asks begins with it.
IDENTITY = "x-texture-"
_KEY_ID = f"{IDENTITY}key-id"
_KEY_KIND = f"{IDENTITY}key-kind"
_WORKSPACE = f"{IDENTITY}workspace-id"
_REFERENCE = f"{IDENTITY}reference-id"
_MANUFACTURERS = f"{IDENTITY}manufacturers"
_PERMISSION = f"{IDENTITY}permission"
_DEVICE = f"{IDENTITY}device-id"
_DECISION = f"{IDENTITY}decision-id"
_OURS = (_KEY_ID, _KEY_KIND, _WORKSPACE, _REFERENCE, _MANUFACTURERS, _PERMISSION, _DEVICE, _DECISION)
# By these some servers take a request for another one than its first line says.
OVERRIDES = (
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
)
# What a server behind must not get from a client: some take an underscore for a hyphen.
_NEVER = frozenset(
    spelt for name in (API_KEY, *_OURS, *OVERRIDES) for spelt in (name, name.replace("-", "_"))
) | frozenset({IDENTITY.replace("-", "_") + name.removeprefix(IDENTITY) for name in _OURS})

# How a route of Envoy says what it needs: as context extensions, or as metadata of its own under this name.
EXTENSION = "texture-"
NAMESPACE = "texture.auth"
_NEEDS_PERMISSION = "permission"
_NEEDS_PATH = "device-path"
_KNOWN = {_NEEDS_PERMISSION, _NEEDS_PATH}

_GRPC = "application/grpc"
_CONTEXT = {
    "user_agent": "user-agent",
    "origin": "origin",
    "sec_fetch_site": "sec-fetch-site",
    "sec_fetch_mode": "sec-fetch-mode",
    "sec_fetch_dest": "sec-fetch-dest",
    "sec_fetch_user": "sec-fetch-user",
}
_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class Unasked(Exception):  # noqa: N818 - it names a state
    """A request that is denied before any key is looked at; `message` is for the client, `fault` for operators."""

    def __init__(
        self, code: str, http_status_code: int, grpc_code: grpc.StatusCode, message: str, fault: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.http_status_code = http_status_code
        self.grpc_code = grpc_code
        self.message = message
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be found out about a request: `question` is None where it is open to everybody."""

    question: pb.AuthorizeRequest | None = field(repr=False)
    path: str


class Reader:
    """Reads what Envoy asks.

    Routes that say nothing of what they need are looked up in `routes`. The client is whoever is connected to Envoy or,
    where so many proxies before Envoy are trusted, whom the first of them named in `x-forwarded-for`.
    """

    def __init__(self, routes: Routes, trusted_hops: int = 0) -> None:
        self._routes = routes
        self._trusted_hops = trusted_hops

    def read(self, attributes: attribute_context_pb2.AttributeContext, headers: Mapping[str, str]) -> Asked:
        """Return what is to be found out about a request with these headers, by `headers_of`. Raises Unasked."""
        http = attributes.request.http
        try:
            segments = segments_of(http.path)
            if any(headers.get(name) for name in OVERRIDES):
                raise Ambiguous("a header says that another method or path is meant")
            declared = _declared(attributes)
            route = _route_of(declared, segments) if declared else self._routes.find(http.method, segments)
            device_id = route.device_id(segments) if route else ""
            if device_id and query_names_device(http.path):
                # Envoy's own transcoder takes the one in the query.
                raise Ambiguous("the query names a device, and so does the path")
        except Ambiguous as ambiguous:
            raise Unasked(
                "REQUEST_AMBIGUOUS",
                400,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"The request could be read in more than one way: {ambiguous}.",
            ) from None
        if route is None:
            raise Unasked("ROUTE_UNKNOWN", 404, grpc.StatusCode.UNIMPLEMENTED, "There is nothing under this path.")
        path = "" if route.template is None else route.template.path
        if route.permission is None:
            return Asked(None, path)
        question = pb.AuthorizeRequest(
            api_key=headers.get(API_KEY, ""),
            permission=route.permission.value,
            device_id=device_id,
            context=self._context(attributes, headers),
        )
        return Asked(question, path)

    def _context(
        self, attributes: attribute_context_pb2.AttributeContext, headers: Mapping[str, str]
    ) -> request_context_pb2.RequestContext:
        # What is longer than the service takes is the client's doing, and no reason to leave the question unanswered.
        seen = {into: headers.get(name, "")[:HEADER_LENGTH] for into, name in _CONTEXT.items()}
        return request_context_pb2.RequestContext(client_ip=self._client_ip(attributes, headers), **seen)

    def _client_ip(self, attributes: attribute_context_pb2.AttributeContext, headers: Mapping[str, str]) -> str:
        """Return the client's address; empty where it cannot be told, so that restricted keys are denied."""
        address = attributes.source.address.socket_address.address
        if self._trusted_hops:
            # Envoy has added whoever is connected to it, the last of the trusted proxies.
            named = headers.get("x-forwarded-for", "").split(",")
            address = named[-1 - self._trusted_hops].strip() if len(named) > self._trusted_hops else ""
        return _address(address)


def headers_of(http: attribute_context_pb2.AttributeContext.HttpRequest) -> dict[str, str]:
    """Return the headers of a request by their names in lower case, those that are there twice with a comma."""
    found: dict[str, str] = {name.lower(): value for name, value in http.headers.items()}
    for each in http.header_map.headers:
        value = each.value or each.raw_value.decode("utf-8", "replace")
        name = each.key.lower()
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def allowed(
    headers: Mapping[str, str], asked: Asked, answer: pb.AuthorizeResponse | None
) -> external_auth_pb2.CheckResponse:
    """Return the yes to a request: without the key, and with what `answer` says of who asks, whatever came along."""
    given = {} if answer is None else _identity(asked, answer)
    forged = [name for name in headers if _means_identity(name) and name not in _NEVER]
    response = external_auth_pb2.CheckResponse()
    response.status.SetInParent()
    ok = response.ok_response
    _set(given, ok.headers)
    ok.headers_to_remove.extend([name for name in (*_NEVER, *forged) if name not in given])
    return response


def denied(headers: Mapping[str, str], answer: pb.AuthorizeResponse) -> external_auth_pb2.CheckResponse:
    """Return the no to a request that an answer is."""
    reason = Reason[pb.Reason.Name(answer.reason).removeprefix("REASON_")]
    outcome = OUTCOMES[reason]
    message = outcome.explanation
    if answer.missing_permission:
        message = f"{message.removesuffix('.')}: {answer.missing_permission}."
    unasked = Unasked(reason.name, answer.http_status_code, grpc.StatusCode[outcome.grpc_code], message)
    return denied_unasked(headers, unasked, answer.decision_id)


def denied_unasked(headers: Mapping[str, str], why: Unasked, decision_id: str = "") -> external_auth_pb2.CheckResponse:
    """Return the no to a request: to HTTP as JSON, to gRPC as a status."""
    told = {_DECISION: decision_id} if decision_id else {}
    code: int = why.grpc_code.value[0]
    if is_grpc(headers.get("content-type", "")):
        # Envoy makes the body the message. By itself it would make UNIMPLEMENTED of a 404, and INTERNAL of a 400.
        told |= {"grpc-status": str(code), "grpc-status-details-bin": _details(code, why)}
        body = why.message
    else:
        told["content-type"] = "application/json"
        body = json.dumps({"code": why.code, "message": why.message})
    response = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code, message=why.code))
    no = response.denied_response
    no.status.code, no.body = why.http_status_code, body
    _set(told, no.headers)
    return response


def is_grpc(content_type: str) -> bool:
    """Tell whether a request is one of gRPC, as Envoy tells it."""
    return content_type.startswith(_GRPC) and content_type[len(_GRPC) : len(_GRPC) + 1] in ("", "+", ";")


def _identity(asked: Asked, answer: pb.AuthorizeResponse) -> dict[str, str]:
    question = asked.question or pb.AuthorizeRequest()
    kind = convert.KIND.to_domain("kind", answer.key.kind)
    told = {
        _KEY_ID: answer.key.key_id,
        _KEY_KIND: "" if kind is None else kind.value,
        _WORKSPACE: answer.key.workspace_id,
        _REFERENCE: answer.key.reference_id,
        _MANUFACTURERS: ",".join(answer.device_scope.manufacturers),
        _PERMISSION: question.permission,
        _DEVICE: question.device_id,
        _DECISION: answer.decision_id,
    }
    return {name: value for name, value in told.items() if value}


def _means_identity(name: str) -> bool:
    spelt = name.replace("_", "-")
    return spelt == API_KEY or spelt.startswith(IDENTITY)


def _set(headers: Mapping[str, str], into: Any) -> None:
    """Add headers to a field of Envoy's, which replace what is there."""
    # Field by field: to make messages for each and put them in takes twice as long.
    for name, value in headers.items():
        option = into.add()
        option.append_action = _OVERWRITE
        option.header.key, option.header.value = name, value


def _details(code: int, why: Unasked) -> str:
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=why.code, domain=DOMAIN))
    status = status_pb2.Status(code=code, message=why.message, details=[info])
    return base64.b64encode(status.SerializeToString()).decode()


def _declared(attributes: attribute_context_pb2.AttributeContext) -> dict[str, str]:
    """Return what the route of a request says of what it needs: Envoy's own words, which no client can reach."""
    extensions = attributes.context_extensions.items()
    declared = {name.removeprefix(EXTENSION): value for name, value in extensions if name.startswith(EXTENSION)}
    if not declared and NAMESPACE in attributes.route_metadata_context.filter_metadata:
        fields = attributes.route_metadata_context.filter_metadata[NAMESPACE].fields
        declared = {name: value.string_value for name, value in fields.items()}
    return declared


def _route_of(declared: Mapping[str, str], segments: tuple[str, ...]) -> Route | None:
    """Return the route that says what it needs; None where the path is not the one that it says. Raises Unasked."""
    try:
        if not declared.keys() <= _KNOWN or _NEEDS_PERMISSION not in declared:
            raise ValueError(f"a route has a {_NEEDS_PERMISSION} and, for what is about a device, a {_NEEDS_PATH}")
        route = _declared_route(declared[_NEEDS_PERMISSION], declared.get(_NEEDS_PATH, ""))
    except ValueError as error:
        # A no, and no error of gRPC, which Envoy may have been told to let pass.
        raise Unasked(
            "ROUTE_INVALID", 500, grpc.StatusCode.INTERNAL, "The gateway does not know what this needs.", str(error)
        ) from None
    return route if route.template is None or route.template.matches(segments) else None


@lru_cache(maxsize=4096)
def _address(text: str) -> str:
    """Return an address as this service takes it; empty for what is none."""
    try:
        return str(parse_address(text))
    except ValueError:
        return ""


@lru_cache(maxsize=1024)
def _declared_route(permission: str, path: str) -> Route:
    """Return the route that words of Envoy's configuration mean. Raises ValueError."""
    return Route.of(permission, Template.parse(path) if path else None)
