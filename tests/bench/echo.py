"""`python -m tests.bench.echo FRONT ADDRESS`: the least a front can do, a call that returns its bytes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import pygrpc_native.aio
import uvloop

from services.chassis.server import OPTIONS

METHOD = "/loyalty.bench.Echo/Call"
REFUSED = b"refuse"


async def _call(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    if request == REFUSED:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
    return request


async def serve(front: str, address: str) -> None:
    """Serves until the process is ended."""
    options = [option for option in OPTIONS if option[0] != "grpc.so_reuseport" or front == "grpcio"]
    server: Any = (pygrpc_native.aio if front == "native" else grpc.aio).server(options=options)
    _, service, name = METHOD.split("/")
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(_call)}
    # As generated code does; the native front leaves to grpcio what comes only the first way.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_registered_method_handlers(service, handlers)
    if not server.add_insecure_port(address):
        raise OSError(f"cannot bind {address}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
