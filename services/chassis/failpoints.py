"""Named points at which a fault test lets a process die by SIGKILL. They do nothing unless one is armed."""

from __future__ import annotations

import os
import signal

_armed: str | None = None


def arm(name: str | None) -> None:
    """Chooses the point at which this process dies; None chooses none."""
    global _armed  # noqa: PLW0603 - one process has one fate
    _armed = name


def reach(name: str) -> None:
    """Dies here if this point is armed."""
    if name == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
