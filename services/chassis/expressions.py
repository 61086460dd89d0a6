"""CEL, the Common Expression Language: compiled once with types, evaluated often.

The runtime is young, so it stays behind this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import tzdata
from cel_expr_python import cel

# CEL looks time zones up in files; without them `now.getHours("Asia/Shanghai")` fails at evaluation.
os.environ.setdefault("TZDIR", str(Path(tzdata.__file__).parent / "zoneinfo"))

STRING = cel.Type.STRING
INTEGER = cel.Type.INT
BOOLEAN = cel.Type.BOOL
STRINGS = cel.Type.List(STRING)
TEXTS_BY_KEY = cel.Type.Map(STRING, STRING)
TIMESTAMP = cel.Type.TIMESTAMP
Facts: TypeAlias = cel.Activation


class ExpressionInvalid(ValueError):
    """The text is not an expression of the wanted type; the message says where."""


class EvaluationFailed(Exception):
    """The expression has no value for these facts, for instance a missing map key."""


class Expression:
    """A condition over named, typed facts."""

    def __init__(self, compiled: cel.Expression) -> None:
        self._compiled = compiled

    def holds(self, facts: Facts) -> bool:
        """Whether it is true. Raises EvaluationFailed."""
        value = self._compiled.eval(facts)
        result = value.value()
        if result is True or result is False:
            return bool(result)
        raise _failure(value)


class Text:
    """A text that follows from named, typed facts."""

    def __init__(self, compiled: cel.Expression) -> None:
        self._compiled = compiled

    def value(self, facts: Facts) -> str:
        """What it is. Raises EvaluationFailed."""
        value = self._compiled.eval(facts)
        if value.type() == STRING:
            return str(value.value())
        raise _failure(value)


class Selection:
    """A condition over each member of a list, evaluated at once."""

    def __init__(self, compiled: cel.Expression) -> None:
        self._compiled = compiled

    def matching(self, facts: Facts) -> frozenset[int]:
        """The indexes of those for which it is true. Raises EvaluationFailed if it fails for any."""
        value = self._compiled.eval(facts)
        if value.type() == cel.Type.ERROR:
            raise _failure(value)
        return frozenset(index for index, holds in enumerate(value.plain_value()) if holds)


class Selections:
    """Conditions over each member of a list: evaluated all at once, and each for itself where one fails."""

    def __init__(self, together: cel.Expression, single: Sequence[Selection]) -> None:
        self._together = together
        self._single = single

    def matching(self, facts: Facts) -> list[frozenset[int] | EvaluationFailed]:
        """For each condition the indexes of those for which it is true, or why it has no value."""
        value = self._together.eval(facts)
        if value.type() == cel.Type.ERROR:
            return [_matching(selection, facts) for selection in self._single]
        rows = value.plain_value()
        return [
            frozenset(index for index, row in enumerate(rows) if row[column])
            for column in range(len(self._single))
        ]


def _matching(selection: Selection, facts: Facts) -> frozenset[int] | EvaluationFailed:
    try:
        return selection.matching(facts)
    except EvaluationFailed as failure:
        return failure


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
        return Expression(self._compile_as(cel.Type.BOOL, text))

    def compile_text(self, text: str) -> Text:
        """An expression whose value is a text. Raises ExpressionInvalid with the place of the fault."""
        return Text(self._compile_as(STRING, text))

    def compile_each(self, text: str, name: str, of: str) -> Selection:
        """A condition that was found valid, over each `name` of the list `of`.

        Raises ExpressionInvalid where it is nested too deeply for that.
        """
        # On a line of its own, so that a comment at its end comments out nothing of ours.
        return Selection(self._compile(f"{of}.map({name}, ({text}\n))"))

    def compile_all(self, texts: Sequence[str], name: str, of: str) -> Selections:
        """As `compile_each`, for several. Raises ExpressionInvalid also where they are too long together."""
        row = ", ".join(f"({text}\n)" for text in texts)
        together = self._compile(f"{of}.map({name}, [{row}])")
        return Selections(together, [self.compile_each(text, name, of) for text in texts])

    def facts(self, values: Mapping[str, Any]) -> Facts:
        """Values for one or more evaluations."""
        return self._environment.Activation(values)

    def _compile_as(self, wanted: cel.Type, text: str) -> cel.Expression:
        compiled = self._compile(text)
        if compiled.return_type() != wanted:
            found = compiled.return_type().name()
            raise ExpressionInvalid(f"1:1: must be a {wanted.name().lower()}, is {found}")
        return compiled

    def _compile(self, text: str) -> cel.Expression:
        try:
            return self._environment.compile(text)
        except RuntimeError as error:
            raise ExpressionInvalid(str(error).removeprefix("INVALID_ARGUMENT: ERROR: <input>:")) from None
