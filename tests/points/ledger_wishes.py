"""What Hypothesis may wish for, and the commands that it comes to: they name what happened before."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from hypothesis import strategies as st
from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.orders.v1.orders_pb2 import Order, OrderRefunded, Refund
from loyalty.points.v1.points_events_pb2 import TransferRefused, TransferSent

from services.chassis.consumer import Delivery
from services.chassis.inbox import InboxKey
from services.points import subscriptions
from services.points.commands import (
    Adjust,
    CloseHold,
    Command,
    Earn,
    EarnFixed,
    Learn,
    PlaceHold,
    Redeem,
    RefundOrder,
    Reverse,
    Send,
    Settle,
)
from services.points.domain.ledger import Fact, Unit
from services.points.rules import Source, read_activity, read_order, read_refund
from tests.points.ledger_model import CARD_FACT, REST_FACT, SMALL_ORDER, Book, day_of, midnight

Asked = TypeVar("Asked", bound=Command)
Wish = tuple[Any, ...]

WHO = st.integers(0, 1)
WHICH = st.integers(0, 999)
YES = st.booleans()
SELDOM = st.sampled_from([False] * 9 + [True])
HOW = st.sampled_from(["admin", "call", "event"])
AGES = st.sampled_from([0, 0, 0, 0, 0, 1, 5, 20, 20, 27, 31, 45, -1])  # days before now
AMOUNTS = st.one_of(st.integers(1, 60), st.sampled_from(["all", "all", "half", "more"]))
SHARES = st.one_of(st.just(1000), st.integers(1, 1100))  # in thousandths
UNITS = st.sampled_from(Unit)
PARTS = st.one_of(st.none(), st.none(), st.tuples(UNITS, SHARES))
CAPTURES = st.one_of(st.none(), st.just(0), SHARES, SHARES)
FACTS = st.sampled_from(["card", "card", "card ended", "frozen", "group"])
PRICES = st.one_of(
    st.integers(0, 1_000), st.integers(2_500, 4_000), st.sampled_from([0, 1, 99, 1_590, 2_190, 6_050])
)
LINES = st.lists(st.tuples(st.sampled_from(["coffee", "tea", "cake"]), PRICES), min_size=1, max_size=3)
BASKETS = st.tuples(LINES, st.sampled_from([0, 0, 500, 333]))
GIVEN_BACK = st.one_of(
    st.tuples(st.just("amount"), SHARES),
    st.tuples(st.just("all but"), st.sampled_from([0, 1, 99, SMALL_ORDER - 1, SMALL_ORDER])),
    st.tuples(st.just("lines"), st.lists(SHARES, min_size=1, max_size=3)),
    st.sampled_from([("all",), ("all",), ("all",), ("no such line",)]),
)
DEADLINES = st.one_of(
    st.tuples(st.just("hours"), st.integers(1, 720)),
    st.tuples(st.just("midnight"), st.integers(1, 29)),
    st.tuples(st.just("moment"), WHICH),
    st.tuples(st.just("moment"), WHICH),
    st.tuples(st.just("hours"), st.sampled_from([1, 6, 24, 48, 240, 720, 721, 0])),
)


def _wish(kind: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Wish]:
    return st.tuples(st.just(kind), *parts)


BUY = _wish("buy", WHO, BASKETS, AGES, HOW)
GAIN = st.one_of(
    BUY,
    BUY,
    _wish("gift", WHO, UNITS, st.integers(1, 60), AGES, HOW),
    _wish("adjust", WHO, UNITS, st.integers(1, 60), AGES),
    _wish("early", WHO, BASKETS, AGES, st.lists(st.tuples(GIVEN_BACK, AGES), min_size=1, max_size=3), YES),
    _wish("learn", WHO, FACTS, AGES, st.sampled_from([0, 0, 25]), YES),
)
SPEND = st.one_of(
    _wish("redeem", WHO, AMOUNTS),
    _wish("redeem", WHO, AMOUNTS),
    _wish("adjust", WHO, UNITS, st.integers(-60, -1), AGES),
    _wish("hold", WHO, AMOUNTS, DEADLINES, HOW),
    _wish("hold", WHO, AMOUNTS, DEADLINES, HOW),
    _wish("overspend", WHO, st.integers(1, 30), st.none() | BASKETS),
    _wish("send", WHO, st.one_of(st.integers(1, 15), AMOUNTS), SELDOM),
)
FOLLOW = st.one_of(
    _wish("close", WHICH, CAPTURES),
    _wish("close", WHICH, CAPTURES),
    _wish("refund", WHICH, GIVEN_BACK, AGES, HOW),
    _wish("refund", WHICH, GIVEN_BACK, AGES, HOW),
    _wish("refund", WHICH, GIVEN_BACK, AGES, HOW),
    _wish("reverse", WHICH, PARTS, SELDOM),
    _wish("reverse", WHICH, PARTS, SELDOM),
    _wish("refund_to_and_fro", WHICH, st.integers(0, 900), HOW),
    _wish("deliver", WHICH, YES),
    _wish("deliver", WHICH, YES),
    _wish("arrive", WHICH),
    _wish("repeat", WHICH, st.sampled_from(["again", "redelivered", "other payload", "anew", "other body"])),
)


def payload(*parts: object) -> bytes:
    """A hash of what is asked."""
    return hashlib.sha256(repr(parts).encode()).digest()


class Clerk:
    """Turns wishes into commands. `made` are those that made a transaction, `asked` those of this batch."""

    def __init__(self, members: Sequence[str], now: datetime) -> None:
        self.members = members
        self.now = now
        self.books: Mapping[str, Book] = {}
        self.made: list[tuple[Command, str]] = []
        self.given: list[Command] = []
        self.asked: list[Command] = []
        self.coming: list[Earn] = []
        self.sent: list[Delivery] = []
        self.decided: dict[str, Command] = {}
        self.version = 100
        self._numbers = itertools.count(1)

    def commands(self, wishes: Sequence[Wish], books: Mapping[str, Book]) -> list[Command]:
        """The commands of a batch, fewer than the wishes where there is nothing yet to follow up."""
        self.books, self.asked = books, []
        for kind, *parts in wishes:
            make: Callable[..., Iterator[Command]] = getattr(self, f"_{kind}")
            self.asked += make(*parts)
        self.given += self.asked
        return self.asked

    def _fresh(self, kind: str) -> str:
        """A name that nobody used in this sequence; the same one when it is played again."""
        return f"{kind}-{next(self._numbers):06}"

    def _common(self, who: int | str, how: str = "admin", age: int = 0) -> dict[str, Any]:
        member = who if isinstance(who, str) else self.members[who]
        request = self._fresh("request")
        key = InboxKey(member, "points", "elsewhere", self._fresh("event"), "ELSEWHERE", 1)
        return {
            "member_id": member,
            "request_id": request,
            "payload_hash": payload(request),
            "actor": "a test",
            "occur_time": self.now - timedelta(days=age) if age else None,
            "may_backdate": how != "call",
            "event": key if how == "event" else None,
        }

    def _amount(self, who: int, wanted: int | str) -> int:
        if isinstance(wanted, int):
            return wanted
        available = self.books[self.members[who]].available
        return max(1, {"all": available, "half": available // 2, "more": available + 1}[wanted])

    def _known(self, *kinds: type[Command]) -> list[tuple[Command, str]]:
        """Commands that made a transaction, or may yet in this batch."""
        known = [*self.made, *((command, "") for command in self.asked)]
        return [(command, made) for command, made in known if isinstance(command, kinds)]

    # --- gains ----------------------------------------------------------------------------------------

    def _bought(self, basket: tuple[list[tuple[str, int]], int], age: int) -> Source:
        lines, fee = basket
        order = Order(order_id=self._fresh("order"), currency_code="CNY", delivery_fee_minor=fee)
        for number, (category, amount) in enumerate(lines):
            order.lines.add(line_id=str(number), category=category, quantity=1, amount_minor=amount)
        order.total_minor = fee + sum(amount for _, amount in lines)
        order.paid_time.FromDatetime(self.now - timedelta(days=age))
        return read_order(order)

    def _buy(self, who: int, basket: Any, age: int, how: str) -> Iterator[Command]:
        yield Earn(**self._common(who, how), source=self._bought(basket, age))

    def _gift(self, who: int, unit: Unit, amount: int, age: int, how: str) -> Iterator[Command]:
        reward = self._fresh("reward") if how == "event" else ""
        common = self._common(who, how, age)
        yield EarnFixed(**common, unit=unit, amount=amount, reason="a gift", reward_id=reward)

    def _adjust(self, who: int, unit: Unit, amount: int, age: int) -> Iterator[Command]:
        yield Adjust(**self._common(who, age=age), unit=unit, amount=amount, reason="a mistake")

    def _early(self, who: int, basket: Any, age: int, refunds: Any, now: bool) -> Iterator[Command]:
        """Refunds that come before their order, which comes at once or later."""
        order = Earn(**self._common(who, "event"), source=self._bought(basket, age))
        for given_back, refund_age in refunds:
            refund = self._refund_of(order.source, given_back, refund_age)
            if refund is not None:
                yield self._refund_by_event(order.member_id, refund)
        if now:
            yield order
        else:
            self.coming.append(order)

    def _arrive(self, which: int) -> Iterator[Command]:
        if self.coming:
            yield self.coming.pop(which % len(self.coming))

    def _learn(self, who: int, told: str, age: int, late: int, happened: bool) -> Iterator[Command]:
        """What other services tell, sometimes after what came later."""
        self.version += 10
        since, version = self.now - timedelta(days=max(0, age)), (1, self.version - late)
        until = None if age == 1 else self.now + timedelta(days=20)
        about, fact = {
            "card": (CARD_FACT, Fact("card.plus", "2", since, until, *version, version, REST_FACT)),
            "card ended": (CARD_FACT, Fact("", "", since, since, *version)),
            "frozen": (REST_FACT, Fact("", "frozen", since, None, *version, version)),
            "group": ("scheme/1", Fact("group.1", "tea", since, None, *version, version)),
        }[told]
        source = None
        if happened:
            activity = Activity(activity_id=self._fresh("~group_joined"), kind="group_joined")
            activity.occur_time.FromDatetime(since)
            source = read_activity(activity)
        yield Learn(**self._common(who, "event"), facts={about: fact}, source=source)

    # --- spending -------------------------------------------------------------------------------------

    def _redeem(self, who: int, amount: int | str) -> Iterator[Command]:
        yield Redeem(**self._common(who), amount=self._amount(who, amount), reference_id="a meal")

    def _overspend(self, who: int, amount: int, basket: Any) -> Iterator[Command]:
        """Spends everything with what was given by mistake and is then taken back.

        With a basket half the gift is set aside until what is bought now may be usable: at one moment.
        """
        (gift,) = self._adjust(who, Unit.POINTS, 2 * amount, 0)
        yield gift
        spent = self.books[self.members[who]].available + 2 * amount
        if basket is not None:
            yield from self._hold(who, amount, ("midnight", 3), "call")
            spent -= amount
        yield Redeem(**self._common(who), amount=spent, reference_id="a feast")
        yield Reverse(**self._common(who, "event"), made_by=gift.request_id)
        if basket is not None:
            yield from self._buy(who, basket, 0, "call")

    def _hold(self, who: int, amount: int | str, until: tuple[str, int], how: str) -> Iterator[Command]:
        deadline = self._deadline(who, until)
        valid = self.now < deadline <= self.now + timedelta(days=30)
        if valid or self.books[self.members[who]].pots:  # of a stranger it is only said that there is nothing
            common = self._common(who, how)
            amount = self._amount(who, amount)
            yield PlaceHold(**common, amount=amount, reference_id="a card", expire_time=deadline)

    def _deadline(self, who: int, until: tuple[str, int]) -> datetime:
        match until:
            case ["hours", hours]:
                return self.now + timedelta(hours=hours)
            case ["midnight", days]:
                return midnight(day_of(self.now), days)
        near = sorted(m for m in self.books[self.members[who]].moments() if m > self.now)[:9]
        return near[until[1] % len(near)] if near else self.now + timedelta(days=1)

    def _send(self, who: int, amount: int | str, to_self: bool) -> Iterator[Command]:
        if self.books[self.members[who]].pots:
            to = self.members[who if to_self else 1 - who]
            yield Send(**self._common(who), to_member_id=to, amount=self._amount(who, amount))

    # --- what follows from before ---------------------------------------------------------------------

    def _close(self, which: int, share: int | None) -> Iterator[Command]:
        placed_before = [(command, made) for command, made in self.made if isinstance(command, PlaceHold)]
        holds = placed_before if which % 4 and placed_before else self._known(PlaceHold)
        if not holds:
            return
        placed, made = holds[-1 - which % len(holds)]
        assert isinstance(placed, PlaceHold)
        capture = -(-placed.amount * share // 1000) if share else share
        if made:
            hold = made.replace("txn_", "hold_")
            yield CloseHold(**self._common(placed.member_id), hold_id=hold, capture=capture)
        else:
            common = self._common(placed.member_id, "event")
            yield CloseHold(**common, placed_by=placed.request_id, capture=capture)

    def _refund(self, which: int, given_back: Any, age: int, how: str) -> Iterator[Command]:
        order = self._order(which)
        refund = self._refund_of(order.source, given_back, age) if order is not None else None
        if order is not None and refund is not None:
            yield self._refund_command(order.member_id, refund, how)

    def _refund_to_and_fro(self, which: int, more: int, how: str) -> Iterator[Command]:
        """Down to what is just not small, and then below: what remains is worth more after the second."""
        order = self._order(which)
        if order is None or not isinstance(order.source.message, Order):
            return
        first = self._unrefunded(order.source.message) - SMALL_ORDER - more
        for amount in (first, more + 1) if first > 0 else ():
            refund = Refund(order_id=order.source.id, refund_id=self._fresh("refund"), amount_minor=amount)
            refund.refund_time.FromDatetime(self.now)
            yield self._refund_command(order.member_id, refund, how)

    def _order(self, which: int) -> Earn | None:
        known = [command for command, _ in self._known(Earn) if isinstance(command, Earn)]
        return known[-1 - which % len(known)] if known else None

    def _refund_command(self, member: str, refund: Refund, how: str) -> Command:
        if how == "event":
            return self._refund_by_event(member, refund)
        return RefundOrder(**{**self._common(member, how), **read_refund(refund)})

    def _refund_of(self, source: Source, given_back: Any, age: int) -> Refund | None:
        order = source.message
        assert isinstance(order, Order)
        refund = Refund(order_id=order.order_id, refund_id=self._fresh("refund"))
        refund.refund_time.FromDatetime(self.now - timedelta(days=age))
        match given_back:
            case ["amount", share]:
                refund.amount_minor = max(1, order.total_minor * share // 1000)
            case ["all but", rest]:
                refund.amount_minor = max(1, self._unrefunded(order) - rest)
            case ["lines", shares]:
                for line, share in zip(order.lines, shares, strict=False):
                    amount = line.amount_minor * share // 1000
                    if amount:
                        refund.lines.lines.add(line_id=line.line_id, amount_minor=amount)
                return refund if refund.lines.lines else None
            case ["all"]:
                refund.all = True
            case _:
                refund.lines.lines.add(line_id="nine", amount_minor=1)
        return refund

    def _unrefunded(self, order: Order) -> int:
        """What was paid and not given back."""
        sales = [book.sales[order.order_id] for book in self.books.values() if order.order_id in book.sales]
        return sales[0].unrefunded if sales else order.total_minor

    def _refund_by_event(self, member: str, refund: Refund) -> Command:
        return _read(self._delivery(OrderRefunded(member_id=member, refund=refund)))

    def _reverse(self, which: int, part: tuple[Unit, int] | None, any_kind: bool) -> Iterator[Command]:
        known = self.made if any_kind else self._known(Earn, EarnFixed, Adjust, Redeem, CloseHold, Learn)
        if not known:
            return
        command, made = known[-1 - which % len(known)]
        amounts: dict[Unit, int] = {}
        if part is not None:
            unit, share = part
            past = self.books[command.member_id].pasts.get(made)
            amounts = {unit: max(1, abs(past.got.get(unit, 0) if past else 20) * share // 1000)}
        if made:
            yield Reverse(**self._common(command.member_id), transaction_id=made, amounts=amounts)
        else:
            common = self._common(command.member_id, "event")
            yield Reverse(**common, made_by=command.request_id, amounts=amounts)

    def _deliver(self, which: int, arrives: bool) -> Iterator[Command]:
        """Sent points arrive, or come back; whatever was decided may come again."""
        if not self.sent:
            return
        delivery = self.sent[-1 - which % len(self.sent)]
        sent = TransferSent.FromString(delivery.body)
        if sent.transfer_id not in self.decided:
            refused = TransferRefused(
                member_id=sent.to_member_id, transfer_id=sent.transfer_id, from_member_id=sent.member_id
            )
            self.decided[sent.transfer_id] = _read(delivery if arrives else self._delivery(refused))
        yield self.decided[sent.transfer_id]

    def _repeat(self, which: int, kind: str) -> Iterator[Command]:
        """A command like an earlier one, whether that was accepted or not."""
        known = [*self.given, *self.asked]
        if not known:
            return
        first = known[-1 - which % len(known)]
        match kind:
            case "again":
                yield first
            case "redelivered" if first.event is not None:
                yield replace(first, event=first.event._replace(event_id=self._fresh("event")))
            case "other payload":
                yield replace(first, payload_hash=payload(kind), event=None)
            case "anew" | "other body" if isinstance(first, Earn | RefundOrder):
                yield replace(_changed(first, kind), request_id=self._fresh("request"), event=None)

    def _delivery(self, message: Message) -> Delivery:
        """An event as a consumer gets it."""
        name, event_id = message.DESCRIPTOR.full_name, self._fresh("event")
        return Delivery(name, message.SerializeToString(), "elsewhere", event_id, "", "ELSEWHERE", 1)

    def settle(self, who: int) -> Command:
        """What the sweep asks."""
        return Settle(**self._common(who) | {"payload_hash": b""})


def _changed(first: Earn | RefundOrder, kind: str) -> Command:
    if kind == "anew":
        return first
    if isinstance(first, RefundOrder):
        return replace(first, body_hash=payload(kind))
    order = Order.FromString(first.source.body)
    order.channel = "another"
    return replace(first, source=read_order(order))


def _read(delivery: Delivery) -> Command:
    command = subscriptions.read(delivery)
    assert command is not None
    return command
