"""CEL, the Common Expression Language: compiled once with types, evaluated often.

The runtime is young, so it stays behind this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tzdata
from cel_expr_python import cel

# CEL looks time zones up in files; without them `now.getHours("Asia/Shanghai")` fails at evaluation.
os.environ.setdefault("TZDIR", str(Path(tzdata.__file__).parent / "zoneinfo"))

TIMESTAMP = cel.Type.TIMESTAMP


class ExpressionInvalid(ValueError):
    """The text is not an expression of the wanted type; the message says where."""


class EvaluationFailed(Exception):
    """The expression has no value for these facts, for instance a missing map key."""


class Expression:
    """A condition over named, typed facts."""

    def __init__(self, compiled: cel.Expression) -> None:
        self._compiled = compiled

    def holds(self, facts: cel.Activation) -> bool:
        """Whether it is true. Raises EvaluationFailed."""
        value = self._compiled.eval(facts)
        result = value.value()
        if result is True or result is False:
            return bool(result)
        raise _failure(value)


class Selection:
    """A condition over each member of a list, evaluated at once."""

    def __init__(self, compiled: cel.Expression) -> None:
        self._compiled = compiled

    def matching(self, facts: cel.Activation) -> frozenset[int]:
        """The indexes of those for which it is true. Raises EvaluationFailed if it fails for any."""
        value = self._compiled.eval(facts)
        if value.type() == cel.Type.ERROR:
            raise _failure(value)
        return frozenset(index for index, holds in enumerate(value.plain_value()) if holds)


def _failure(value: cel.Value) -> EvaluationFailed:
    # "code: what failed: the value it failed on", and that may be somebody's text: it must not be kept.
    return EvaluationFailed(":".join(str(value.value()).split(":", 2)[:2]).strip())


class Vocabulary:
    """The names that expressions may use, with their types: message names, or types of this module."""

    def __init__(self, names: Mapping[str, cel.Type | str]) -> None:
        self._environment = cel.NewEnv(
            variables={
                name: cel.Type(kind) if isinstance(kind, str) else kind for name, kind in names.items()
            }
        )

    def compile(self, text: str) -> Expression:
        """A condition. Raises ExpressionInvalid with the place of the fault."""
        try:
            compiled = self._environment.compile(text)
        except RuntimeError as error:
            raise ExpressionInvalid(str(error).removeprefix("INVALID_ARGUMENT: ERROR: <input>:")) from None
        if compiled.return_type() != cel.Type.BOOL:
            raise ExpressionInvalid(f"1:1: must be a bool, is {compiled.return_type().name()}")
        return Expression(compiled)

    def compile_each(self, text: str, name: str, of: str) -> Selection:
        """A condition that was found valid, over each `name` of the list `of`."""
        # On a line of its own, so that a comment at its end comments out nothing of ours.
        return Selection(self._environment.compile(f"{of}.map({name}, ({text}\n))"))

    def facts(self, values: Mapping[str, Any]) -> cel.Activation:
        """Values for one or more evaluations."""
        return self._environment.Activation(values)
