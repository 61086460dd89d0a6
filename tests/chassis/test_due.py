"""What has fallen due is posted in order of time, also what that brings about; the next moment is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial

from services.chassis.due import Due, settle
from tests.conftest import NOON

HOUR = timedelta(hours=1)


class Diary:
    """What is to come, by hours from NOON, and when each was posted; `brings` comes once its cause was."""

    def __init__(self, *hours: int, brings: dict[int, int] | None = None) -> None:
        self.coming = list(hours)
        self.posted: list[tuple[int, int]] = []
        self._brings = brings or {}

    def upcoming(self) -> Iterator[Due]:
        for hour in self.coming:
            yield Due(NOON + hour * HOUR, partial(self._post, hour))

    def settle(self, at: int, since: int | None = None) -> int | None:
        """What `settle` says, in hours."""
        from_time = None if since is None else NOON + since * HOUR
        following = settle(self.upcoming, NOON + at * HOUR, from_time)
        return None if following is None else (following - NOON) // HOUR

    def _post(self, hour: int, moment: datetime) -> None:
        self.coming.remove(hour)
        self.posted.append((hour, (moment - NOON) // HOUR))
        self.coming += [self._brings[hour]] if hour in self._brings else []


def test_what_is_due_is_posted_in_order_at_its_own_moment_and_the_rest_waits() -> None:
    diary = Diary(3, 1, 7, 5)
    assert diary.settle(at=5) == 7
    assert (diary.posted, diary.coming) == ([(1, 1), (3, 3), (5, 5)], [7])
    assert diary.settle(at=8) is None


def test_what_another_brought_about_is_posted_no_sooner_than_that() -> None:
    diary = Diary(1, 4, brings={4: 2, 2: 9})
    assert diary.settle(at=5) == 9
    assert diary.posted == [(1, 1), (4, 4), (2, 4)]


def test_what_a_command_made_due_is_posted_no_sooner_than_the_command() -> None:
    diary = Diary(-5, 2)
    assert diary.settle(at=3, since=3) is None
    assert diary.posted == [(-5, 3), (2, 3)]
