"""Kinds of key, permissions, and the most that each kind may ever do."""

from __future__ import annotations

from enum import Enum

from server.domain.members import Members
from server.domain.token import TokenKind


class Permission(Members):
    """What a key may be allowed to do, by the name that callers use."""

    DEVICES_LIST = "devices:list"
    DEVICES_READ = "devices:read"
    DEVICES_COMMAND = "devices:command"
    CONNECT_LINKS_CREATE = "connect_links:create"
    KEYS_MANAGE = "keys:manage"
    WORKSPACE_CONFIGURE = "workspace:configure"


class KeyKind(Members):
    """What a customer's key is for."""

    SERVER = "server"
    CONNECT = "connect"
    SCOPED = "scoped"


# Permissions that are about one device; the rest are about none.
NEEDS_DEVICE = frozenset({Permission.DEVICES_READ, Permission.DEVICES_COMMAND})

CEILING = {
    KeyKind.SERVER: frozenset(Permission),
    KeyKind.CONNECT: frozenset({Permission.CONNECT_LINKS_CREATE}),
    KeyKind.SCOPED: frozenset({Permission.DEVICES_LIST, Permission.DEVICES_READ, Permission.DEVICES_COMMAND}),
}

TOKEN_KIND = {
    KeyKind.SERVER: TokenKind.SERVER,
    KeyKind.CONNECT: TokenKind.CONNECT,
    KeyKind.SCOPED: TokenKind.SCOPED,
}


class Role(Members):
    """What a caller of this service may do. Which RPC needs which is a table at the wire."""

    AUTHORIZER = "authorizer"
    WATCHER = "watcher"
    KEY_ADMIN = "key-admin"
    CONNECT = "connect"
    DEVICES = "devices"
    OPERATOR = "operator"


class Environment(Enum):
    """Whether a workspace holds real devices. Fixed at its creation."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"


class ExposurePolicy(Enum):
    """What happens to a server key that has leaked."""

    REVOKE = "revoke"
    SUSPEND = "suspend"
    NOTIFY_ONLY = "notify_only"
