"""Which roles may call which RPC. An RPC that this table does not name is denied to everybody."""

from __future__ import annotations

from server.domain.kinds import Role

_AUTHORIZER = frozenset({Role.AUTHORIZER, Role.OPERATOR})
_KEY_ADMIN = frozenset({Role.KEY_ADMIN, Role.OPERATOR})
_CONNECT = frozenset({Role.CONNECT, Role.OPERATOR})
_DEVICES = frozenset({Role.DEVICES, Role.OPERATOR})
_READS_WORKSPACES = frozenset({Role.KEY_ADMIN, Role.CONNECT, Role.DEVICES, Role.OPERATOR})
_OPERATOR = frozenset({Role.OPERATOR})

_BY_SERVICE = {
    "texture.auth.v1.AuthorizeService": {
        "Authorize": _AUTHORIZER,
        "BatchAuthorize": _AUTHORIZER,
        "ExplainAuthorization": _OPERATOR,
    },
    "texture.auth.v1.KeyService": {
        "CreateKey": _KEY_ADMIN,
        "GetKey": _KEY_ADMIN,
        "ListKeys": _KEY_ADMIN,
        "UpdateKey": _KEY_ADMIN,
        "SuspendKey": _KEY_ADMIN,
        "ResumeKey": _KEY_ADMIN,
        "RotateKey": _KEY_ADMIN,
        "GetRotation": _KEY_ADMIN,
        "RetireGeneration": _KEY_ADMIN,
        "RevokeKey": _KEY_ADMIN,
        "RevokeKeys": _KEY_ADMIN,
        "ReportExposedKeys": _KEY_ADMIN,
        "LookupKey": _KEY_ADMIN,
        "ListKeyEvents": _KEY_ADMIN,
    },
    "texture.auth.v1.ConnectService": {
        "CreateConnectLink": _CONNECT,
        "GetConnectLink": _CONNECT,
        "CompleteConnectLink": _CONNECT,
        "CancelConnectLink": _CONNECT,
    },
    "texture.auth.v1.DeviceService": {
        "RegisterDevices": _DEVICES,
        "GetDevice": _DEVICES,
        "ListDevices": _DEVICES,
        "TransferDevices": _DEVICES,
        "RemoveDevices": _DEVICES,
    },
    "texture.auth.v1.WorkspaceService": {
        "CreateWorkspace": _KEY_ADMIN,
        "GetWorkspace": _READS_WORKSPACES,
        "ListWorkspaces": _READS_WORKSPACES,
        "UpdateWorkspace": _KEY_ADMIN,
        "EraseEndUser": _KEY_ADMIN,
    },
    "texture.auth.v1.CallerService": {
        "CreateCaller": _OPERATOR,
        "GetCaller": _OPERATOR,
        "ListCallers": _OPERATOR,
        "UpdateCaller": _OPERATOR,
        "RotateCallerKey": _OPERATOR,
        "RevokeCaller": _OPERATOR,
    },
    "texture.auth.v1.WebhookService": {
        "CreateWebhookEndpoint": _KEY_ADMIN,
        "GetWebhookEndpoint": _KEY_ADMIN,
        "ListWebhookEndpoints": _KEY_ADMIN,
        "UpdateWebhookEndpoint": _KEY_ADMIN,
        "DeleteWebhookEndpoint": _KEY_ADMIN,
        "RotateWebhookSecret": _KEY_ADMIN,
        "ListWebhookDeliveries": _KEY_ADMIN,
        "ReplayWebhookDeliveries": _KEY_ADMIN,
        "TestWebhookEndpoint": _KEY_ADMIN,
    },
    "texture.auth.v1.UsageService": {
        "GetKeyUsage": _KEY_ADMIN,
        "ListKeyDevices": _KEY_ADMIN,
        "ListDeviceKeys": _KEY_ADMIN | _DEVICES,
    },
    "texture.auth.v1.EventService": {
        "ListEvents": _OPERATOR,
        "WatchEvents": _OPERATOR,
        "ListChainHeads": _OPERATOR,
        "VerifyChain": _OPERATOR,
    },
    "envoy.service.auth.v3.Authorization": {
        "Check": _AUTHORIZER,
    },
    "grpc.reflection.v1alpha.ServerReflection": {
        "ServerReflectionInfo": _OPERATOR,
    },
}

ROLES = {f"/{service}/{method}": roles for service, methods in _BY_SERVICE.items() for method, roles in methods.items()}

# Open to everybody: load balancers have no credentials.
OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch"})

REFLECTION = frozenset({"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"})

# What gateways ask in words of their own.
GATEWAYS = frozenset({"/envoy.service.auth.v3.Authorization/Check"})

# What is decided from memory, and waits for nobody else's changes.
DECISIONS = GATEWAYS | {
    "/texture.auth.v1.AuthorizeService/Authorize",
    "/texture.auth.v1.AuthorizeService/BatchAuthorize",
}
