"""The books' proof: everything is added up again, over the whole store, while the service takes writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards import events
from services.cards import tables as t
from services.cards.domain import books
from services.cards.domain.books import Finding, KeptWindow, Money
from services.cards.domain.cards import Ending, Segment
from services.cards.domain.payments import OrderStatus, RefundReason
from services.cards.domain.renewals import NOTICE_DAYS, RenewalStatus
from services.cards.domain.wallet import KeptCard, KeptOrder, KeptPayment
from services.cards.store import rows
from services.chassis.audit import Findings, Progress, Report, Rows, by_member, carried, every_row, snapshot
from services.chassis.database import Connection, Row, Statement
from services.chassis.ids import made_at
from services.chassis.statements import word

CLOCK_CHANGE = timedelta(hours=1)  # by which five local days may be shorter

CHECKS = {
    "members": "every row has its member, and can be read",
    "periods": "periods of a card never overlap",
    "orders": "every paid order has its one period, and every period comes from an order, a gift or a reward",
    "windows": "uses are within their quotas, and what live redemptions add up to",
    "savings": "what a period saved is what its live redemptions saved",
    "money": "payments add up to periods, credits, refunds and what is due",
    "points": "points paid add up to periods and credits",
    "payments": "a payment is claimed by its member alone, and pays its order or is due",
    "gifts": "a gift is claimed once, after it was paid, or paid back",
    "places": "places under a sales cap are within it, and paid orders have theirs",
    "renewals": "what was charged for a renewal had been announced, five days before",
    "rewards": "every reward that was given has its period",
    "events": "events about each thing are numbered without a gap",
}

Entity = tuple[str, ...]
"""What an event counts in its version: the kind of thing, and its name."""


@dataclass
class _Books:
    """One member's rows."""

    member: Row
    cards: list[Row]
    segments: list[Row]
    orders: list[Row]
    payments: list[Row]
    uses: list[Row]
    windows: list[Row]
    renewals: list[Row]
    rewards: list[Row]
    outbox: list[Row]


async def audit(url: str, progress: Progress | None = None, *, stream_url: str | None = None) -> Report:
    """Audits a cards database, and with `stream_url` the stream against it.

    `progress` hears the number of members done. Raises DatabaseUnavailable.
    """
    async with snapshot(url) as connection:
        caps = await _caps(connection)
        # What this snapshot says was sent must be in the stream by now.
        bodies = await carried(stream_url, events.STREAM, events.SUBJECTS[0]) if stream_url else None
        audit = _Audit(caps, bodies)
        members = by_member(connection, Rows(t.members), _ROWS, stray=audit.stray, progress=progress)
        async for member, found in members:
            audit.check(_Books(member, **found))
        between = (
            *((_STRAYS, audit.stray_period), (_CLAIMS, audit.claim)),
            *((_GIFTS, audit.gift), (_PLACES, audit.place)),
        )
        await every_row(connection, between)
    return audit.report()


async def _caps(connection: Connection) -> dict[tuple[str, int], int]:
    """How many may be sold in a window, by product and version; 0 where nothing caps it."""
    found = await connection.fetch(f"SELECT code, version, body FROM {t.products.name}")  # noqa: S608 - ours
    return {
        (row["code"], row["version"]): pb.Product.FromString(row["body"]).sales_cap.limit for row in found
    }


# --- what is read -------------------------------------------------------------------------------------

_o = t.outbox.c
# How a member's rows are read, by what `_Books` calls them.
_ROWS = {
    "cards": Rows(t.cards),
    "segments": Rows(t.segments),
    "orders": Rows(t.orders),
    "payments": Rows(t.payments),
    "uses": Rows(t.redemptions),
    "windows": Rows(t.quota_windows),
    "renewals": Rows(t.renewals),
    "rewards": Rows(t.rewards),
    "outbox": Rows(
        t.outbox,
        [_o.erased, _o.subject, _o.event_id, _o.body, _o.create_time, _o.sent_at],
        [_o.position],
        member="entity_key",
    ),
}


def _strays() -> Statement:
    """Periods that come from nothing: no paid order of their card, no gift to their member, no reward."""
    s, o, r, g = t.segments.c, t.orders.c, t.rewards.c, t.gifts.c
    order = sa.select(o.order_id).where(
        *(o[name] == s[name] for name in ("bucket", "member_id", "card_id")),
        *(o.order_id == s.source_id, o.status == word(OrderStatus.PAID), sa.not_(o.gift)),
    )
    reward = sa.select(r.reward_id).where(
        *(r[name] == s[name] for name in ("bucket", "member_id", "card_id", "segment_id")),
        r.reward_id == s.source_id,
    )
    gift = sa.select(g.order_id).where(g.order_id == s.source_id, g.claimed_by == s.member_id)
    return Statement(
        sa.select(s.member_id, s.segment_id, s.source_id).where(
            ~order.exists(), ~reward.exists(), ~gift.exists()
        )
    )


def _claims() -> Statement:
    """Payments whose claim is another's, or missing, and claims without their payment."""
    p, c = t.payments.c, t.payment_claims.c
    same = sa.and_(p.channel == c.channel, p.payment_id == c.payment_id, p.member_id == c.member_id)
    either = [
        sa.func.coalesce(p[name], c[name]).label(name) for name in ("channel", "payment_id", "member_id")
    ]
    return Statement(
        sa.select(*either, p.member_id.is_(None).label("unpaid"))
        .select_from(sa.join(t.payments, t.payment_claims, same, full=True))
        .where(sa.or_(p.member_id.is_(None), c.member_id.is_(None)))
    )


def _gifts() -> Statement:
    """Gifts and the orders of gifts, with the members to whom they gave a period."""
    bought = sa.select(t.orders).where(t.orders.c.gift).subquery("bought").c
    g, s = t.gifts.c, t.segments.c
    order_id = sa.func.coalesce(bought.order_id, g.order_id)
    gift = (order_id.label("order_id"), bought.member_id, bought.status, g.giver_id, g.paid, g.refunded)
    given = sa.func.array_remove(sa.func.array_agg(s.member_id), sa.null()).label("given")
    joined = sa.join(bought.order_id.table, t.gifts, bought.order_id == g.order_id, full=True)
    joined = joined.join(t.segments, s.source_id == order_id, isouter=True)
    columns = (*gift, g.claimed_by)
    return Statement(sa.select(*columns, given).select_from(joined).group_by(*columns))


def _places() -> Statement:
    """Places and the orders that have them, and paid orders that have none."""
    o, s = t.orders.c, t.sales_slots
    firm = sa.and_(o.capped, o.status.in_([word(OrderStatus.PAID), word(OrderStatus.SETTLING)]))
    columns = [o[name] for name in ("member_id", "status", "product_code", "product_version", "window_key")]
    return Statement(
        sa.select(sa.func.coalesce(o.order_id, s.c.order_id).label("order_id"), *columns)
        .add_columns(
            s.c.number, s.c.firm, s.c.product_code.label("of_product"), s.c.window_key.label("of_window")
        )
        .select_from(sa.join(t.orders, s, o.order_id == s.c.order_id, full=True))
        .where(sa.or_(firm, s.c.number.is_not(None)))
    )


_STRAYS, _CLAIMS, _GIFTS, _PLACES = _strays(), _claims(), _gifts(), _places()


# --- what must be so ----------------------------------------------------------------------------------


class _Audit:
    def __init__(self, caps: Mapping[tuple[str, int], int], bodies: Mapping[str, bytes] | None) -> None:
        self._caps = caps
        self._found = Findings(CHECKS, bodies)
        self._totals = dict.fromkeys(("members", "cards", "periods", "orders", "payments", "redemptions"), 0)

    def report(self) -> Report:
        return self._found.report(self._totals)

    def check(self, found: _Books) -> None:
        """Checks everything about one member."""
        who = found.member["member_id"]
        self._found.seen["members"] += 1
        with self._found.reading(who):
            self._check(_Member(who, found))

    def _check(self, member: _Member) -> None:
        self._periods(member)
        self._orders(member)
        self._uses(member)
        self._money(member)
        self._payments(member)
        self._renewals(member)
        self._rewards(member)
        self._events(member)
        self._totals["members"] += 1
        for name in ("cards", "orders", "payments"):
            self._totals[name] += len(getattr(member, name))
        self._totals["periods"] += len(member.segments)
        self._totals["redemptions"] += len(member.uses)

    def stray(self, table: str, member_id: str) -> None:
        """Notes a row whose member is not there."""
        self._found.expect("members", False, member_id, f"is in {table}, and not among the members")

    def _report(self, check: str, who: str, findings: Iterable[Finding]) -> None:
        for found in findings:
            what = f"{found.rule}: {found.subject}: expected {found.expected}, found {found.found}"
            self._found.expect(check, False, who, what)

    # --- a member -------------------------------------------------------------------------------------

    def _periods(self, member: _Member) -> None:
        self._found.seen["periods"] += len(member.segments)
        for card in member.cards.values():
            self._report("periods", member.who, books.overlapping(card.card_id, card.card.segments))
        for row in member.books.segments:
            known = row["card_id"] in member.cards
            self._found.expect("periods", known, member.who, f"{row['segment_id']} is of no card")

    def _orders(self, member: _Member) -> None:
        self._found.seen["orders"] += len(member.orders)
        for order_id, kept in member.orders.items():
            if kept.gift:
                continue
            paid = kept.order.status is OrderStatus.PAID
            periods = member.periods_from(order_id)
            whole = len(periods) == paid
            self._found.expect("orders", whole, member.who, f"{order_id} gave {len(periods)} periods")
            for period in periods:
                cost = (period.paid_points if kept.order.by_points else period.paid_minor) - kept.credit
                due = kept.order.amount_points if kept.order.by_points else kept.order.amount_minor
                self._found.expect(
                    "orders", cost == due, member.who, f"{period.segment_id} cost {cost}, its order {due}"
                )

    def _uses(self, member: _Member) -> None:
        self._found.seen["windows"] += len(member.books.windows)
        self._found.seen["savings"] += len(member.uses)
        windows = {
            (row["card_id"], row["benefit_code"], row["window_key"]): KeptWindow(row["used"], row["quota"])
            for row in member.books.windows
        }
        self._report("windows", member.who, books.windows(windows, member.uses))
        for card in member.cards.values():
            uses = [use for use in member.uses if use.card_id == card.card_id]
            self._report("savings", member.who, books.savings(card.card_id, card.saved, uses))
        for use in member.uses:
            known = use.card_id in member.cards
            self._found.expect("savings", known, member.who, f"a use is of no card: {use.card_id}")

    def _money(self, member: _Member) -> None:
        paid = [kept for kept in member.orders.values() if kept.order.status is OrderStatus.PAID]
        for currency in sorted({p.payment.currency_code for p in member.payments}):
            self._found.seen["money"] += 1
            in_it = [kept for kept in paid if kept.order.currency_code == currency]
            payments = [p for p in member.payments if p.payment.currency_code == currency]
            back = sum(p.due for p in payments if p.reason is RefundReason.CARD_REFUNDED)
            periods = sum(s.paid_minor for kept in in_it for s in member.periods_from(kept.order_id))
            gifts = sum(kept.order.amount_minor for kept in in_it if kept.gift)
            account = Money(
                received=sum(p.payment.amount_minor for p in payments),
                segments=periods + gifts - back,
                credits=-sum(kept.credit for kept in in_it),
                refunds=back,
                refund_due=sum(p.due for p in payments if not p.applied),
            )
            self._report("money", member.who, books.money(currency, account))
        points = [kept for kept in paid if kept.order.by_points and not kept.gift]
        self._found.seen["points"] += len(points)
        cost = sum(kept.order.amount_points + kept.credit for kept in points)
        held = sum(segment.paid_points for segment in member.segments)
        self._found.expect("points", cost == held, member.who, f"orders took {cost}, periods cost {held}")

    def _payments(self, member: _Member) -> None:
        self._found.seen["payments"] += len(member.payments)
        paying = [p.order_id for p in member.payments if p.applied]
        for order_id, kept in member.orders.items():
            once = kept.order.status is OrderStatus.PAID and kept.order.amount_minor > 0
            number = paying.count(order_id)
            self._found.expect("payments", number == once, member.who, f"{number} payments pay {order_id}")
        for payment in member.payments:
            fault = self._fault(member, payment)
            self._found.expect("payments", not fault, member.who, f"{payment.payment_id} {fault}")

    @staticmethod
    def _fault(member: _Member, payment: KeptPayment) -> str:
        """What is wrong with a payment; empty where nothing is."""
        told, kept = payment.payment, member.orders.get(payment.order_id)
        if not payment.applied:
            return "" if payment.due == told.amount_minor else f"was not applied, and {payment.due} is due"
        if kept is None or kept.order.status is not OrderStatus.PAID:
            return f"pays {payment.order_id}, which is not paid"
        if (told.amount_minor, told.currency_code) != (kept.order.amount_minor, kept.order.currency_code):
            return f"pays {kept.order.amount_minor} with {told.amount_minor}"
        returned = kept.gift or any(one.ending is Ending.REFUNDED for one in member.periods_of(kept.card_id))
        return (
            "" if returned or not payment.due else f"has {payment.due} due of a card that was not given back"
        )

    def _renewals(self, member: _Member) -> None:
        self._found.seen["renewals"] += len(member.books.renewals)
        for row in member.books.renewals:
            if row["outcome"] != RenewalStatus.CHARGED:
                continue
            name, told = row["renewal_id"], row["notice_time"]
            self._found.expect("renewals", told is not None, member.who, f"{name} was not announced")
            charges = [p.payment for p in member.payments if p.applied and p.order_id == row["order_id"]]
            self._found.expect(
                "renewals", len(charges) == 1, member.who, f"{name} has {len(charges)} charges"
            )
            for charge in charges:
                opens = (told or charge.paid) + timedelta(days=NOTICE_DAYS) - CLOCK_CHANGE
                in_time = max(opens, row["charge_time"]) <= charge.paid < row["charge_until"]
                self._found.expect("renewals", in_time, member.who, f"{name} was charged at {charge.paid}")
                as_told = charge.amount_minor <= row["amount_minor"]
                self._found.expect("renewals", as_told, member.who, f"{name} took {charge.amount_minor}")

    def _rewards(self, member: _Member) -> None:
        self._found.seen["rewards"] += len(member.books.rewards)
        for row in member.books.rewards:
            given = [one.segment_id for one in member.periods_from(row["reward_id"])]
            expected = [row["segment_id"]] if row["segment_id"] else []
            self._found.expect("rewards", given == expected, member.who, f"{row['reward_id']} gave {given}")

    # --- events ---------------------------------------------------------------------------------------

    def _events(self, member: _Member) -> None:
        self._found.seen["events"] += len(member.books.outbox)
        kept = [row for row in member.books.outbox if row["create_time"] >= self._found.kept_since]
        told: defaultdict[Entity, list[int]] = defaultdict(list)
        for row in kept:
            if not row["erased"]:
                entity, version = _counted(row["subject"], row["body"])
                told[entity].append(version)
                self._found.sent(member.who, row)
        # Of whom some were erased, only those that are never erased can still be told apart.
        erased = {"card", "reward"} if any(row["erased"] for row in member.books.outbox) else set()
        for entity, (version, made) in member.versions().items():
            versions = told.pop(entity, [])
            if entity[0] not in erased:
                whole = self._found.unbroken(versions, version, made)
                what = f"{' '.join(entity)} is at version {version}, events say {versions}"
                self._found.expect("events", whole, member.who, what)
        for entity in told:
            self._found.expect("events", False, member.who, f"an event is about no {' '.join(entity)}")

    # --- between members ------------------------------------------------------------------------------

    def stray_period(self, row: Row) -> None:
        """A period that comes from nothing."""
        what = f"{row['segment_id']} does not come from {row['source_id'] or 'anything'}"
        self._found.expect("orders", False, row["member_id"], what)

    def claim(self, row: Row) -> None:
        """A payment that is not claimed by its member, or a claim without a payment."""
        what = "was claimed and never told" if row["unpaid"] else "is not claimed by this member"
        self._found.expect(
            "payments", False, row["member_id"], f"{row['channel']} {row['payment_id']} {what}"
        )

    def gift(self, row: Row) -> None:
        """A gift with its order."""
        self._found.seen["gifts"] += 1
        who, order_id = row["giver_id"] or row["member_id"], row["order_id"]
        same = row["giver_id"] == row["member_id"]
        self._found.expect("gifts", same, who, f"{order_id} is not both an order and a gift of this member")
        paid = row["paid"] == (row["status"] == OrderStatus.PAID)
        self._found.expect("gifts", paid, who, f"{order_id} is {row['status']}, its gift says otherwise")
        given = [row["claimed_by"]] if row["claimed_by"] else []
        self._found.expect("gifts", row["given"] == given, who, f"{order_id} gave to {row['given']}")
        once = not (row["refunded"] and given)
        self._found.expect("gifts", once, who, f"{order_id} was claimed and paid back")

    def place(self, row: Row) -> None:
        """A place with its order, or a paid order that should have one."""
        self._found.seen["places"] += 1
        who, order_id, number = row["member_id"] or "", row["order_id"], row["number"]
        if number is None:
            self._found.expect("places", False, who, f"{order_id} has no place")
            return
        status = row["status"]
        same = (row["product_code"], row["window_key"]) == (row["of_product"], row["of_window"])
        self._found.expect("places", same, who, f"{order_id} has a place of {row['of_product']}")
        cap = self._caps.get((row["of_product"], row["product_version"] or 0), 0)
        self._found.expect("places", number <= cap, who, f"{order_id} is number {number} of {cap}")
        firm = status in (OrderStatus.PAID, OrderStatus.SETTLING)
        fits = row["firm"] == firm and status != OrderStatus.CANCELLED
        self._found.expect("places", fits, who, f"{order_id} is {status}, and its place firm: {row['firm']}")


class _Member:
    """One member's records."""

    def __init__(self, who: str, found: _Books) -> None:
        self.who = who
        self.books = found
        segments: defaultdict[str, list[Row]] = defaultdict(list)
        for row in found.segments:
            segments[row["card_id"]].append(row)
        self.cards: dict[str, KeptCard] = {
            row["card_id"]: rows.to_card(row, segments[row["card_id"]]) for row in found.cards
        }
        self.orders: dict[str, KeptOrder] = {row["order_id"]: rows.to_order(row) for row in found.orders}
        self.payments: list[KeptPayment] = [rows.to_payment(row) for row in found.payments]
        self.uses = [rows.to_use(row).use for row in found.uses]
        self._from: defaultdict[str, list[Segment]] = defaultdict(list)
        for card in self.cards.values():
            for segment in card.card.segments:
                self._from[card.sources.get(segment.segment_id, "")].append(segment)

    @property
    def segments(self) -> list[Segment]:
        """All periods of all cards."""
        return [segment for card in self.cards.values() for segment in card.card.segments]

    def periods_from(self, source_id: str) -> list[Segment]:
        """The periods that an order, or a reward, gave."""
        return self._from.get(source_id, [])

    def periods_of(self, card_id: str) -> Sequence[Segment]:
        """The periods of a card."""
        card = self.cards.get(card_id)
        return card.card.segments if card else ()

    def versions(self) -> dict[Entity, tuple[int, datetime | None]]:
        """How many events there were about each thing, and when it was made, where its id says so."""
        return dict(self._versions())

    def _versions(self) -> Iterator[tuple[Entity, tuple[int, datetime | None]]]:
        for card_id, card in self.cards.items():
            yield ("card", card_id), (card.version, made_at(card_id))
        for order_id, order in self.orders.items():
            yield ("order", order_id), (order.version, made_at(order_id))
        for payment in self.payments:
            yield ("payment", *payment.name), (payment.version, None)
        for row in self.books.rewards:
            yield ("reward", row["reward_id"]), (row["version"], None)


def _counted(subject: str, body: bytes) -> tuple[Entity, int]:
    """What an event is about, and which of the events about it it is."""
    message: Any = getattr(epb, subject.rpartition(".")[2]).FromString(body)
    match message:
        case epb.CardOrdered() | epb.CardOrderSettled():
            return ("order", message.card_order_id), message.version
        case epb.RefundDue():
            return ("payment", message.channel, message.payment_id), message.version
        case epb.RewardFulfilled() | epb.FulfilmentRefused():
            return ("reward", message.reward_id), message.version
    return ("card", message.card_id), message.version
