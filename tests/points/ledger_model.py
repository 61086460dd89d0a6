"""What a member owns, worked out from nothing but what was accepted, and when: a plain model of the ledger.

It has no accounts, postings or rows. Points lie in pots that have a beginning and an end; a book is made
anew from the whole history whenever it is asked, and says what the next command must come to. Of the service
it reads the commands and names the refusals; the arithmetic is its own.
"""

from __future__ import annotations

import calendar
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from fractions import Fraction
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from loyalty.orders.v1.orders_pb2 import Order

from services.chassis.errors import RequestIdReused, ServiceError
from services.points.commands import (
    Adjust,
    CloseHold,
    Command,
    Earn,
    EarnFixed,
    Learn,
    PlaceHold,
    Receive,
    Redeem,
    RefundOrder,
    Reverse,
    Send,
    Settle,
    TakeBack,
)
from services.points.errors import (
    ActivityAlreadyEarned,
    BackdatingNeedsAdmin,
    CaptureExceedsHold,
    ClawbackBlocked,
    HoldClosed,
    HoldExpired,
    HoldTimeInvalid,
    HoldUnknown,
    InsufficientGrowth,
    InsufficientPoints,
    LineUnknown,
    NotReversible,
    OccurTimeAhead,
    OrderAlreadyEarned,
    OrderUnknown,
    RefundAlreadyApplied,
    RefundExceedsOrder,
    ReversalExceedsTransaction,
    RewardTakenBack,
    TransactionUnknown,
    TransferLimit,
    TransfersNotAllowed,
    TransferToSelf,
)
from services.points.rules import Source

POINTS, GROWTH = "POINTS", "GROWTH"
ZONE = ZoneInfo("America/New_York")  # a zone with summer time
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
NOTICES = (timedelta(days=30), timedelta(days=7))
MONTH = timedelta(days=30)
SMALL_ORDER, SMALL_GIFT = 3_000, 15  # an order below this many minor units earns so much more
COFFEE, COFFEE_A_DAY, COFFEE_MONTHS = 5, 8, 2
JOINED, JOINED_A_DAY = 7, 10
TEA = 300  # minor units of tea for one more point
GOLD, CARD = Fraction(1, 2), Fraction(1)  # what the tier and the card add to what amounts earn
TIERS = (("silver", 40), ("gold", 100))
TIER_DAYS = 20
CARD_FACT, REST_FACT = "segment/1", "rest/1"  # under what it is known that a card runs, or is frozen


def day_of(at: datetime) -> date:
    """The local day of an instant."""
    return at.astimezone(ZONE).date()


def midnight(day: date, days: int = 0) -> datetime:
    """When a local day begins, or one some days later."""
    day += timedelta(days=days)
    return datetime(day.year, day.month, day.day, tzinfo=ZONE).astimezone(UTC)


@dataclass(frozen=True)
class Terms:
    """In what the programmes of the test differ."""

    effective: datetime
    clawback: str = "DEBT"
    pending_days: int = 0
    months: int | None = None
    years: int | None = None
    points: int = 1  # for a yuan
    grace: int = 7
    sends: int = 0
    ladder: str = ""  # rolling, calendar, or none
    tier_grace: int = 0

    def ends(self, day: date, months: int | None = None) -> datetime:
        """When points of a local day are gone."""
        months = months or self.months
        if months is not None:
            years, month = divmod(day.month - 1 + months, 12)
            year, month = day.year + years, month + 1
            return midnight(date(year, month, min(day.day, calendar.monthrange(year, month)[1])), 1)
        return FOREVER if self.years is None else midnight(date(day.year + self.years, 12, 31), 1)

    def window(self, day: date) -> date:
        """The first day whose growth counts together with that of a day."""
        return date(day.year, 1, 1) if self.ladder == "calendar" else day - timedelta(days=TIER_DAYS - 1)

    def held_until(self, last: date) -> datetime:
        """Until when a tier is held whose period ends with a day."""
        return midnight(last, 1 + self.tier_grace)


def reached(growth: int) -> str:
    """The tier that growth is good for."""
    return next((tier for tier, takes in reversed(TIERS) if growth >= takes), "")


def rank(tier: str) -> int:
    """How high a tier is."""
    return ["", *(name for name, _ in TIERS)].index(tier)


# --- what an order is worth ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Gift:
    """What the rules give; `coffee` apart, since those points live longer."""

    points: int
    coffee: int
    growth: int

    def of(self, unit: str) -> int:
        """The whole of a unit."""
        return self.growth if unit == GROWTH else self.points + self.coffee


@dataclass(frozen=True)
class Saw:
    """What the rules saw of the member when an order was earned."""

    rate: int
    gold: bool
    card: bool
    coffee_used: int

    def give(self, lines: Iterable[tuple[str, Fraction]], total: int) -> Gift:
        """What lines of categories, and a total, are worth."""
        lines = list(lines)
        exact = Fraction(self.rate * total, 100) + sum(n for kind, n in lines if kind == "tea") / TEA
        exact *= 1 + GOLD * self.gold + CARD * self.card
        small = SMALL_GIFT if total < SMALL_ORDER else 0
        coffee = min(COFFEE, COFFEE_A_DAY - self.coffee_used) if any(k == "coffee" for k, _ in lines) else 0
        return Gift(floor(exact) + small, coffee, total // 100)


@dataclass
class Sale:
    """An order that was earned, and its refunds by name."""

    order: Order
    body: bytes
    saw: Saw
    past: Past
    transaction_id: str
    refunds: dict[str, tuple[RefundOrder, str]] = field(default_factory=dict)

    @property
    def unrefunded(self) -> int:
        """What was paid and not given back."""
        by_amount, by_line, everything = self._state(refund for refund, _ in self.refunds.values())
        return 0 if everything else self.order.total_minor - by_amount - by_line.total()

    def bears(self, more: RefundOrder) -> None:
        """Raises what speaks against one more refund."""
        paid = {line.line_id: line.amount_minor for line in self.order.lines}
        _, by_line, _ = self._state(refund for refund, _ in self.refunds.values())
        for line, amount in more.refund.lines.items():
            if line not in paid:
                raise Refused(LineUnknown)
            if by_line[line] + amount > paid[line]:
                raise Refused(RefundExceedsOrder)
        wanted = more.refund.amount + sum(more.refund.lines.values())
        if not more.refund.everything and wanted > self.unrefunded:
            raise Refused(RefundExceedsOrder)

    def worth(self, more: RefundOrder) -> Gift:
        """What the order would have earned had it been without what its refunds gave back."""
        by_amount, by_line, everything = self._state([*(r for r, _ in self.refunds.values()), more])
        total = self.order.total_minor - by_amount - by_line.total()
        if everything or (not total and self.order.total_minor):
            return Gift(0, 0, 0)
        rest = self.order.total_minor - by_line.total()
        share = 1 - Fraction(by_amount, rest) if rest else Fraction(0)
        left = [(line, (line.amount_minor - by_line[line.line_id]) * share) for line in self.order.lines]
        kept = [(line.category, n) for line, n in left if n >= 1 or not line.amount_minor]
        return self.saw.give(kept, total)

    @staticmethod
    def _state(refunds: Iterable[RefundOrder]) -> tuple[int, Counter[str], bool]:
        refunds, by_line = list(refunds), Counter[str]()
        for each in refunds:
            by_line.update(each.refund.lines)
        by_amount = sum(each.refund.amount for each in refunds)
        return by_amount, by_line, any(each.refund.everything for each in refunds)


# --- what a book is made of ---------------------------------------------------------------------------


@dataclass(eq=False)
class Pot:
    """Points that began and will end together. What is left of it when it has ended expired unspent."""

    age: int
    ends: datetime
    left: int
    begins: datetime | None = None  # while they are pending
    gone: bool = False

    @property
    def order(self) -> tuple[datetime, int]:
        """What ends first is spent first, then what is older."""
        return (self.ends, self.age)


Parts = list[tuple[Pot, int]]


@dataclass
class Hold:
    """Points set aside; `parts` in the order of spending."""

    request_id: str
    transaction_id: str
    deadline: datetime
    parts: Parts
    state: str = "PLACED"


@dataclass
class Past:
    """What can be undone: what it gave (below zero: took), and how that was undone since."""

    kind: str
    day: date
    got: dict[str, int] = field(default_factory=dict)
    pots: list[Pot] = field(default_factory=list)
    uses: Parts = field(default_factory=list)
    undone: Counter[str] = field(default_factory=Counter)
    refunded: Counter[str] = field(default_factory=Counter)  # what of that refunds did
    taken: Counter[Pot] = field(default_factory=Counter)  # from which pots that live
    expired: int = 0  # from what had expired
    debt: int = 0
    written_off: Counter[str] = field(default_factory=Counter)

    def left(self, unit: str) -> int:
        """What can still be undone."""
        return abs(self.got.get(unit, 0)) - self.undone[unit]


@dataclass(frozen=True)
class Told:
    """What events told of something: until when it holds by the latest, from when by the latest beginning."""

    latest: tuple[int, int]
    until: datetime | None
    begun: tuple[int, int]
    since: datetime

    def and_(self, other: Told) -> Told:
        """Two events together, whichever came first."""
        last, first = max(self, other, key=lambda t: t.latest), max(self, other, key=lambda t: t.begun)
        return Told(last.latest, last.until, first.begun, first.since)

    def holds(self, at: datetime) -> bool:
        """Whether it is so at an instant; of what nobody told to have begun it is not."""
        return any(self.begun) and self.since <= at and (self.until is None or at < self.until)


class Refused(Exception):
    """The command must be refused with this error."""

    def __init__(self, reason: type[ServiceError]) -> None:
        super().__init__(reason)
        self.reason = reason


class Effect(Enum):
    """What came of a command that made no transaction."""

    NOTED = "something to remember"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Heard:
    """A command that left a trace, and the transaction it made; `refused` if its asker was told by event."""

    command: Command
    at: datetime
    transaction_id: str
    refused: bool = False


UNNAMED = "?"  # a transaction whose id no answer told
Outcome = str | type[ServiceError] | None  # the transaction that must be the answer, the refusal, or neither


@dataclass(frozen=True)
class Shown:
    """A member as of a time; `lots` are the points that no hold has set aside, by end and whether pending."""

    available: int
    pending: int
    held: int
    owed: int
    growth: int
    lifetime_earned: int
    tier: str
    tier_until: datetime | None
    lots: Mapping[tuple[datetime, bool], int]


class Book:
    """One member, from the first thing heard to `now`."""

    def __init__(self, programmes: Sequence[Terms], history: Iterable[Heard] = ()) -> None:
        self.programmes = programmes
        self.now = self.occur = LONG_AGO
        self.transaction_id = ""  # of what is being heard
        self.pots: list[Pot] = []
        self.holds: list[Hold] = []
        self.owed = self.lifetime = 0
        self.growth: Counter[date] = Counter()
        self.tier = ""
        self.tier_until: datetime | None = None
        self.used: Counter[tuple[str, date]] = Counter()  # what counts against a day's limit
        self.sales: dict[str, Sale] = {}
        self.activities: dict[str, tuple[bytes, str]] = {}
        self.early: dict[str, dict[str, RefundOrder]] = {}
        self.pasts: dict[str, Past] = {}
        self.requests: dict[str, tuple[bytes, str]] = {}
        self.never: dict[str, datetime] = {}  # requests that were taken back before they were made
        self.events: set[tuple[str, ...]] = set()
        self.facts: dict[str, Told] = {}
        self.told = LONG_AGO  # until when notices were given
        self.announced: list[tuple[Any, ...]] = []
        self.letters = 0  # refunds that their order could not bear
        for heard in history:
            self._hear_again(heard)

    @property
    def terms(self) -> Terms:
        """The programme in force."""
        return [terms for terms in self.programmes if terms.effective <= self.now][-1]

    def show(self, at: datetime) -> Shown:
        """Everything that can be seen of the member at a time."""
        self.pass_until(at)
        live = [pot for pot in self.pots if pot.left and pot.ends > at]
        lots: Counter[tuple[datetime, bool]] = Counter()
        for pot in live:
            lots[pot.ends, pot.begins is not None] += pot.left
        return Shown(
            self.available,
            sum(pot.left for pot in live if pot.begins is not None),
            sum(n for hold in self.holds if hold.state == "PLACED" for _, n in hold.parts),
            self.owed,
            self.growth.total(),
            self.lifetime,
            self.tier,
            self.tier_until,
            lots,
        )

    @property
    def available(self) -> int:
        """What can be spent now."""
        return sum(pot.left for pot in self._usable())

    def _usable(self) -> list[Pot]:
        """Pots that can be spent from, in that order."""
        usable = [pot for pot in self.pots if pot.left and pot.begins is None and pot.ends > self.now]
        return sorted(usable, key=lambda pot: pot.order)

    # --- hearing --------------------------------------------------------------------------------------

    def hear(self, command: Command, at: datetime, transaction_id: str) -> tuple[Outcome, Heard | None]:
        """What must come of a command now, and what to keep of it; its transaction has this id if any."""
        key = command.event[:4] if command.event is not None else None
        if key in self.events:
            return None, None
        heard = Heard(command, at, transaction_id)
        try:
            outcome = self._first_answer(command)
            if outcome and key is None:
                return outcome, None
            outcome = outcome or self._new(heard)
        except Refused as refusal:
            if not self._tells(command, refusal.reason):
                return refusal.reason, None
            outcome, heard = None, Heard(command, at, "", refused=True)
        if key is not None:
            self.events.add(key)
        return outcome, heard

    def _hear_again(self, heard: Heard) -> None:
        if not heard.refused:
            self.hear(heard.command, heard.at, heard.transaction_id)
        elif heard.command.event is not None:
            self.events.add(heard.command.event[:4])
            self._tells(heard.command, InsufficientPoints)

    def _tells(self, command: Command, reason: type[ServiceError]) -> bool:
        """Whether a refusal is told by event."""
        if command.event is None or reason is RequestIdReused:
            return False
        match command:
            case PlaceHold():
                self.announced.append(("HoldRefused", command.amount))
            case EarnFixed():
                self.announced.append(("FulfilmentRefused", command.reward_id))
            case _:
                return False
        return True

    def _first_answer(self, command: Command) -> str | None:
        first: tuple[bytes, str] | None = self.requests.get(command.request_id)
        if first is not None:
            return _same(first, command.payload_hash, RequestIdReused)
        match command:
            case Earn(source=source) if source.id in self.sales:
                sale = self.sales[source.id]
                return _same((sale.body, sale.transaction_id), source.body, OrderAlreadyEarned)
            case Earn(source=source) if source.id in self.activities:
                return _same(self.activities[source.id], source.body, ActivityAlreadyEarned)
            case RefundOrder():
                return self._first_refund(command)
        return None

    def _first_refund(self, command: RefundOrder) -> str | None:
        known = self.early.get(command.order_id, {}).get(command.refund_id)
        transaction_id = ""
        if command.order_id in self.sales:
            refunds = self.sales[command.order_id].refunds
            known, transaction_id = refunds.get(command.refund_id, (None, ""))
        if known is None:
            return None
        return _same((known.body_hash, transaction_id), command.body_hash, RefundAlreadyApplied) or None

    def _new(self, heard: Heard) -> str | None:
        command = heard.command
        occur = self._occur(command, heard.at)
        if occur > heard.at + timedelta(minutes=5):
            raise Refused(OccurTimeAhead)
        if occur < heard.at - MONTH and not command.may_backdate:
            raise Refused(BackdatingNeedsAdmin)
        told = self.told
        something = self.pass_until(heard.at)
        self.told = heard.at
        self.occur, self.transaction_id = occur, heard.transaction_id
        made = _VERBS[type(command)](self, command)
        if made is Effect.NOTHING and not something:
            self.told = told  # nobody looked
        if isinstance(made, Effect):
            return None
        self.requests[command.request_id] = (command.payload_hash, heard.transaction_id)
        self.pasts[heard.transaction_id] = made
        self._promote()
        return heard.transaction_id

    def _occur(self, command: Command, at: datetime) -> datetime:
        if isinstance(command, Earn | Learn) and command.source is not None:
            return command.occur_time or command.source.occur_time
        return command.occur_time or at

    # --- time -----------------------------------------------------------------------------------------

    def moments(self) -> Iterator[datetime]:
        """When something will happen by itself."""
        for pot in self.pots:
            if pot.left and not pot.gone:
                if pot.ends < FOREVER:
                    yield pot.ends
                    yield from (pot.ends - ahead for ahead in NOTICES if pot.ends - ahead > self.told)
                if pot.begins is not None:
                    yield pot.begins
        yield from (hold.deadline for hold in self.holds if hold.state == "PLACED")
        if self.tier_until is not None:
            yield self.tier_until

    def pass_until(self, at: datetime) -> bool:
        """Lets happen what happens by itself; says whether anything did."""
        self.now = at
        anything = False
        while (moment := min(self.moments(), default=FOREVER)) <= at:
            anything = True
            live = [pot for pot in self.pots if pot.left and not pot.gone]
            ended = [pot for pot in live if pot.ends <= moment]
            begun = [pot for pot in live if pot.begins is not None and pot.begins <= moment]
            lapsed = [hold for hold in self.holds if hold.state == "PLACED" and hold.deadline <= moment]
            if ended:
                for pot in ended:
                    pot.gone = True
            elif begun:
                for pot in begun:
                    pot.begins = None
                self._pay([(pot, pot.left) for pot in begun])
            elif lapsed:
                lapsed[0].state = "EXPIRED"
                self._let_go(lapsed[0].parts, moment)
                self.announced.append(("HoldReleased", "EXPIRED"))
            elif self.tier_until is not None and self.tier_until <= moment:
                self._end_tier(moment)
            else:
                self._give_notice(moment, at)
        return anything

    def _give_notice(self, moment: datetime, at: datetime) -> None:
        live = [pot for pot in self.pots if pot.left and not pot.gone]
        ends = {pot.ends for pot in live if any(self.told < pot.ends - n <= moment for n in NOTICES)}
        self.told = moment
        for end in ends:
            if end > at and not any(moment < end - ahead <= at for ahead in NOTICES):
                amount = sum(pot.left for pot in live if pot.ends == end)
                self.announced.append(("PointsExpiring", moment, amount, end))

    # --- points come and go ---------------------------------------------------------------------------

    def _pot(self, ends: datetime, amount: int, begins: datetime | None = None) -> Pot:
        pot = Pot(len(self.pots), ends, amount, begins)
        self.pots.append(pot)
        return pot

    def _pay(self, parts: Parts) -> None:
        """Pays what is owed with points that became usable, from what ends first."""
        for pot, amount in sorted(parts, key=lambda part: part[0].order):
            paid = min(amount, self.owed)
            pot.left -= paid
            self.owed -= paid

    def _spend(self, amount: int) -> Parts:
        if amount > self.available:
            raise Refused(InsufficientPoints)
        return self._take(self._usable(), amount)

    def _take(self, pots: Iterable[Pot], amount: int) -> Parts:
        parts: Parts = []
        for pot in pots:
            part = min(amount, pot.left)
            if part:
                pot.left -= part
                amount -= part
                parts.append((pot, part))
        return parts

    def _let_go(self, parts: Parts, at: datetime) -> None:
        """Points that a hold had: those whose time is over are gone."""
        for pot, part in parts:
            pot.left += part
            pot.gone = pot.gone or pot.ends <= at
        self._pay([(pot, part) for pot, part in parts if not pot.gone])

    def _bring_back(self, parts: Parts, amount: int) -> None:
        """Returns points to the pots they came from; what cannot lie there lives for the days of grace."""
        back: Parts = []
        revived = amount
        for pot, part in _split(parts, amount)[0]:
            if pot.ends > self.now:
                pot.left += part
                revived -= part
                if pot.begins is None:
                    back.append((pot, part))
        if revived:
            ends = midnight(day_of(self.now), self.terms.grace + 1)
            back.append((self._pot(ends, revived), revived))
        self._pay(back)

    # --- earning --------------------------------------------------------------------------------------

    def _earn(self, command: Earn) -> Past | Effect:
        if not isinstance(command.source.message, Order):
            return self._earn_activity(command.source)
        order, day = command.source.message, day_of(self.occur)
        saw = Saw(
            self.terms.points,
            self.tier == "gold",
            self._has_card(self.occur),
            self.used["coffee", day],
        )
        gift = saw.give(
            ((line.category, Fraction(line.amount_minor)) for line in order.lines), order.total_minor
        )
        self.used["coffee", day] += gift.coffee
        past = self._credit(gift)
        self.sales[order.order_id] = Sale(order, command.source.body, saw, past, self.transaction_id)
        self._promote()
        early = self.early.pop(order.order_id, {}).values()
        for refund in sorted(early, key=lambda each: (each.occur_time, each.refund_id)):
            self._refund_early(self.sales[order.order_id], refund)
        return past

    def _earn_activity(self, source: Source) -> Past:
        day = day_of(self.occur)
        gift = min(JOINED, JOINED_A_DAY - self.used["joined", day])
        self.used["joined", day] += gift
        self.activities[source.id] = (source.body, self.transaction_id)
        return self._credit(Gift(gift, 0, 0))

    def _earn_fixed(self, command: EarnFixed) -> Past:
        self._forget()
        if command.reward_id and command.request_id in self.never:
            raise Refused(RewardTakenBack)
        if command.reward_id:
            self.announced.append(("RewardFulfilled", command.reward_id))
        growth = command.unit == GROWTH
        return self._credit(Gift(0, 0, command.amount) if growth else Gift(command.amount, 0, 0))

    def _credit(self, gift: Gift) -> Past:
        day, terms = day_of(self.occur), self.terms
        begins = midnight(day, terms.pending_days) if terms.pending_days else None
        amounts = Counter({terms.ends(day): gift.points})
        amounts[terms.ends(day, COFFEE_MONTHS)] += gift.coffee
        pots = [self._pot(ends, amount, begins) for ends, amount in amounts.items() if amount]
        if begins is None:
            self._pay([(pot, pot.left) for pot in pots])
        self.lifetime += gift.of(POINTS)
        self.growth[day] += gift.growth
        return Past("EARN", day, {POINTS: gift.of(POINTS), GROWTH: gift.growth}, pots)

    def _adjust(self, command: Adjust) -> Past | Effect:
        past = Past("ADJUST", day_of(self.occur), {command.unit: command.amount})
        if command.unit == GROWTH:
            if self.growth.total() + command.amount < 0:
                raise Refused(InsufficientGrowth)
            self.growth[past.day] += command.amount
        elif command.amount > 0:
            past.pots = [self._pot(self.terms.ends(past.day), command.amount)]
            self._pay([(past.pots[0], command.amount)])
        else:
            past.uses = self._spend(-command.amount)
        return past

    # --- spending -------------------------------------------------------------------------------------

    def _redeem(self, command: Redeem) -> Past | Effect:
        return self._spent("REDEEM", self._spend(command.amount))

    def _spent(self, kind: str, uses: Parts) -> Past:
        return Past(kind, day_of(self.occur), {POINTS: -sum(part for _, part in uses)}, uses=uses)

    def _hold(self, command: PlaceHold) -> Past | Effect:
        if not self.now < command.expire_time <= self.now + MONTH:
            raise Refused(HoldTimeInvalid)
        parts = self._spend(command.amount)
        self.holds.append(Hold(command.request_id, self.transaction_id, command.expire_time, parts))
        self.announced.append(("HoldPlaced", command.amount, command.expire_time))
        return self._no_more()

    def _no_more(self) -> Past:
        """What cannot be undone."""
        return Past("", day_of(self.occur))

    def _close_hold(self, command: CloseHold) -> Past | Effect:
        named = command.hold_id.replace("hold_", "txn_")
        found = [h for h in self.holds if named == h.transaction_id or command.placed_by == h.request_id]
        releases = command.capture is None
        if releases and command.placed_by and all(h.state in ("RELEASED", "EXPIRED") for h in found):
            return Effect.NOTHING
        if not found:
            raise Refused(HoldUnknown)
        (hold,) = found
        if hold.state != "PLACED":
            raise Refused(HoldExpired if hold.state == "EXPIRED" else HoldClosed)
        whole = sum(part for _, part in hold.parts)
        if releases:
            hold.state = "RELEASED"
            self._let_go(hold.parts, self.now)
            self.announced.append(("HoldReleased", "RELEASED"))
            return self._no_more()
        amount = command.capture or whole
        if amount > whole:
            raise Refused(CaptureExceedsHold)
        hold.state = "CAPTURED"
        uses, rest = _split(hold.parts, amount)
        self.announced.append(("HoldCaptured", amount))
        if rest:
            self._let_go(rest, self.now)
            self.announced.append(("HoldReleased", "CAPTURED"))
        return self._spent("CAPTURE", uses)

    # --- undoing --------------------------------------------------------------------------------------

    def _refund(self, command: RefundOrder) -> Past | Effect:
        sale = self.sales.get(command.order_id)
        if sale is not None:
            self._apply_refund(sale, command, self.transaction_id)
            return self._no_more()
        if command.event is None:
            raise Refused(OrderUnknown)
        waiting = self.early.setdefault(command.order_id, {})
        if command.refund_id in waiting:
            return Effect.NOTHING
        waiting[command.refund_id] = command
        return Effect.NOTED

    def _refund_early(self, sale: Sale, command: RefundOrder) -> None:
        self.pass_until(self.now)
        try:
            self._apply_refund(sale, command, UNNAMED)
        except Refused:
            self.letters += 1
        else:
            self.requests[command.request_id] = (command.payload_hash, UNNAMED)
            self.pasts[UNNAMED] = self._no_more()

    def _apply_refund(self, sale: Sale, command: RefundOrder, transaction_id: str) -> None:
        sale.bears(command)
        worth, past = sale.worth(command), sale.past
        changes: dict[str, int] = {}
        for unit, earned in past.got.items():
            target = earned - min(earned, worth.of(unit))
            reversed_ = past.undone[unit] - past.refunded[unit]
            changes[unit] = min(target, earned - reversed_) - past.refunded[unit]
        self._take_back(past, {unit: n for unit, n in changes.items() if n > 0})
        self._give_back(past, {unit: -n for unit, n in changes.items() if n < 0})
        past.refunded.update(changes)
        sale.refunds[command.refund_id] = (command, transaction_id)

    def _reverse(self, command: Reverse) -> Past | Effect:
        named = command.transaction_id
        if command.made_by:
            if command.made_by not in self.requests:
                self.never[command.made_by] = self.now
                return Effect.NOTHING
            named = self.requests[command.made_by][1]
        if named not in self.pasts:
            raise Refused(TransactionUnknown)
        past = self.pasts[named]
        if past.kind not in ("EARN", "ADJUST", "REDEEM", "CAPTURE"):
            raise Refused(NotReversible)
        self._undo(past, command.amounts)
        return self._no_more()

    def _undo(self, past: Past, asked: Mapping[Any, int]) -> None:
        for unit, amount in asked.items():
            if amount > past.left(unit):
                raise Refused(ReversalExceedsTransaction)
        amounts: dict[str, int] = dict(asked) or {unit: past.left(unit) for unit in past.got}
        self._take_back(past, {unit: n for unit, n in amounts.items() if past.got[unit] > 0})
        for unit, amount in amounts.items():
            if past.got[unit] < 0:
                self._return(past, unit, amount)

    def _take_back(self, past: Past, amounts: Mapping[str, int]) -> None:
        """What expired of the same pots, those pots, pending ones, other ones; then by the programme."""
        own = [pot for pot in past.pots if pot.ends <= self.now]
        pots = self._order_of_taking(past, (pot for pot in self.pots if pot.ends > self.now))
        there = {POINTS: sum(pot.left for pot in [*own, *pots]), GROWTH: self.growth.total()}
        missing = {unit: max(0, amount - there[unit]) for unit, amount in amounts.items()}
        if self.terms.clawback == "BLOCK" and any(missing.values()):
            raise Refused(ClawbackBlocked)
        for unit, amount in amounts.items():
            got = amount - missing[unit]
            if unit == GROWTH:
                self.growth[past.day] -= got
            else:
                expired = sum(part for _, part in self._take(own, got))
                past.expired += expired
                past.taken.update(dict(self._take(pots, got - expired)))
                self.lifetime -= amount if past.kind == "EARN" else 0
            past.undone[unit] += amount
            if unit == POINTS and self.terms.clawback == "DEBT":
                self.owed += missing[unit]
                past.debt += missing[unit]
            else:
                past.written_off[unit] += missing[unit]

    def _order_of_taking(self, past: Past, pots: Iterable[Pot]) -> list[Pot]:
        def key(pot: Pot) -> tuple[Any, ...]:
            own = pot in past.pots
            return (not own, not own and pot.begins is None, pot.order)

        return sorted(pots, key=key)

    def _give_back(self, past: Past, amounts: Mapping[str, int]) -> None:
        """The way of taking back, backwards."""
        for unit, amount in amounts.items():
            past.undone[unit] -= amount
            self.lifetime += amount if unit == POINTS else 0
            written_off = min(amount, past.written_off[unit])
            past.written_off[unit] -= written_off
            if unit == GROWTH:
                self.growth[past.day] += amount - written_off
            else:
                self._give_points_back(past, amount - written_off)

    def _give_points_back(self, past: Past, amount: int) -> None:
        debt = min(amount, self.owed, past.debt)
        self.owed -= debt
        past.debt -= debt
        amount -= debt
        order = self._order_of_taking(past, past.taken)
        parts = [(pot, past.taken[pot]) for pot in reversed(order)]
        expired = min(past.expired, max(0, amount - past.taken.total()))
        past.expired -= expired
        for pot, part in _split(parts, amount - expired)[0]:
            past.taken[pot] -= part
        self._bring_back(parts, amount - expired)
        for pot in [pot for pot in past.pots if pot.ends <= self.now][:1]:
            pot.left += expired

    def _return(self, past: Past, unit: str, amount: int) -> None:
        """Gives back what was taken, what ends last first."""
        returned = past.undone[unit]
        past.undone[unit] += amount
        if unit == GROWTH:
            self.growth[past.day] += amount
            return
        _, rest = _split(past.uses[::-1], returned)
        self._bring_back(rest, amount)

    # --- between members ------------------------------------------------------------------------------

    def _send(self, command: Send) -> Past | Effect:
        if command.to_member_id == command.member_id:
            raise Refused(TransferToSelf)
        if not self.terms.sends:
            raise Refused(TransfersNotAllowed)
        day = day_of(self.now)
        if self.used["sent", day] + command.amount > self.terms.sends:
            raise Refused(TransferLimit)
        uses = self._spend(command.amount)
        self.used["sent", day] += command.amount
        parts = tuple((amount, pot.ends) for pot, amount in uses)
        self.announced.append(("TransferSent", self.transaction_id, command.to_member_id, parts))
        return self._spent("SEND", uses)

    def _receive(self, command: Receive) -> Past | Effect:
        pots = [self._pot(ends or FOREVER, amount) for ends, amount in command.parts]
        self._pay([(pot, pot.left) for pot in pots if pot.ends > self.now])
        return self._no_more()

    def _take_sent_back(self, command: TakeBack) -> Past | Effect:
        self._undo(self.pasts[command.transfer_id], {})
        self.announced.append(("TransferReturned", command.transfer_id))
        return self._no_more()

    # --- what is told, and tiers ----------------------------------------------------------------------

    def _learn(self, command: Learn) -> Past | Effect:
        self._forget()
        before = dict(self.facts)
        for about, fact in command.facts.items():
            told = Told((fact.epoch, fact.version), fact.holds_until, fact.begun, fact.holds_from)
            self.facts[about] = told.and_(self.facts.get(about, told))
        if command.source is not None and command.source.id not in self.activities:
            return self._earn_activity(command.source)
        return Effect.NOTED if self.facts != before else Effect.NOTHING

    def _forget(self) -> None:
        """What ended ninety days ago, and what was taken back before it was given as long ago."""
        since = self.now - timedelta(days=90)
        self.facts = {a: f for a, f in self.facts.items() if f.until is None or f.until > since}
        self.never = {request: at for request, at in self.never.items() if at > since}

    def _has_card(self, at: datetime) -> bool:
        """Whether the member has a card that was not frozen since."""
        self._forget()
        card, rest = (self.facts.get(about) for about in (CARD_FACT, REST_FACT))
        if card is None or not card.holds(at):
            return False
        return rest is None or not rest.holds(at) or rest.begun <= card.begun

    def _growth_since(self, first: date) -> int:
        return min(self.growth.total(), sum(n for day, n in self.growth.items() if day >= first))

    def _promote(self) -> None:
        terms, today = self.terms, day_of(self.now)
        growth = self._growth_since(terms.window(today))
        if terms.ladder and rank(reached(growth)) > rank(self.tier):
            rolling = today + timedelta(days=TIER_DAYS - 1)
            last = rolling if terms.ladder == "rolling" else date(today.year + 1, 12, 31)
            self._change_tier("PROMOTED", growth, terms.held_until(last))

    def _end_tier(self, moment: datetime) -> None:
        terms = self.terms
        last = day_of(moment) - timedelta(days=1 + terms.tier_grace)
        growth = self._growth_since(terms.window(last)) if terms.ladder else 0
        rolling = last + timedelta(days=TIER_DAYS)
        following = rolling if terms.ladder == "rolling" else date(last.year + 1, 12, 31)
        kept = reached(growth) and rank(reached(growth)) >= rank(self.tier)
        self._change_tier("RENEWED" if kept else "DEMOTED", growth, terms.held_until(following))

    def _change_tier(self, reason: str, growth: int, until: datetime) -> None:
        before, self.tier = self.tier, reached(growth)
        self.tier_until = until if self.tier else None
        self.announced.append(("TierChanged", before, self.tier, reason, growth, self.tier_until))


def _same(first: tuple[bytes, str], body: bytes, otherwise: type[ServiceError]) -> str:
    if first[0] != body:
        raise Refused(otherwise)
    return first[1]


def _split(parts: Parts, amount: int) -> tuple[Parts, Parts]:
    """The first so many points, and the rest."""
    first: Parts = []
    rest: Parts = []
    for pot, part in parts:
        some = min(part, amount)
        amount -= some
        first += [(pot, some)] if some else []
        rest += [(pot, part - some)] if part > some else []
    return first, rest


_VERBS: Mapping[type[Command], Callable[[Book, Any], Past | Effect]] = {
    Earn: Book._earn,
    EarnFixed: Book._earn_fixed,
    Redeem: Book._redeem,
    Adjust: Book._adjust,
    PlaceHold: Book._hold,
    CloseHold: Book._close_hold,
    RefundOrder: Book._refund,
    Reverse: Book._reverse,
    Send: Book._send,
    Receive: Book._receive,
    TakeBack: Book._take_sent_back,
    Learn: Book._learn,
    Settle: lambda _book, _command: Effect.NOTHING,
}
