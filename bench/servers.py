"""Servers to compare with: `constant`, the product's own with one more RPC, and `bare`, grpcio with one RPC alone.

python -m bench.servers constant serve …    as `texture-auth serve …`
python -m bench.servers bare
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import key_pb2

from server.app import DECIDING_THREADS
from server.cli.root import root
from server.domain.kinds import Role
from server.wire import policy
from server.wire.rpc import CURRENT

SERVICE = "texture.auth.bench.Constant"
METHOD = f"/{SERVICE}/Authorize"
ANSWER = pb.AuthorizeResponse(
    decision=pb.DECISION_ALLOW,
    reason=pb.REASON_PERMITTED,
    http_status_code=200,
    key=pb.AuthorizedKey(key_id="Bench00000000000", kind=key_pb2.KEY_KIND_SERVER, workspace_id="bench"),
    revision="AZ3ZfEuxdYOM7BAnQkq2jgAAAAAAAAAAABEiM0RVZnc",
    decision_id="0123456789abcdef01234567",
)


def constant(arguments: list[str]) -> None:
    """Run the command line of the product, whose servers answer `METHOD` too, by its gate, with `ANSWER`."""

    def answer(_request: pb.AuthorizeRequest, _context: grpc.ServicerContext) -> pb.AuthorizeResponse:
        CURRENT.get().routine = True
        return ANSWER

    made = grpc.server

    def server(*args: Any, **kwargs: Any) -> grpc.Server:
        it = made(*args, **kwargs)
        it.add_generic_rpc_handlers((_handlers(answer),))
        return it

    policy.ROLES[METHOD] = frozenset({Role.OPERATOR})
    grpc.server = server
    root(arguments, prog_name="texture-auth")


def bare() -> None:
    """Serve `METHOD` and nothing else, with as many threads as the product has for it, which is best for both."""
    server = grpc.server(ThreadPoolExecutor(DECIDING_THREADS))
    server.add_generic_rpc_handlers((_handlers(lambda _request, _context: ANSWER),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on 127.0.0.1:{port}\n", flush=True)  # noqa: T201 - for who started it
    server.wait_for_termination()


def _handlers(
    answer: Callable[[pb.AuthorizeRequest, grpc.ServicerContext], pb.AuthorizeResponse],
) -> grpc.GenericRpcHandler:
    handler = grpc.unary_unary_rpc_method_handler(
        answer, pb.AuthorizeRequest.FromString, pb.AuthorizeResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Authorize": handler})


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        bare()
    else:
        constant(sys.argv[2:])
