"""Requests that nobody would write on purpose, made from the descriptors, so that what is added to them is covered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from tests.harness import Service
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    REDIRECT_URI,
    USER,
    WORKSPACE,
    current_revision,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    register,
    revoke,
    suspend,
)
from tests.wire.rpcs import is_ours, new_caller, new_message, open_link

# What the store holds, by the name of the field where it belongs.
Known: TypeAlias = "Mapping[str, Sequence[str]]"
# A FieldDescriptor, of which one knows by looking at it what its published types leave open.
Field: TypeAlias = Any
# A function that returns a value of a strategy.
Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]

_DEPTH = 3
_NASTY = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[31m",
    "a\r\nb",
    "\x7f\x85\u2028",
    "%",
    "%s%d",
    "100%",
    "_",
    "*",
    "' OR 1=1; --",
    "\\",
    "${x}{0}",
    "ключ 🔑",
    "e\u0301",
    "\ufeff\u202e",
    "\U0010ffff",
    "٣",
    "null",
    "-1",
    "10.0.0.0/8",
    "::ffff:0:0/96",
    "https://app.example/%2e%2e?texture_scoped_key=x",
    "devices:read",
    "x" * 129,
    "é" * 2_000,
    "%" * 10_240,
    "x" * 70_000,
    # The form of a key, in letters that also other forms allow.
    f"txk_srv_{'a' * 16}_{'b' * 38}",
    f"txl_{'0' * 16}_{'1' * 38}",
    f"a=txk_con_{'A' * 16}_{'B' * 38}&b",
)
_INTEGERS = (0, 1, -1, 2, 99, 1_000, 1_001, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_SECONDS = (0, 1, -1, 59, 60, 1_893_499_200, 253_402_300_799, 253_402_300_800, 315_576_000_001, 2**63 - 1, -(2**63))
_NANOS = (0, 1, -1, 999_999_999, 1_000_000_000, 2**31 - 1, -(2**31))
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def populate(service: Service) -> Known:
    """Make some of everything, in every state, and return what may be named: noise that hits something goes deeper."""
    for workspace_id in (WORKSPACE, OTHER_WORKSPACE):
        make_workspace(service, workspace_id)
    register(service, "noisy-device", "noisy-device-2", manufacturer="acme")
    register(service, "noisy-device-3", workspace_id=OTHER_WORKSPACE, reference_id=OTHER_USER)
    live, revoked, suspended = (make_key(service) for _ in range(3))
    elsewhere = make_key(service, workspace_id=OTHER_WORKSPACE)
    connect = make_connect_key(service)
    revoke(service, revoked.key.key_id)
    suspend(service, suspended.key.key_id)
    keys = (live, revoked, suspended, elsewhere, connect)
    scoped = make_scoped_key(service, "noisy-device")
    link = open_link(service)
    return {
        "workspace_id": (WORKSPACE, OTHER_WORKSPACE),
        "key_id": (*(made.key.key_id for made in keys), scoped.scoped_key.key_id),
        "api_key": (*(made.api_key for made in keys), scoped.scoped_api_key),
        "device_id": ("noisy-device", "noisy-device-2", "noisy-device-3"),
        "reference_id": (USER, OTHER_USER),
        "caller_id": (new_caller(service),),
        "connect_link_id": (link.connect_link.connect_link_id, scoped.connect_link.connect_link_id),
        "link_token": (link.link_token,),
        "redirect_uri": (REDIRECT_URI,),
        "revision": (current_revision(service),),
        "permission": ("devices:list", "devices:read", "connect_links:create", "keys:manage"),
    }


def noise(draw: Draw, descriptor: Descriptor, known: Known, depth: int = 0) -> Any:
    """Return a message some of whose fields hold something."""
    message = new_message(descriptor)
    fields = list(descriptor.fields)
    if fields and depth < _DEPTH:
        for field in draw(st.lists(st.sampled_from(fields), unique=True, max_size=len(fields))):
            put_noise(draw, message, field, known, depth)
    return message


def put_noise(draw: Draw, message: Any, field: Field, known: Known, depth: int = 0) -> None:
    """Set a field of a message to something, whatever it held."""
    message.ClearField(field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _put_map(draw, getattr(message, field.name), field.message_type, known)
    elif field.is_repeated:
        values = [_value(draw, field, known, depth) for _ in range(draw(st.integers(0, 3)))]
        # Each twice, or more often than any list may have, once in a while.
        getattr(message, field.name).extend(values * draw(st.sampled_from((1,) * 15 + (2, 1_001))))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_value(draw, field, known, depth))
    else:
        setattr(message, field.name, _value(draw, field, known, depth))


def damaged(draw: Draw, raw: bytes) -> bytes:
    """Return bytes that were a message, with something missing, added or changed."""
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, min(len(raw), start + 8)))
    return b"".join((raw[:start], draw(st.binary(max_size=8)), raw[end:]))


def _value(draw: Draw, field: Field, known: Known, depth: int) -> Any:
    """Return something that a field, or one element of it, can hold."""
    if field.message_type is not None:
        special = _SPECIAL.get(field.message_type.full_name)
        return special(draw, field, known) if special else noise(draw, field.message_type, known, depth + 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return draw(st.binary(max_size=64))
        return draw(_text(field.name, known))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw(st.floats(width=32))
    low, high = _RANGES[field.cpp_type]
    likely = field.enum_type.values_by_number if field.enum_type is not None else _INTEGERS
    return draw(st.sampled_from([number for number in (*likely, 99, high) if low <= number <= high]))


def _text(name: str, known: Known) -> st.SearchStrategy[str]:
    """Return words for a field: what belongs there, what belongs elsewhere, what belongs nowhere."""
    singular = name.removesuffix("s")
    fitting = [text for kind, texts in known.items() if singular.endswith(kind) for text in texts]
    everything = [text for texts in known.values() for text in texts]
    return st.one_of(
        st.sampled_from(fitting or everything),
        st.sampled_from(everything),
        st.sampled_from(_NASTY),
        st.text(max_size=20),
        st.sampled_from(everything).map(lambda text: text[:-1] + "%"),
    )


def _put_map(draw: Draw, target: Any, entry: Descriptor, known: Known) -> None:
    fields = entry.fields_by_name
    for _ in range(draw(st.sampled_from((0, 1, 2, 40)))):
        target[_value(draw, fields["key"], known, 0)] = _value(draw, fields["value"], known, 0)


def _moment(draw: Draw, field: Field, _known: Known) -> Any:
    """Return a Timestamp or a Duration, near the edges of what each may be and beyond."""
    message = new_message(field.message_type)
    message.seconds, message.nanos = draw(st.sampled_from(_SECONDS)), draw(st.sampled_from(_NANOS))
    return message


def _mask(draw: Draw, field: Field, known: Known) -> Any:
    """Return a mask of paths, of fields that are beside it and of others."""
    message = new_message(field.message_type)
    beside = [part for other in field.containing_type.fields if is_ours(other) for part in other.message_type.fields]
    paths = [part.name for part in beside] or ["display_name"]
    message.paths.extend(draw(st.lists(st.one_of(st.sampled_from(paths), _text("", known)), max_size=4)))
    return message


_SPECIAL: Mapping[str, Callable[[Draw, Field, Known], Any]] = {
    "google.protobuf.Timestamp": _moment,
    "google.protobuf.Duration": _moment,
    "google.protobuf.FieldMask": _mask,
}
