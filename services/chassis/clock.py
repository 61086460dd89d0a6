"""Two clocks: *business* time decides rules and due work, *wall* time leases, timeouts and ids.

They are one until a test clock is given: a file of eight bytes, mapped by every process, that stands
still and is moved forward only by `loyalty clock`.
"""

from __future__ import annotations

import mmap
import os
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

_FORMAT = struct.Struct("<q")  # microseconds since 1970-01-01T00:00:00Z; eight aligned bytes are read whole
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SETTLED = ".settled."


def wall() -> datetime:
    """The machine's time in UTC."""
    return datetime.now(UTC)


def to_micros(at: datetime) -> int:
    """Whole microseconds since the Unix epoch, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The instant that many microseconds after the Unix epoch."""
    return _EPOCH + timedelta(microseconds=micros)


class Clock(Protocol):
    """Business time."""

    def now(self) -> datetime:
        """The present instant in UTC."""
        ...

    def settled(self, at: datetime) -> None:
        """Says that this process has done everything that fell due up to `at`."""
        ...


class SystemClock:
    """Business time that is wall time."""

    def now(self) -> datetime:
        """The machine's time."""
        return wall()

    def settled(self, at: datetime) -> None:
        """Nobody waits for a real clock."""


class TestClock:
    """Business time that stands still until it is moved forward."""

    __test__ = False  # not a test class, whatever pytest thinks

    def __init__(self, path: Path, name: str = "") -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FORMAT.size)
        self._path = path
        self._name = name
        self._settled: datetime | None = None

    @classmethod
    def create(cls, path: Path, at: datetime) -> TestClock:
        """Makes the file, or moves an existing one forward to `at`."""
        if not path.exists():
            path.write_bytes(_FORMAT.pack(to_micros(at)))
        clock = cls(path)
        if at > clock.now():
            clock.set(at)
        return clock

    def now(self) -> datetime:
        """The instant the clock stands at."""
        return from_micros(_FORMAT.unpack(self._map[:])[0])

    def set(self, at: datetime) -> None:
        """Moves the clock. Raises ValueError if that is backward."""
        if at < self.now():
            raise ValueError(f"a test clock moves only forward: it stands at {self.now().isoformat()}")
        self._map[:] = _FORMAT.pack(to_micros(at))

    def settled(self, at: datetime) -> None:
        """Leaves a mark beside the clock that `all_settled` reads."""
        if at == self._settled:
            return
        self._settled = at
        mark = self._path.with_name(f"{self._path.name}{_SETTLED}{self._name}")
        scratch = mark.with_suffix(f"{mark.suffix}.{os.getpid()}")
        scratch.write_bytes(_FORMAT.pack(to_micros(at)))
        scratch.replace(mark)

    def all_settled(self, names: list[str]) -> bool:
        """Whether each named process has done what was due at the clock's present instant."""
        now = self._map[:]
        marks = [self._path.with_name(f"{self._path.name}{_SETTLED}{name}") for name in names]
        return all(
            mark.exists() and _FORMAT.unpack(mark.read_bytes())[0] >= _FORMAT.unpack(now)[0] for mark in marks
        )


def open_clock(test_clock: Path | None, name: str) -> Clock:
    """The clock a process runs on; `name` identifies the process to whoever moves a test clock."""
    return TestClock(test_clock, name) if test_clock else SystemClock()
