"""Errors: the class name is the reason, the docstring the message, with every number in it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from grpc import StatusCode

import services
from services.chassis.errors import FailedPrecondition, InvalidArgument, Kind, ServiceError, Violation


class TooFewCoins(FailedPrecondition):
    """There are fewer coins
    than are asked for."""


def all_errors() -> list[type[ServiceError]]:
    """Every error of every module that is not itself a command to run."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__") and ".migrations" not in module.name:
            importlib.import_module(module.name)
    found: list[type[ServiceError]] = []
    waiting = [ServiceError]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        found += [error for error in below if error.__module__.startswith("services.")]
    return found


def test_the_reason_is_the_class_name_and_the_message_its_docstring() -> None:
    error = TooFewCoins()
    assert error.reason == "TOO_FEW_COINS"
    assert error.message == str(error) == "There are fewer coins than are asked for."


def test_every_number_of_the_message_is_in_the_metadata() -> None:
    error = TooFewCoins(there=1, asked=2)
    assert error.metadata == {"there": "1", "asked": "2"}
    assert error.message == "There are fewer coins than are asked for. (there 1, asked 2)"


def test_every_violation_is_in_the_message() -> None:
    error = InvalidArgument(violations=[Violation("a.b", "is empty"), Violation("c", "is full")])
    assert error.message == "The request is malformed, whatever the state. (a.b: is empty; c: is full)"
    assert [violation.field for violation in error.violations] == ["a.b", "c"]


def test_each_kind_is_the_status_code_of_its_name() -> None:
    codes = {code.name: code.value[0] for code in StatusCode}
    assert {kind.name: kind.value for kind in Kind}.items() <= codes.items()


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: str(error.__name__))
def test_every_error_of_the_services_has_a_sentence_and_a_kind(error: type[ServiceError]) -> None:
    assert isinstance(error.kind, Kind)
    assert error.__doc__ is not None
    assert error.__doc__.rstrip().endswith(".")
    assert error().reason.isupper()


def test_reasons_are_unique_within_a_service() -> None:
    """Together with those of the chassis; services are told apart by the domain of ErrorInfo."""
    names = [(error.__module__.split(".")[1], error().reason) for error in all_errors()]
    assert len(names) == len(set(names))
    shared = {reason for owner, reason in names if owner == "chassis"}
    assert not [name for name in names if name[0] != "chassis" and name[1] in shared]
