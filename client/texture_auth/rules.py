"""What each method of a gRPC server asks for, and whether the map that says so is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

PERMISSIONS = {
    "devices:list": False,
    "devices:read": True,
    "devices:command": True,
    "connect_links:create": False,
    "keys:manage": False,
    "workspace:configure": False,
}
"""Every permission that there is, and whether it is asked for one device."""


class Mode(Enum):
    """What becomes of a no."""

    ENFORCE = "enforce"
    """The call is refused."""
    SHADOW = "shadow"
    """The call goes on, and what would have been refused is counted and logged: for the weeks before enforcing."""


class Public(Enum):
    """The type of PUBLIC."""

    PUBLIC = "public"


PUBLIC = Public.PUBLIC
"""For methods that need no key."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method asks for."""

    permission: str
    device: str = ""
    """Where the device's id is: the path of a string field of the request message, such as `device_id` or
    `device.id`. Needed by `devices:read` and `devices:command`, and refused for the rest."""
    mode: Mode | None = None
    """None for the guard's."""


Rules = Mapping[str, Rule | Public]
"""By full method name, such as `/acme.devices.v1.DeviceApi/GetDevice`."""

HEALTH: Rules = {f"/grpc.health.v1.Health/{name}": PUBLIC for name in ("Check", "List", "Watch")}
REFLECTION: Rules = {
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": PUBLIC for version in ("v1", "v1alpha")
}
"""What other tools call, for `{**HEALTH, ...}`. These may name more than a server serves."""

_OPTIONAL = HEALTH.keys() | REFLECTION.keys()


class MapError(ValueError):
    """A map of rules that is not whole. `faults` names everything that is wrong with it."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


def permission_fault(permission: str, device: object) -> str:
    """Return what is wrong with asking for a permission, with a device or without; empty when nothing is."""
    if permission not in PERMISSIONS:
        return f"there is no permission {permission!r}"
    if PERMISSIONS[permission] and not device:
        return f"{permission} needs a device"
    if device and not PERMISSIONS[permission]:
        return f"{permission} is not asked for one device"
    return ""


def check_permissions(rules: Rules) -> None:
    """Raise MapError, unless every rule asks for what can be asked."""
    found = [
        f"{method}: {fault}"
        for method, rule in rules.items()
        if isinstance(rule, Rule) and (fault := permission_fault(rule.permission, rule.device))
    ]
    if found:
        raise MapError(found)


def check(rules: Rules, served: Iterable[str]) -> None:
    """Raise MapError, unless the rules name exactly the methods that are served, and fields that their messages have.

    The messages are those of the default descriptor pool.
    """
    methods = set(served)
    found = [f"{method}: served, but the map does not say what it asks for" for method in methods - rules.keys()]
    found += [f"{method}: in the map, but not served" for method in rules.keys() - methods - _OPTIONAL]
    for method in methods & rules.keys():
        rule = rules[method]
        if isinstance(rule, Rule) and rule.device:
            found += [f"{method}: {fault}" for fault in _field_faults(method, rule.device)]
    if found:
        raise MapError(sorted(found))


def methods_of(service: str) -> list[str]:
    """Return the full names of the methods of a service of the default descriptor pool; MapError when it has none."""
    try:
        names = descriptor_pool.Default().FindServiceByName(service).methods_by_name
    except KeyError:
        raise MapError([f"{service}: nothing describes this service"]) from None
    return [f"/{service}/{name}" for name in names]


def device_reader(rule: Rule) -> Callable[[Any], str] | None:
    """Return what reads the device's id from a request message, if the rule asks for a device."""
    return attrgetter(rule.device) if rule.device else None


def _field_faults(method: str, path: str) -> Iterator[str]:
    described = _method(method)
    if described is None:
        yield f"nothing describes its request, so {path!r} cannot be looked for"
        return
    message: Descriptor | None = described.input_type
    field: FieldDescriptor | None = None
    for name in path.split("."):
        field = None if message is None else message.fields_by_name.get(name)
        if field is None:
            yield f"{described.input_type.full_name} has no field {path!r}"
            return
        if field.is_repeated:
            yield f"the field {path!r} of {described.input_type.full_name} is repeated"
            return
        message = field.message_type
    if field is not None and field.type != FieldDescriptor.TYPE_STRING:
        yield f"the field {path!r} of {described.input_type.full_name} is not a string"


def _method(method: str) -> MethodDescriptor | None:
    service, _, name = method.lstrip("/").partition("/")
    try:
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name.get(name)
    except KeyError:
        return None
