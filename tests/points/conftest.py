"""A house in which time passes, for the modules that ask what becomes of points."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import NOON, OpenHouse, a_folder
from tests.database import stop_job
from tests.support import PROGRAMME, Points, apply_programme

WINDFALL = {
    "rule_id": "windfall",
    "scope": "RULE_SCOPE_ACTIVITY",
    "unit": "UNIT_POINTS",
    "when": "activity.kind == 'windfall'",
    "per": {"amount_minor": 1, "points": 10**12},
    "stack": "RULE_STACK_ADD",
}


@pytest.fixture(scope="session")
def later(open_house: OpenHouse) -> Iterator[Points]:
    """A channel into a house whose clock the tests move on, and where only calls post what is due.

    Modules share it: a test starts from the time that it finds, with members of its own. They may send 100
    points a day, and get more than they can have for a windfall.
    """
    with a_folder() as folder, open_house(folder, test_clock=NOON) as house, Points(house) as points:
        rules = [*PROGRAMME["earn_rules"], WINDFALL]
        apply_programme(house, {**PROGRAMME, "earn_rules": rules, "transfers_per_day": 100})
        stop_job(house, "points", "settle")  # from now on only calls post what is due
        yield points
