"""Errors as classes: the name is the reason, the docstring the message, the base the kind.

Nothing here knows gRPC; `interceptors` maps kinds to status codes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar


class Kind(Enum):
    """What a caller can do about an error; each is one gRPC status code of the same name."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong, by its path in the request, and why."""

    field: str
    description: str


class ServiceError(Exception):
    """Something was refused."""

    kind: ClassVar[Kind]
    retry_after: ClassVar[float | None] = None  # seconds; set where trying again helps

    def __init__(self, *, violations: Sequence[Violation] = (), **metadata: object) -> None:
        self.violations = tuple(violations)
        self.metadata = {key: str(value) for key, value in metadata.items()}
        super().__init__(self.message)

    @property
    def reason(self) -> str:
        """The class name in upper snake case, which clients switch on."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).upper()

    @property
    def message(self) -> str:
        """The docstring, with the numbers."""
        text = " ".join((type(self).__doc__ or self.reason).split())
        details = ", ".join(f"{key} {value}" for key, value in self.metadata.items())
        details += "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        return f"{text} ({details})" if details else text


class InvalidArgument(ServiceError):
    """The request is malformed, whatever the state."""

    kind = Kind.INVALID_ARGUMENT


class NotFound(ServiceError):
    """The name is not known."""

    kind = Kind.NOT_FOUND


class AlreadyExists(ServiceError):
    """The name is taken."""

    kind = Kind.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    """A rule refuses in this state."""

    kind = Kind.FAILED_PRECONDITION


class Aborted(ServiceError):
    """A race was lost; try again."""

    kind = Kind.ABORTED
    retry_after = 0.05


class PermissionDenied(ServiceError):
    """The caller may not do this."""

    kind = Kind.PERMISSION_DENIED


class Unauthenticated(ServiceError):
    """The caller did not show a valid token."""

    kind = Kind.UNAUTHENTICATED


class ResourceExhausted(ServiceError):
    """Too much at once; try again later."""

    kind = Kind.RESOURCE_EXHAUSTED
    retry_after = 0.5


class Unavailable(ServiceError):
    """Something this service needs is away; try again."""

    kind = Kind.UNAVAILABLE
    retry_after = 1.0


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed."""

    kind = Kind.DEADLINE_EXCEEDED


class Internal(ServiceError):
    """A defect of this service; the error id finds it in the log."""

    kind = Kind.INTERNAL


def refused(raised: BaseException) -> dict[str, Any]:
    """What the caller of many things at once is told of one that was refused. Raises what is a defect."""
    if not isinstance(raised, ServiceError) or isinstance(raised, Internal):
        raise raised
    return {
        "code": raised.kind.value,
        "reason": raised.reason,
        "message": raised.message,
        "metadata": raised.metadata,
    }


# A fault of what we stand on: it says nothing about the request, so a consumer waits and tries again.
INFRASTRUCTURE = (Unavailable, Aborted, ResourceExhausted, DeadlineExceeded)


class RequestIdReused(AlreadyExists):
    """The request_id was used before, for something else."""


class AnswerErased(FailedPrecondition):
    """This request was answered, and its answer erased with the member."""


class MalformedRequest(InvalidArgument):
    """The request breaks the contract."""
