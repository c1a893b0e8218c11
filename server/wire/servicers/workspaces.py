"""WorkspaceService."""

from __future__ import annotations

import grpc
from texture.auth.v1 import workspace_service_pb2 as pb
from texture.auth.v1 import workspace_service_pb2_grpc
from texture.auth.v1.workspace_pb2 import Workspace as WorkspaceMessage

from server.service.workspaces import WorkspaceFields, WorkspaceService
from server.wire import convert
from server.wire.rpc import call_of, note, note_id


class WorkspaceServicer(workspace_service_pb2_grpc.WorkspaceServiceServicer):
    """WorkspaceService, as `workspace_service.proto` describes it."""

    def __init__(self, service: WorkspaceService) -> None:
        self._service = service

    def CreateWorkspace(
        self, request: pb.CreateWorkspaceRequest, context: grpc.ServicerContext
    ) -> pb.CreateWorkspaceResponse:
        """Create a workspace."""
        mutation = self._service.create_workspace(
            call_of(request),
            request.workspace_id,
            convert.ENVIRONMENT.to_domain("environment", request.environment),
            _fields(request, ""),
        )
        note(workspace_id=mutation.value.workspace_id)
        return pb.CreateWorkspaceResponse(
            workspace=convert.workspace(mutation.value), revision=mutation.revision.encode()
        )

    def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: grpc.ServicerContext) -> pb.GetWorkspaceResponse:
        """Return a workspace."""
        return pb.GetWorkspaceResponse(workspace=convert.workspace(self._service.get_workspace(request.workspace_id)))

    def ListWorkspaces(
        self, request: pb.ListWorkspacesRequest, context: grpc.ServicerContext
    ) -> pb.ListWorkspacesResponse:
        """List workspaces."""
        listing = self._service.list_workspaces(request.page_size, request.page_token)
        return pb.ListWorkspacesResponse(
            workspaces=[convert.workspace(workspace) for workspace in listing.rows],
            next_page_token=listing.next_page_token,
        )

    def UpdateWorkspace(
        self, request: pb.UpdateWorkspaceRequest, context: grpc.ServicerContext
    ) -> pb.UpdateWorkspaceResponse:
        """Change settings of a workspace."""
        note_id("workspace_id", request.workspace.workspace_id)
        mutation = self._service.update_workspace(
            call_of(request),
            request.workspace.workspace_id,
            _fields(request.workspace, "workspace."),
            request.update_mask.paths,
        )
        return pb.UpdateWorkspaceResponse(
            workspace=convert.workspace(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def EraseEndUser(self, request: pb.EraseEndUserRequest, context: grpc.ServicerContext) -> pb.EraseEndUserResponse:
        """Erase an end user. The log says in which workspace, and not whom."""
        note_id("workspace_id", request.workspace_id)
        mutation = self._service.erase_end_user(call_of(request), request.workspace_id, request.reference_id)
        erasure = mutation.value
        return pb.EraseEndUserResponse(
            devices_removed=erasure.devices_removed,
            keys_removed=erasure.keys_removed,
            connect_links_removed=erasure.connect_links_removed,
            events_rewritten=erasure.events_rewritten,
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )


def _fields(message: pb.CreateWorkspaceRequest | WorkspaceMessage, prefix: str) -> WorkspaceFields:
    """Return what a message says a workspace should be. Raises Refusal (FIELD_INVALID)."""
    return WorkspaceFields(
        display_name=message.display_name,
        redirect_uris=list(message.redirect_uris),
        exposure_policy=convert.POLICY.to_domain(f"{prefix}exposure_policy", message.exposure_policy),
        scoped_key_lifetime=convert.length_of_time(message, "scoped_key_lifetime", f"{prefix}scoped_key_lifetime"),
        connect_link_lifetime=convert.length_of_time(
            message, "connect_link_lifetime", f"{prefix}connect_link_lifetime"
        ),
    )
