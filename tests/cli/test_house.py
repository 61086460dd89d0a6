"""The house on one machine, when something of it does not come about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.cli.house import House
from services.cli.servers import ServerError


def test_a_migration_that_takes_too_long_is_told_of(
    houses: Callable[[str], House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = houses("grpcio")
    monkeypatch.setattr("services.cli.house.START_TIMEOUT", 0.0)
    with pytest.raises(ServerError, match="migrating points took more than 0 s"):
        house.migrate("points")
