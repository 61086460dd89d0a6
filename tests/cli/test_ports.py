"""Ports that are given before anybody listens on them."""

from __future__ import annotations

from services.cli.servers import free_port

MANY = 900  # of 17,000: picked at random alone, some would come twice


def test_a_port_that_was_given_is_not_given_again() -> None:
    assert len({free_port() for _ in range(MANY)}) == MANY
