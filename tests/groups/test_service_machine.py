"""Whatever members, sites and the messaging side do, in any order and at once, the books close.

After each step groups have as many members as they say, none has more seats than it has room, each member is
in one group of a scheme at most, and what was announced of everybody comes to what is there.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from loyalty.groups.v1 import groups_events_pb2 as epb

from services.chassis.database import Database
from services.chassis.errors import FailedPrecondition
from services.cli.servers import Postgres
from services.groups.commands import LapseSeat, MoveOut, Settle
from services.groups.domain.profile import Ending
from services.groups.domain.seats import Group, GroupStatus
from tests.groups.town import StandingClock, Town, check_seats, make_database, on_street, scheme, shop
from tests.support import fresh

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "8"))
STEPS = 20
PROCESSES = 2

MEMBERS = st.sampled_from([f"member-{number}" for number in range(9)])
NUMBERS = st.integers(0, 2)
AGO = st.integers(0, 90).map(lambda minutes: timedelta(minutes=minutes))


class Street(RuleBasedStateMachine):
    """Three shops, three schemes, and members who come and go."""

    runner: ClassVar[asyncio.Runner]
    towns: ClassVar[list[Town]]

    @initialize()
    def open_street(self) -> None:
        """Shops and schemes of the example's own; those of the one before are closed."""
        self.prefix = fresh("street")
        self.town = self.towns[0]
        nobody = [{"name": "nobody", "expression": "false"}]
        self.schemes: dict[str, dict[str, Any]] = {
            "next": {"margin_m": 200},
            "nearest": {"overflow": "OVERFLOW_NEXT_NEAREST"},
            "heirs": {"headroom": 2, "successor_scheme_id": f"{self.prefix}-heirs", "cooldown_hours": 1},
        }
        made = [
            scheme(f"{self.prefix}-{name}", audience=nobody, **more) for name, more in self.schemes.items()
        ]
        self.do(self.town.put(*made), self.town.put_sites(*(self.shop(number) for number in range(3))))

    def shop(self, number: int) -> Any:
        """A shop of the street, 1 km from the next."""
        return shop(f"{self.prefix}-{number}", 1000 * number)

    def do(self, *steps: Coroutine[Any, Any, Any]) -> list[Any]:
        """Does things at once. Only what a rule may refuse may be refused."""

        async def together() -> list[Any]:
            return await asyncio.gather(*steps, return_exceptions=True)

        answers = self.runner.run(together())
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, FailedPrecondition):
                raise answer
        return answers

    def groups(self) -> list[Group]:
        """The groups of the street, by age."""
        found = self.do(*(self.town.groups(f"{self.prefix}-{name}") for name in self.schemes))
        return [group for groups in found for group in groups]

    # --- what may happen ------------------------------------------------------------------------------

    @rule(
        who=st.lists(st.tuples(MEMBERS, st.sampled_from(["next", "nearest", "heirs"]), NUMBERS), max_size=6),
        placed=st.booleans(),
    )
    def ask(self, who: list[tuple[str, str, int]], placed: bool) -> None:
        """Members ask for seats, of several processes at once."""
        steps = []
        for number, (member, name, place) in enumerate(who):
            asked: dict[str, Any] = (
                {"location": on_street(1000 * place)}
                if placed
                else {"home_site_id": f"{self.prefix}-{place}"}
            )
            town = self.towns[number % PROCESSES]
            steps.append(town.assign(self.prefix + member, f"{self.prefix}-{name}", **asked))
        self.do(*steps)

    @rule(
        who=st.lists(st.tuples(MEMBERS, st.integers(0, 30), st.booleans(), AGO), min_size=1, max_size=6),
        ending=st.sampled_from([Ending.LEFT, Ending.REMOVED, Ending.RECONCILED]),
    )
    def tell(self, who: list[tuple[str, int, bool, timedelta]], ending: Ending) -> None:
        """The messaging side tells who came and who left, in any order."""
        groups = self.groups()
        steps: list[Coroutine[Any, Any, Any]] = []
        for number, (member, which, came, ago) in enumerate(who if groups else ()):
            town, group_id = self.towns[number % PROCESSES], groups[which % len(groups)].group_id
            told = {"occur_time": self.town.at - ago}
            if came:
                steps.append(town.join(self.prefix + member, group_id, **told))
            else:
                steps.append(town.leave(self.prefix + member, group_id, ending=ending, **told))
        self.do(*steps)

    @rule(member=MEMBERS, which=st.integers(0, 30))
    def choose(self, member: str, which: int) -> None:
        """A member chooses a group."""
        groups = self.groups()
        if groups:
            group_id = groups[which % len(groups)].group_id
            self.do(self.town.assign(self.prefix + member, chosen_group_id=group_id))

    @rule(minutes=st.sampled_from([1, 60, 25 * 60]), members=st.lists(MEMBERS, max_size=4))
    def wait(self, minutes: int, members: list[str]) -> None:
        """Time passes, and of some it is posted what fell due."""
        self.town.wait(minutes=minutes)
        self.do(*(self.town.do(Settle, self.prefix + member) for member in members))

    @rule(place=NUMBERS, members=st.lists(MEMBERS, max_size=4))
    def close(self, place: int, members: list[str]) -> None:
        """A shop closes while members ask for seats there."""
        asked = {"home_site_id": f"{self.prefix}-{place}"}
        self.do(
            self.town.close(f"{self.prefix}-{place}"),
            *(self.towns[1].assign(self.prefix + one, f"{self.prefix}-next", **asked) for one in members),
        )

    @rule(place=NUMBERS)
    def open(self, place: int) -> None:
        """A shop opens again."""
        self.do(self.town.put_sites(self.shop(place)))

    @rule(which=st.integers(0, 30))
    def dissolve(self, which: int) -> None:
        """A group is dissolved."""
        groups = self.groups()
        if groups:
            self.do(self.town.dissolve(groups[which % len(groups)].group_id))

    @rule()
    def sweep(self) -> None:
        """Whoever has to go goes; seats of crowded groups are given up."""
        steps = []
        for group in self.groups():
            for number in range(9):
                member = f"{self.prefix}member-{number}"
                town = self.towns[number % PROCESSES]
                if group.members and not group.living:
                    steps.append(town.do(MoveOut, member, group_id=group.group_id))
                if group.crowded:
                    steps.append(town.do(LapseSeat, member, group_id=group.group_id))
        self.do(*steps)

    # --- what must be true ----------------------------------------------------------------------------

    @invariant()
    def books_close(self) -> None:
        """Groups say what members say, and what was announced comes to it."""
        if hasattr(self, "prefix"):
            self.runner.run(self._check())

    async def _check(self) -> None:
        await check_seats(self.town.database, [f"{self.prefix}-{name}" for name in self.schemes])
        async with self.town.database.read() as connection:
            told = await connection.fetch(
                "SELECT entity_key, subject, body FROM outbox WHERE entity_key LIKE $1 ORDER BY position",
                f"{self.prefix}%",
            )
            kept = await connection.fetch(
                "SELECT member_id, scheme_id, group_id FROM memberships"
                " WHERE member_id LIKE $1 AND end_time IS NULL",
                f"{self.prefix}%",
            )
            astray = await connection.fetch(
                "SELECT g.group_id FROM groups g JOIN sites s USING (site_id)"
                " WHERE NOT s.open AND g.status IN ('OPEN', 'FULL') AND s.site_id LIKE $1",
                f"{self.prefix}%",
            )
        assert not astray
        there: dict[tuple[str, str], str] = {}
        versions: dict[str, int] = defaultdict(int)
        for row in told:
            name = str(row["subject"]).rpartition(".")[2]
            event = getattr(epb, name).FromString(row["body"])
            versions[event.member_id] += 1
            assert event.version == versions[event.member_id]
            if name in ("MemberLeft", "SeatLapsed"):
                assert there.pop((event.member_id, event.scheme_id)) == event.group_id
            elif name == "MemberMoved":
                assert there[event.member_id, event.scheme_id] == event.from_group_id
                there[event.member_id, event.scheme_id] = event.group_id
            else:
                there[event.member_id, event.scheme_id] = event.group_id
        assert there == {(row["member_id"], row["scheme_id"]): row["group_id"] for row in kept}

    def teardown(self) -> None:
        """Nobody is left in a group that is closed or dissolved."""
        if not hasattr(self, "prefix"):
            return
        self.sweep()
        for group in self.groups():
            assert group.living or not group.members
            assert group.status is not GroupStatus.CLOSED
        self.books_close()
        self.do(*(self.town.close(f"{self.prefix}-{number}") for number in range(3)))


def test_whatever_happens_the_books_close(groups_server: Postgres) -> None:
    url = make_database(groups_server)
    with asyncio.Runner() as runner:
        opened = (Database.open(url, size=4, name=f"town {number}") for number in range(PROCESSES))
        clock, databases = StandingClock(), [runner.run(each) for each in opened]
        Street.runner, Street.towns = runner, [Town(database, clock) for database in databases]
        runner.run(Street.towns[0].put_programme(moves_per_day=1_000_000))
        try:
            run_state_machine_as_test(
                Street,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            for database in databases:
                runner.run(database.close())
