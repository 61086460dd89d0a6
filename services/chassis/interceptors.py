"""What happens around every call: bytes, token, access, validation, deadline, errors, metrics.

Methods are wrapped once, when they are registered, instead of running an interceptor chain on each call:
on grpc.aio an empty chain alone costs a quarter of a small call. Both fronts take the wrapped methods.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

import grpc
import protovalidate
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.chassis import failpoints, telemetry
from services.chassis.auth import CALLER, Access, Authenticator, authorise
from services.chassis.errors import (
    DeadlineExceeded,
    Internal,
    Kind,
    MalformedRequest,
    ServiceError,
    Violation,
)

NAMED_WHOLLY = 16 * 1024  # bytes of a request up to which every violation is looked for
# An answer's details are metadata, of which clients take 8 KB; what they quote may be the caller's own text.
MAX_VIOLATIONS = 16
MAX_MESSAGE, MAX_DESCRIPTION = 400, 120  # characters

_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

log = structlog.get_logger()

Behaviour = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


class DeadlinePassed(DeadlineExceeded):
    """The deadline passed; the write happened whole or not at all, and the same request_id tells which."""


class _Unreadable:
    """Stands for a request whose bytes are no message."""


class Registrar(Protocol):
    """The part of a server that generated `add_…Servicer_to_server` functions call."""

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Takes handlers that look methods up by name."""

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Takes a service's handlers by method."""


class Interceptors:
    """Stands in for the server when servicers are added, and wraps each of their methods."""

    def __init__(
        self,
        server: Registrar,
        *,
        domain: str,
        methods: Mapping[str, Access],
        authenticator: Authenticator,
        call_timeout: float,
    ) -> None:
        self._server = server
        self._domain = domain
        self._methods = methods
        self._authenticator = authenticator
        self._call_timeout = call_timeout

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        """Ignored: the handlers come again, by method, in the next call."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Wraps a service's methods. Raises KeyError for a method without a row in the method table."""
        wrapped = {name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        access = self._methods[method]
        behaviour: Behaviour = handler.unary_unary  # type: ignore[assignment]
        latency = telemetry.LATENCY.labels(method)
        succeeded = telemetry.CALLS.labels(method, "OK")

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = time.perf_counter()
            try:
                traceparent = self._admit(request, access, context)
                remaining = context.time_remaining()
                timeout = self._call_timeout if remaining is None else min(remaining, self._call_timeout)
                with telemetry.span(method, traceparent):
                    async with asyncio.timeout(timeout):
                        answer = await behaviour(request, context)
            except asyncio.CancelledError:
                telemetry.CALLS.labels(method, "CANCELLED").inc()
                raise
            except Exception as raised:
                error = _as_service_error(raised, method)
                telemetry.CALLS.labels(method, error.kind.name).inc()
                await self._refuse(context, error)
            succeeded.inc()
            latency.observe(time.perf_counter() - started)
            failpoints.reach("before_reply")
            return answer

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _admit(self, request: Any, access: Access, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """Lets a call pass and returns the trace it belongs to."""
        authorization, traceparent = None, ""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                authorization = value if isinstance(value, str) else None
            elif key == "traceparent" and isinstance(value, str):
                traceparent = value if _TRACEPARENT.fullmatch(value) else ""
        caller = self._authenticator.caller(authorization)
        if isinstance(request, _Unreadable):
            raise MalformedRequest(violations=[Violation("", "the bytes are not a valid message")])
        authorise(caller, access, getattr(request, "member_id", None))
        CALLER.set(caller)
        validate(request)
        return traceparent

    async def _refuse(self, context: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> NoReturn:
        await context.abort_with_status(rpc_status.to_status(to_status(error, self._domain)))
        raise AssertionError("abort_with_status raises")


def validate(request: Message) -> None:
    """Checks a message against its contract. Raises MalformedRequest with every violation.

    A large message gets its first violation only: a million wrong elements would take seconds to name.
    """
    violations = protovalidate.collect_violations(request, fail_fast=True)
    if violations and request.ByteSize() <= NAMED_WHOLLY:
        violations = protovalidate.collect_violations(request)
    if violations:
        raise MalformedRequest(
            violations=[Violation(_path(v.proto.field), v.proto.message) for v in violations]
        )


def to_status(error: ServiceError, domain: str) -> status_pb2.Status:
    """The rich status of an error (AIP-193): ErrorInfo always, BadRequest and RetryInfo where they help."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=domain, metadata=error.metadata)
    details: list[Message] = [info]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=v.field[:MAX_DESCRIPTION], description=v.description[:MAX_DESCRIPTION]
                    )
                    for v in error.violations[:MAX_VIOLATIONS]
                ]
            )
        )
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.kind.name),
        message=error.message[:MAX_MESSAGE],
        details=[_packed(d) for d in details],
    )


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _as_service_error(raised: Exception, method: str) -> ServiceError:
    if isinstance(raised, ServiceError) and raised.kind is not Kind.INTERNAL:
        if raised.__cause__ is not None:
            log.warning("refused", method=method, reason=raised.reason, cause=repr(raised.__cause__))
        return raised
    if isinstance(raised, TimeoutError):
        return DeadlinePassed()
    error_id = uuid.uuid4().hex
    log.error("defect", method=method, error_id=error_id, exc_info=raised.__cause__ or raised)
    return Internal(error_id=error_id)


def _tolerant(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """grpcio answers bytes that do not parse with UNKNOWN; we want to say what is wrong."""
    assert parse is not None  # noqa: S101 - generated code always has one

    def deserialise(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, ValueError, RecursionError):
            return _Unreadable()

    return deserialise


def _path(field: Any) -> str:
    """A violation's place, for instance `order.lines[3].amount_minor`."""
    path = ""
    for element in field.elements if field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value!r}]"
    return path
