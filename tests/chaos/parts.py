"""What a service brings to a run, in a module of its own: its load, its oracle, how its events are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from services.cli.house import House
from tests.chaos.journal import Journal
from tests.support import Caller


def of_member(event: Any) -> str:
    """The member that an event is about."""
    return str(event.member_id)


@dataclass(frozen=True, eq=False)
class Part:
    """A service's part in a run."""

    service: str
    prepare: Callable[[House], object]
    """Puts what the load needs; called once, when the service serves."""
    lanes: Sequence[Callable[..., Journal]]
    """What makes the journals of each lane."""
    caller: Callable[[House], Caller]
    good: Sequence[tuple[str, Callable[[Any], Message]]]
    """Methods with what makes a good request of each, by a caller; every set field is made bad in turn."""
    entity: Callable[[Any], tuple[str, ...]]
    """What an event counts in its version."""
    link: Callable[[Any, bytes], bytes | None]
    """What a subscriber keeps of an event and its bytes, if anything, to be compared with `verify`."""
    about: Callable[[Any], str] = of_member
    """By whose name it keeps that."""

    @property
    def stream(self) -> str:
        """Where it announces."""
        return self.service.upper()
