"""What the clock asks for: posted in order of time, by whichever write comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Due:
    """Something that the clock asks for at a moment. Once it is posted it is asked for no more.

    It is posted with the moment: a later one where only then it came to be asked for.
    """

    moment: datetime
    post: Callable[[datetime], None]


def settle(
    upcoming: Callable[[], Iterable[Due]], at: datetime, since: datetime | None = None
) -> datetime | None:
    """Posts what has fallen due by `at`, in order of time; returns when something will be due next, if ever.

    `upcoming` is asked again after each, as one may bring about another; of what is due at one moment, first
    comes what it names first. `since` is when what is due now can have become so at the earliest: after a
    command, now.
    """
    while (due := min(upcoming(), key=lambda due: due.moment, default=None)) is not None:
        if due.moment > at:
            return due.moment
        since = due.moment if since is None else max(since, due.moment)
        due.post(since)
    return None
