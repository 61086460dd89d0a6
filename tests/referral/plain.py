"""Who counts for whom, and what that brings, told once more in the plainest way: what tests compare with.

It keeps who was bound and what was done, and reckons everything from that whenever it is asked. It shares
nothing with the service but the records of a campaign as it was put.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from services.referral.domain.campaigns import Campaign, FactKind, Gift, GiftKind, Qualify, Step

ZONE = ZoneInfo("Asia/Shanghai")
NOON = datetime(2027, 3, 1, 4, 0, tzinfo=UTC)  # 12:00 in Shanghai
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WHOLE = -1  # a refund of all that is left


def points(amount: int, cost_minor: int = 0) -> Gift:
    """So many points."""
    return Gift(kind=GiftKind.POINTS, quantity=amount, cost_minor=cost_minor)


def share(basis_points: int) -> Gift:
    """A part of the invitee's order."""
    return Gift(kind=GiftKind.CASH, share_basis_points=basis_points, currency_code="CNY")


def campaign(*ladder: Step, **said: Any) -> Campaign:
    """A campaign of orders: bound for a month, held for a week and undone in two, unless said otherwise."""
    told: dict[str, Any] = {
        "campaign_id": "king",
        "version": 1,
        "name": "邀请好友",
        "open_time": NOON - 10 * DAY,
        "close_time": NOON + 60 * DAY,
        "settle_time": NOON + 90 * DAY,
        "qualify": Qualify(kind=FactKind.ORDER),
        "ladder": ladder or (Step(step_id="one", at=1, reward=points(1000)),),
        "attribution_window": 30 * DAY,
        "hold_period": 7 * DAY,
        "clawback_window": 14 * DAY,
        "currency_code": "CNY",
    }
    return Campaign(**told | said)


@dataclass
class Bound:
    """Who was brought by whom, and when. `operator` is what an operator said of it, if one did."""

    attribution_id: str
    invitee: str
    inviter: str
    bind_time: datetime
    signals: tuple[str, ...] = ()
    """Those that were beyond their limits when it was bound."""
    operator: str = ""


@dataclass
class Done:
    """What a member did, and how that was undone."""

    member: str
    kind: FactKind
    reference_id: str
    occur_time: datetime
    amount_minor: int = 0
    currency_code: str = "CNY"
    refunds: list[tuple[int, datetime]] = field(default_factory=list)
    revoke_times: list[datetime] = field(default_factory=list)


Asked = Callable[[Done, int], bool]


@dataclass
class Stands:
    """Where a bond stands."""

    status: str
    by: str = ""
    """The reference of what qualified, while it does."""
    qualify_time: datetime = NOON
    worth: int = 0


class Plain:
    """A campaign, in versions that differ in rungs and caps alone, all bonds in it, and all that was done."""

    def __init__(self, put: Campaign, asked: Asked = lambda _done, _worth: True) -> None:
        self.put = put
        self.asked = asked
        self.bonds: list[Bound] = []
        self.done: list[Done] = []

    # --- the invitee ----------------------------------------------------------------------------------

    def bound(self, bond: Bound, at: datetime) -> Stands:
        """Where a bond stands at an instant."""
        ends = bond.bind_time + self.put.attribution_window
        if self.put.qualify.within:
            ends = min(ends, bond.bind_time + self.put.qualify.within)
        ends = min(ends, self.put.settle_time)
        good: list[tuple[datetime, str, int]] = []
        bad = fast = False
        for done in self.done:
            if done.member != bond.invitee or done.kind != self.put.qualify.kind:
                continue
            if done.occur_time < self.put.open_time or done.occur_time >= ends:
                continue
            left = self.left(done)
            if self.asked(done, left) and not self.undone(done):
                good.append((done.occur_time, done.reference_id, left))
            elif self.asked(done, left) or self.asked(done, done.amount_minor):
                bad = True
            else:
                continue
            fast = fast or self.too_fast(bond, done)
        verdict = self.verdict(bond, fast)
        if verdict == "REJECT":
            return Stands("REJECTED")
        if good and verdict == "REVIEW":
            return Stands("BOUND")
        if good:
            when, reference, left = min(good)
            return Stands("QUALIFIED", reference, when, left)
        if bad:
            return Stands("REVOKED")
        return Stands("LAPSED" if at >= ends else "BOUND")

    def left(self, done: Done) -> int:
        """What is left of its amount."""
        left = done.amount_minor
        for minor, when in done.refunds:
            if when < done.occur_time + self.put.clawback_window:
                left = 0 if minor == WHOLE else max(0, left - minor)
        return left

    def undone(self, done: Done) -> bool:
        """Whether it was undone whole, in time."""
        window = self.put.hold_period if done.kind == FactKind.GROUP else self.put.clawback_window
        if any(when < done.occur_time + window for when in done.revoke_times):
            return True
        refunded = any(when < done.occur_time + self.put.clawback_window for _, when in done.refunds)
        return refunded and self.left(done) == 0

    def too_fast(self, bond: Bound, done: Done) -> bool:
        """Whether it was done sooner than somebody would who thinks about it."""
        for limit in self.put.signal_limits:
            if limit.signal == "FAST" and done.occur_time < bond.bind_time + timedelta(seconds=limit.limit):
                return True
        return False

    def verdict(self, bond: Bound, fast: bool) -> str:
        """What is thought of a bond."""
        if bond.operator:
            return bond.operator
        score = 0
        for limit in self.put.signal_limits:
            if limit.signal in bond.signals or (fast and limit.signal == "FAST"):
                score += limit.score
        if self.put.reject_score and score >= self.put.reject_score:
            return "REJECT"
        if self.put.review_score and score >= self.put.review_score:
            return "REVIEW"
        return "PASS"

    # --- the inviter ----------------------------------------------------------------------------------

    def brought(self, inviter: str, depth: int) -> list[Bound]:
        """Whom somebody brought, or those brought whom somebody brought."""
        mine = [bond for bond in self.bonds if bond.inviter == inviter]
        if depth == 1:
            return mine
        if self.put.max_depth < 2:
            return []
        # Who was brought before the one who brought them was has nobody above; nor has one whom its own
        # invitee brought.
        above = {bond.invitee: bond for bond in mine}
        return [
            bond
            for bond in self.bonds
            if bond.inviter in above
            and bond.invitee != inviter
            and self.bonds.index(above[bond.inviter]) < self.bonds.index(bond)
        ]

    def line(self, inviter: str, depth: int, at: datetime) -> list[tuple[datetime, str, Bound, Stands]]:
        """Who counts of these, in order."""
        qualified = []
        for bond in self.brought(inviter, depth):
            stands = self.bound(bond, at)
            if stands.status == "QUALIFIED":
                qualified.append((stands.qualify_time, bond.attribution_id, bond, stands))
        qualified.sort(key=lambda one: (one[0], one[1]))
        line: list[tuple[datetime, str, Bound, Stands]] = []
        for one in qualified:
            day = one[0].astimezone(ZONE).strftime("%Y-%m-%d")
            days = [other[0].astimezone(ZONE).strftime("%Y-%m-%d") for other in line]
            months = [other_day[:7] for other_day in days]
            if days.count(day) >= self.put.caps.per_day or months.count(day[:7]) >= self.put.caps.per_month:
                continue
            if len(line) < self.put.caps.lifetime:
                line.append(one)
        return line

    def count(self, inviter: str, at: datetime, depth: int = 1) -> int:
        """How many count."""
        return len(self.line(inviter, depth, at))

    def reached(self, inviter: str, at: datetime) -> set[tuple[str, int, str]]:
        """The rungs that somebody stands on: step and round, or of each further invitee its attribution."""
        rungs: set[tuple[str, int, str]] = set()
        for step in self.put.ladder:
            line = self.line(inviter, step.depth, at)
            for number in range(1, len(line) + 1):
                if step.at == number:
                    rungs.add((step.step_id, 1, ""))
                if step.every and number >= step.every_from and (number - step.every_from) % step.every == 0:
                    rungs.add((step.step_id, 1 + (number - step.every_from) // step.every, ""))
                if step.each_from and number >= step.each_from:
                    rungs.add((step.step_id, 0, line[number - 1][1]))
        return rungs

    def owed(self, inviter: str, at: datetime) -> Counter[tuple[str, str, str, int, datetime]]:
        """What the rungs give if nothing was granted before: step, side, receiver, how much, reached when."""
        owed: Counter[tuple[str, str, str, int, datetime]] = Counter()
        for step in self.put.ladder:
            line = self.line(inviter, step.depth, at)
            for number, (when, _, bond, stands) in enumerate(line, 1):
                every = bool(step.every) and (number - step.every_from) % step.every == 0
                stand_here = step.at == number or (every and number >= step.every_from)
                if not stand_here and not (step.each_from and number >= step.each_from):
                    continue
                for side, receiver, gift in (
                    ("INVITER", inviter, step.reward),
                    ("INVITEE", bond.invitee, step.invitee_reward),
                ):
                    if gift is None:
                        continue
                    amount = gift.quantity
                    if gift.share_basis_points:
                        amount = stands.worth * gift.share_basis_points // 10_000
                        if amount == 0 or self.currency(stands) != self.put.currency_code:
                            continue
                    owed[step.step_id, side, receiver, amount, when] += 1
        return owed

    def currency(self, stands: Stands) -> str:
        """The currency of what qualified."""
        return next(done.currency_code for done in self.done if done.reference_id == stands.by)
