"""Ports that are given before anybody listens on them."""

from __future__ import annotations

import subprocess
import sys

from services.cli.servers import free_port

MANY = 500  # of a thousand, some of which are in use: picked at random alone, many would come twice
GIVE = f"from services.cli.servers import free_port; print(*(free_port() for _ in range({MANY})))"


def test_a_port_that_was_given_is_not_given_again() -> None:
    assert len({free_port() for _ in range(MANY)}) == MANY


def test_ports_never_run_out() -> None:
    for _ in range(10 * MANY):
        free_port()


def test_two_processes_that_run_at_once_never_give_the_same() -> None:
    mine = {free_port() for _ in range(MANY)}
    given = subprocess.run([sys.executable, "-c", GIVE], capture_output=True, text=True, check=True)
    theirs = set(map(int, given.stdout.split()))
    assert len(theirs) == MANY
    assert not mine & theirs
