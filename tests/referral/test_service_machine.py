"""Whatever members do, and whenever it is told: what they bring comes to what plain reckoning says.

Friends bring one another, order and are refunded; the campaign gets a rung more and a higher cap. What
others tell, and what the service tells itself, comes in any order, and some of it twice. Rewards are granted,
handed over and refused meanwhile. At the end all has come, and everything must be as `plain` reckons it from
what was done. Hypothesis drives it over the fold in memory, and, for a few examples, over the service on a
real database.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Protocol

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.database import Database
from services.chassis.errors import ServiceError
from services.chassis.inbox import InboxKey
from services.referral.commands import (
    BindInvitee,
    Command,
    ResolveReview,
    RewardCommand,
    RewardHandedOver,
    RewardRefused,
    Settle,
    Tell,
)
from services.referral.domain.campaigns import FactKind
from services.referral.domain.profile import (
    AttributionStatus,
    Fact,
    Profile,
    RevokeReason,
    Reward,
    RewardStatus,
    Role,
    Verdict,
)
from services.referral.errors import AlreadyBound, Cycle, SelfReferral
from services.referral.rules import compile_campaign
from tests.referral.circle import Circle, campaign, order, points, standing, step
from tests.referral.club import Club, StandingClock
from tests.referral.plain import DAY, HOUR, MINUTE, WHOLE, Bound, Done, Plain
from tests.support import fresh

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "80"))
EXAMPLES_THERE = int(os.environ.get("HYPOTHESIS_EXAMPLES", "6"))
STEPS = 40
ENOUGH = 500  # minor units that an order has to be worth
FAST = {"signal": "SIGNAL_FAST", "limit": 60, "score": 5}
SHARE = {"cash": {"share_basis_points": 1000}}

MEMBERS = [f"m{number}" for number in range(6)]
member = st.sampled_from(MEMBERS)
inviter = st.sampled_from([*MEMBERS, *MEMBERS[:2] * 4])  # some bring many
which = st.integers(0, 1000)
ago = st.sampled_from([timedelta(0), timedelta(0), 2 * MINUTE, HOUR, 2 * DAY])
worth = st.sampled_from([400, 500, 900, 1300])
waits = st.sampled_from([2 * MINUTE, HOUR, 10 * HOUR, DAY, 2 * DAY, 6 * DAY])


def king(campaign_id: str) -> pb.Campaign:
    """A campaign with steps of each kind, over two levels."""
    return campaign(
        step("first", at=1, invitee_reward=points(50)),
        step("pairs", points(300, cost_minor=30), every={"count": 2, "first": 2}, invitee_reward=points(5)),
        step("each", SHARE, each_from=2),
        step("below", points(70), at=1, depth=2),
        campaign_id=campaign_id,
        qualify={"kind": "QUALIFICATION_KIND_ORDER", "when": f"amount_minor >= {ENOUGH}"},
        max_depth=2,
        attribution_window_hours=14 * 24,
        hold_period_hours=24,
        clawback_window_hours=5 * 24,
        caps={"per_day": 2},
        on_drop="ON_DROP_CLAW_BACK",
        signal_limits=[FAST],
        review_score=5,
        version=1,
    )


def grown(put: pb.Campaign) -> pb.Campaign:
    """Its next version, with one rung more and a cap that is higher."""
    more = pb.Campaign()
    more.CopyFrom(put)
    more.version += 1
    more.caps.per_day = 3
    later = more.ladder.add(step_id="later", at=2)
    later.reward.points.amount = 11
    return more


class Place(Protocol):
    """Where it happens: the fold in memory, or the service on its database."""

    def apply(self, command: Command) -> bytes | ServiceError | None: ...
    def code(self, member: str) -> str: ...
    def profile(self, member: str) -> Profile: ...
    def take_mail(self) -> Sequence[Command]: ...
    def put(self, campaign: pb.Campaign) -> None: ...
    def recount(self) -> None: ...
    def grant(self) -> None: ...
    def review_of(self, member: str) -> str | None: ...
    def set_time(self, at: datetime) -> None: ...


class InMemory:
    """The fold over members who are all there."""

    def __init__(self, put: pb.Campaign) -> None:
        self.circle = Circle(put)
        self.campaign_id = put.campaign_id
        self.at = self.circle.at

    def apply(self, command: Command) -> bytes | ServiceError | None:
        """Folds a command."""
        return self.circle.apply(command)

    def code(self, member: str) -> str:
        """A member's code."""
        return self.circle.invite(member, self.campaign_id).code

    def profile(self, member: str) -> Profile:
        """What is kept of a member."""
        return self.circle.profile(member)

    def take_mail(self) -> Sequence[Command]:
        """What the service told itself since it was asked last."""
        mail, self.circle.mail = self.circle.mail, []
        return mail

    def put(self, campaign: pb.Campaign) -> None:
        """Puts the campaign's next version."""
        self.circle.put(campaign)

    def recount(self) -> None:
        """Counts again for whom an older version was counted by."""
        self.circle.recount(self.campaign_id)

    def grant(self) -> None:
        """Grants what waited long enough."""
        self.circle.grant(self.campaign_id)

    def review_of(self, member: str) -> str | None:
        """The review of a member's bond."""
        found = [one.review_id for one in self.circle.reviews() if one.member_id == member]
        return found[-1] if found else None

    def set_time(self, at: datetime) -> None:
        """Lets time pass."""
        self.circle.at = at


class InDatabase:
    """The service on a real database."""

    runner: ClassVar[asyncio.Runner]
    database: ClassVar[Database]

    def __init__(self, put: pb.Campaign) -> None:
        self.club = Club(self.database, StandingClock())
        self.campaign_id = put.campaign_id
        self.runner.run(self.club.put_message(put))
        last = self.runner.run(self.club.fetch("SELECT coalesce(max(position), 0) AS last FROM outbox"))
        self._after = last[0]["last"]

    def apply(self, command: Command) -> bytes | ServiceError | None:
        """Does a command."""
        try:
            return self.runner.run(self.club.post(command))
        except ServiceError as refusal:
            return refusal

    def code(self, member: str) -> str:
        """A member's code."""
        return self.runner.run(self.club.invite(member, self.campaign_id)).code

    def profile(self, member: str) -> Profile:
        """What is kept of a member."""
        return self.runner.run(self.club.profile(member, self.campaign_id))

    def take_mail(self) -> Sequence[Command]:
        """What the service told itself since it was asked last."""
        mail, self._after = self.runner.run(self.club.mail(self.campaign_id, self._after))
        return mail

    def put(self, campaign: pb.Campaign) -> None:
        """Puts the campaign's next version."""
        self.runner.run(self.club.put_message(campaign))

    def recount(self) -> None:
        """Counts again for whom an older version was counted by."""
        self.runner.run(self.club.recount(self.campaign_id))

    def grant(self) -> None:
        """Grants what waited long enough."""
        self.runner.run(self.club.grant(self.campaign_id))

    def review_of(self, member: str) -> str | None:
        """The review of a member's bond."""
        query = "SELECT review_id FROM reviews WHERE member_id = $1 ORDER BY review_id DESC"
        rows = self.runner.run(self.club.fetch(query, member))
        return rows[0]["review_id"] if rows else None

    def set_time(self, at: datetime) -> None:
        """Lets time pass."""
        self.club.clock.at = at


class Friends(RuleBasedStateMachine):
    """Members who bring one another, order, and are refunded."""

    def __init__(self) -> None:
        super().__init__()
        put = self.put = king(fresh("king"))
        self.campaign_id = put.campaign_id
        self.place: Place = self.open_place(put)
        self.prefix = fresh("f") + "-"
        self.plain = Plain(compile_campaign(put).campaign, lambda _done, worth: worth >= ENOUGH)
        self.at = StandingClock().at
        self.mail: list[Command] = []
        self.numbers = iter(range(100_000))
        self.granted = False

    def open_place(self, put: pb.Campaign) -> Place:
        """Where nothing has happened yet."""
        return InMemory(put)

    def common(self, who: str, *, by_event: bool = False) -> dict[str, Any]:
        """What a command has."""
        name = f"{self.prefix}{next(self.numbers)}"
        event = InboxKey(who, "referral", "elsewhere", name, "ELSEWHERE", 1) if by_event else None
        return {"member_id": who, "request_id": name, "payload_hash": b"", "actor": "test", "event": event}

    def some(self, things: Sequence[Any], number: int) -> Any:
        """One of some things; None where there are none."""
        return things[number % len(things)] if things else None

    def arrive(self, command: Command) -> None:
        """What was told arrives, and is not refused."""
        answer = self.place.apply(command)
        assert not isinstance(answer, ServiceError), answer
        self.mail += self.place.take_mail()

    # --- what happens ---------------------------------------------------------------------------------

    @initialize(pairs=st.lists(st.tuples(member, inviter), min_size=6, max_size=10))
    def bind_some(self, pairs: list[tuple[str, str]]) -> None:
        """Some have come already."""
        for who, by in pairs:
            self.binds(who, by)
        self.time_passes(2 * DAY + MINUTE)

    @rule(who=member, by=inviter)
    def binds(self, who: str, by: str) -> None:
        """A member comes by the invite of another."""
        who, by = self.prefix + who, self.prefix + by
        code = self.place.code(by)
        asked = {**self.common(who), "campaign_id": self.campaign_id, "code": code, "caller": who}
        answer = self.place.apply(BindInvitee(**asked))
        self.mail += self.place.take_mail()
        bonds = {(bond.invitee, bond.inviter) for bond in self.plain.bonds}
        if who == by:
            assert isinstance(answer, SelfReferral)
        elif who in {invitee for invitee, _ in bonds}:
            assert isinstance(answer, AlreadyBound)
        elif (by, who) in bonds:
            assert isinstance(answer, Cycle)
        else:
            assert isinstance(answer, bytes), answer
            bond = pb.BindInviteeResponse.FromString(answer).attribution
            self.plain.bonds.append(Bound(bond.attribution_id, who, by, self.at))

    @rule(who=member, before=ago, amount=worth)
    def orders(self, who: str, before: timedelta, amount: int) -> None:
        """A member orders, perhaps before it is brought; that is still to be told."""
        self.ordered(self.prefix + who, before, amount)

    @rule(before=ago, amounts=st.lists(worth, min_size=4, max_size=6), first=which)
    def some_order(self, before: timedelta, amounts: list[int], first: int) -> None:
        """Some of those who were brought order, too."""
        for number, amount in enumerate(amounts):
            bond: Bound | None = self.some(self.plain.bonds, first + number)
            if bond is not None:
                self.ordered(bond.invitee, before, amount)

    def ordered(self, who: str, before: timedelta, amount: int) -> None:
        """Notes an order, and puts it into the mail."""
        done = Done(who, FactKind.ORDER, f"o{next(self.numbers)}", self.at - before, amount)
        self.plain.done.append(done)
        self.told(who, order(done.reference_id, done.occur_time, amount))

    @rule(number=which, amount=st.sampled_from([WHOLE, WHOLE, 100, 450]))
    def is_refunded(self, number: int, amount: int) -> None:
        """An order is refunded, in part or whole; that is still to be told."""
        done: Done | None = self.some(self.plain.done, number)
        if done is not None:
            done.refunds.append((amount, self.at))
            refund = {f"r{next(self.numbers)}": (amount, self.at)}
            self.told(done.member, Fact(kind=done.kind, reference_id=done.reference_id, refunds=refund))

    @rule(number=which)
    def is_revoked(self, number: int) -> None:
        """The brand takes back what it told; that is still to be told."""
        done: Done | None = self.some(self.plain.done, number)
        if done is not None:
            done.revoke_times.append(self.at)
            gone: dict[str, Any] = {"revoke_time": self.at, "revoke_reason": RevokeReason.REQUESTED}
            self.told(done.member, Fact(kind=done.kind, reference_id=done.reference_id, **gone))

    def told(self, who: str, fact: Fact) -> None:
        """Puts into the mail what another service tells."""
        self.mail.append(Tell(**self.common(who, by_event=True), facts=(fact,)))

    @rule(number=which, count=st.integers(1, 8), again=st.booleans())
    def mail_comes(self, number: int, count: int, again: bool) -> None:
        """Some of the mail arrives, whichever; some of it will come once more."""
        for _ in range(min(count, len(self.mail))):
            index = number % len(self.mail)
            self.arrive(self.mail[index] if again else self.mail.pop(index))

    @rule(days=st.sampled_from([0, 0, 2]))
    def all_mail_comes(self, days: int) -> None:
        """All of it arrives, the latest first; and some days later what waited long enough is granted."""
        while self.mail:
            self.arrive(self.mail.pop())
        if days:
            self.time_passes(days * DAY)
            self.grants()

    @rule(duration=waits)
    def time_passes(self, duration: timedelta) -> None:
        """Time passes; nothing is posted."""
        self.at += duration
        self.place.set_time(self.at)

    @rule()
    def grants(self) -> None:
        """What waited long enough is granted."""
        self.place.grant()
        self.granted = any(one.grant_time for name in MEMBERS for one in self.rewards(self.prefix + name))

    @rule(who=member, number=which, refuses=st.booleans())
    def is_handed_over(self, who: str, number: int, refuses: bool) -> None:
        """Whoever hands a reward over does, or refuses to."""
        who = self.prefix + who
        open_ones = [one for one in self.rewards(who) if one.grant_time is not None]
        reward: Reward | None = self.some(sorted(open_ones, key=lambda one: one.reward_id), number)
        if reward is None:
            return
        common = {**self.common(who, by_event=True), "reward_id": reward.reward_id}
        command: RewardCommand = (
            RewardRefused(**common, reason="GONE")
            if refuses
            else RewardHandedOver(**common, reference_id="txn", occur_time=self.at)
        )
        self.arrive(command)

    @precondition(lambda self: self.put.version == 1)
    @rule()
    def campaign_grows(self) -> None:
        """The brand puts one rung more, and a higher cap."""
        self.put = grown(self.put)
        self.place.put(self.put)
        self.plain.put = compile_campaign(self.put).campaign

    @rule()
    def counts_again(self) -> None:
        """Whoever was counted by the version before is counted again."""
        self.place.recount()
        self.mail += self.place.take_mail()

    @rule(who=member, verdict=st.sampled_from([Verdict.PASS, Verdict.REJECT]))
    def is_judged(self, who: str, verdict: Verdict) -> None:
        """An operator judges a bond, perhaps anew."""
        who = self.prefix + who
        review_id = self.place.review_of(who)
        if review_id is not None:
            self.arrive(ResolveReview(**self.common(who), review_id=review_id, verdict=verdict))
            bond = next(bond for bond in self.plain.bonds if bond.invitee == who)
            bond.operator = verdict

    # --- what must be true ----------------------------------------------------------------------------

    def rewards(self, who: str) -> list[Reward]:
        """The rewards of a member's rungs."""
        return list(self.place.profile(who).rewards.values())

    def teardown(self) -> None:
        """Once all has arrived, all is as plain reckoning says."""
        self.all_mail_comes(0)
        for name in MEMBERS:
            self.arrive(Settle(**self.common(self.prefix + name)))
        self.all_mail_comes(0)
        self.counts_again()
        for bond in self.plain.bonds:
            self.check_bond(bond)
        for name in MEMBERS:
            self.check_inviter(self.prefix + name)

    def check_bond(self, bond: Bound) -> None:
        """A bond stands where it should."""
        kept = self.place.profile(bond.invitee).attributions[self.campaign_id]
        stands = self.plain.bound(bond, self.at)
        assert kept.status == stands.status
        if kept.status is AttributionStatus.QUALIFIED:
            found = (kept.reference_id, kept.qualify_time, kept.amount_minor)
            assert found == (stands.by, stands.qualify_time, stands.worth)

    def check_inviter(self, who: str) -> None:
        """An inviter stands on the rungs that it should, and each gives what it should, once."""
        profile = self.place.profile(who)
        rungs = {rung.name: rung for rung in profile.rungs.values() if not rung.lost}
        reached = {
            (one.step_id, 0 if one.each else one.round, one.attribution_id if one.each else "")
            for one in rungs.values()
        }
        assert reached == self.plain.reached(who, self.at)
        line = self.plain.line(who, 1, self.at)
        rank = profile.ranks.get(self.campaign_id)
        if self.at < self.plain.put.close_time and rank is not None:
            assert rank.count == len(line)
        given = standing(list(profile.rewards.values()))
        assert {one.rung for one in given} <= rungs.keys()
        assert set(Counter((one.rung, one.role) for one in given).values()) <= {1}
        owed = self.plain.owed(who, self.at)
        waiting = Counter(
            (one.step_id, str(one.role), one.receiver_id, one.gift.quantity, one.reach_time) for one in given
        )
        if not self.granted:
            assert waiting == owed
        else:  # who has been given something keeps it as it was
            assert Counter((one.step_id, one.role) for one in given) == Counter(
                {side: count for side, count in _sides(owed).items() if count}
            )
        assert all(one.status is RewardStatus.PENDING or one.role in Role for one in given)


def _sides(owed: Counter[tuple[str, str, str, int, datetime]]) -> Counter[tuple[str, Role]]:
    sides: Counter[tuple[str, Role]] = Counter()
    for (step_id, side, *_), count in owed.items():
        sides[step_id, Role(side)] += count
    return sides


def test_whatever_is_told_whenever_comes_to_what_was_done() -> None:
    run_state_machine_as_test(
        Friends,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class FriendsThere(Friends):
    """The same on a real database, which shows of a member only what is taken to be needed."""

    def open_place(self, put: pb.Campaign) -> Place:
        """Where nothing has happened yet."""
        return InDatabase(put)


def test_the_service_on_its_database_comes_to_the_same(referral_url: str) -> None:
    with asyncio.Runner() as runner:
        InDatabase.runner = runner
        InDatabase.database = runner.run(Database.open(referral_url, size=2, name="friends"))
        try:
            run_state_machine_as_test(
                FriendsThere,
                settings=settings(
                    max_examples=EXAMPLES_THERE,
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(InDatabase.database.close())
