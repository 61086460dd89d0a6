"""What a client knows of members with cards, and how it holds the books of cards and points against that.

A card is paid by money, or by the points that cards before it brought: each period brings a bonus. So what
passes between the two services is known exactly: every point of such a member came with a period, or went for
one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.points.v1 import points_events_pb2 as points_pb

from tests.cards.calls import instant
from tests.cards.till import ZONE
from tests.chaos.journal import rows_of
from tests.chaos.points import BONUS

PRICE, POINTS_PRICE = 3000, 40  # minor units; points, fewer than the bonus, so that there are some to spend
QUOTA = 6  # teas a day
SAVED = 1200  # minor units by each

PENDING, PAID = pb.CARD_ORDER_STATUS_PENDING_PAYMENT, pb.CARD_ORDER_STATUS_PAID
RESERVED, CONFIRMED = pb.REDEMPTION_STATUS_RESERVED, pb.REDEMPTION_STATUS_CONFIRMED
REVERSED = pb.REDEMPTION_STATUS_REVERSED
DUE = pb.PAYMENT_OUTCOME_REFUND_DUE
PRICED = ("product_code", "amount_minor", "amount_points", "currency_code")
TABLES = ("orders", "segments", "payments", "redemptions", "quota_windows")

Rows = Sequence[Any]


@dataclass
class Wallet:
    """What the client knows of a member: nobody else touches it. Each thing is as an answer told it last."""

    orders: dict[str, pb.CardOrder] = field(default_factory=dict)
    payments: dict[str, tuple[pb.ConfirmPaymentRequest, pb.ConfirmPaymentResponse]] = field(
        default_factory=dict
    )
    paid_back: dict[str, str] = field(default_factory=dict)
    """The refund by which a payment went back."""
    card_id: str = ""
    rests_until: datetime | None = None
    given_back: list[pb.RefundCardResponse] = field(default_factory=list)
    baskets: dict[str, list[str]] = field(default_factory=dict)
    """The uses for each order."""
    uses: dict[str, pb.Redemption] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Uses that were confirmed, and of these those that were given back: both are announced."""
    freezes: int = 0
    resumes: int = 0

    def left(self, at: datetime) -> int:
        """How often tea can be had at an instant."""
        today = [use for use in self.uses.values() if _day(instant(use.create_time)) == _day(at)]
        return QUOTA - sum(use.uses for use in today if use.status == CONFIRMED or _holds(use, at))

    def money_orders(self, *statuses: int) -> list[pb.CardOrder]:
        """Those paid by money that stand so, or all."""
        return [
            order
            for order in self.orders.values()
            if order.pay_with != pb.PAY_WITH_POINTS and (not statuses or order.status in statuses)
        ]

    def due(self) -> list[pb.ConfirmPaymentRequest]:
        """Payments that have to be paid back and are not yet."""
        told = self.payments.items()
        return [
            request
            for name, (request, answer) in told
            if answer.outcome == DUE and name not in self.paid_back
        ]

    def reserved(self, at: datetime) -> list[str]:
        """Orders whose uses wait to be confirmed."""
        return [
            order for order, names in self.baskets.items() if any(_holds(self.uses[n], at) for n in names)
        ]


def _day(at: datetime) -> date:
    return at.astimezone(ZONE).date()


def _holds(use: pb.Redemption, at: datetime) -> bool:
    return use.status == RESERVED and at < instant(use.lapse_time)


@dataclass(frozen=True)
class Books:
    """What the databases have of one member."""

    at: datetime
    moved: bool
    """Whether the clock was moved since the load began."""
    kept: dict[str, Rows]
    """The rows of cards, by table."""
    events: Sequence[Any]
    """What cards announced, in order."""
    ledger: Rows
    holds: Rows

    def check(self, wallet: Wallet) -> None:
        """Holds all of it against what the client knows."""
        self._check_orders(wallet)
        self._check_payments(wallet)
        self._check_uses(wallet)
        self._check_cards_told(wallet)
        self._check_points()

    def _told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def _paid(self) -> set[str]:
        return {row["order_id"] for row in self.kept["orders"] if row["status"] == "PAID"}

    def _check_orders(self, wallet: Wallet) -> None:
        """Each order stands as it was told, and each that is paid is one period, announced once."""
        rows = {row["order_id"]: row for row in self.kept["orders"]}
        assert rows.keys() == wallet.orders.keys()
        assert Counter(e.card_order_id for e in self._told(epb.CardOrdered)) == Counter(rows.keys())
        for order_id, order in wallet.orders.items():
            row = rows[order_id]
            assert row["status"] in self._possible(order), order
            assert all(row[name] == getattr(order, name) for name in PRICED)
        segments = self.kept["segments"]
        assert Counter(row["source_id"] for row in segments) == Counter(self._paid())
        activated = Counter(event.segment_id for event in self._told(epb.CardActivated))
        assert activated == Counter(row["segment_id"] for row in segments)
        for row in segments:
            by_points = wallet.orders[row["source_id"]].pay_with == pb.PAY_WITH_POINTS
            cost = (0, POINTS_PRICE) if by_points else (PRICE, 0)
            assert (row["paid_minor"], row["paid_points"]) == cost
        ended = {one.segment_id for answer in wallet.given_back for one in answer.card.segments if one.ended}
        assert {row["segment_id"] for row in segments if row["ending"]} == ended

    def _possible(self, order: pb.CardOrder) -> set[str]:
        """How an order may stand of which this was told last."""
        name = pb.CardOrderStatus.Name(order.status).removeprefix("CARD_ORDER_STATUS_")
        if order.status != PENDING:
            return {name}
        if order.pay_with == pb.PAY_WITH_POINTS:
            return {"PAID", "CANCELLED", "EXPIRED"}
        return {name, "EXPIRED"} if instant(order.pay_deadline_time) <= self.at else {name}

    def _check_payments(self, wallet: Wallet) -> None:
        """Each payment that was told is kept once, and what is due of it is announced once."""
        rows = {row["payment_id"]: row for row in self.kept["payments"]}
        assert len(rows) == len(self.kept["payments"])
        assert rows.keys() == wallet.payments.keys()
        for payment_id, (request, answer) in wallet.payments.items():
            row = rows[payment_id]
            assert row["applied"] == (answer.outcome != DUE)
            assert row["applied"] or row["due_minor"] == request.amount_minor
            assert row["refund_id"] == wallet.paid_back.get(payment_id, "")
        due = Counter((row["payment_id"], row["due_minor"]) for row in rows.values() if row["due_minor"])
        assert Counter((e.payment_id, e.amount_minor) for e in self._told(epb.RefundDue)) == due
        back = sum(row["due_minor"] for row in rows.values() if row["applied"])
        assert back == sum(answer.quote.refund_minor for answer in wallet.given_back)

    def _check_uses(self, wallet: Wallet) -> None:
        """Each use is as it was told, no quota is passed, and what is final was announced once."""
        rows = {row["redemption_id"]: row for row in self.kept["redemptions"]}
        assert rows.keys() == wallet.uses.keys()
        live: Counter[str] = Counter()
        for name, use in wallet.uses.items():
            row = rows[name]
            status = pb.RedemptionStatus.Name(use.status).removeprefix("REDEMPTION_STATUS_")
            lapsed = use.status == RESERVED and not _holds(use, self.at)
            assert row["status"] == status or (lapsed and row["ending"] == "LAPSED")
            assert (row["uses"], row["saved_minor"]) == (use.uses, SAVED * use.uses)
            live[row["window_key"]] += 0 if row["status"] == "REVERSED" else row["uses"]
        windows = {row["window_key"]: row["used"] for row in self.kept["quota_windows"]}
        assert windows == dict(live)
        assert all(used <= QUOTA for used in windows.values())
        assert [e.redemption_id for e in self._told(epb.BenefitUsed)] == wallet.used
        assert [e.redemption_id for e in self._told(epb.BenefitReversed)] == wallet.unused

    def _check_cards_told(self, wallet: Wallet) -> None:
        """What was given back or rested was announced once, and what comes by the clock only as it moved."""
        refunded = [(e.refund_minor, e.refund_points) for e in self._told(epb.CardRefunded)]
        quotes = [answer.quote for answer in wallet.given_back]
        assert refunded == [(quote.refund_minor, quote.refund_points) for quote in quotes]
        assert len(self._told(epb.CardFrozen)) == wallet.freezes
        resumed = len(self._told(epb.CardResumed))
        assert resumed == wallet.resumes or (self.moved and wallet.resumes < resumed <= wallet.freezes)
        assert self.moved or not self._told(epb.CardExpiring) + self._told(epb.CardExpired)

    def _check_points(self) -> None:
        """Points were spent on what they paid and on nothing else, and each period brought its bonus."""
        orders = {row["order_id"]: row for row in self.kept["orders"] if not row["currency_code"]}
        holds = {row["reference_id"]: row for row in self.holds}
        assert len(holds) == len(self.holds)
        spent = {order_id for order_id, row in holds.items() if row["state"] == "CAPTURED"}
        assert spent == orders.keys() & self._paid()
        assert all(row["captured"] in (0, POINTS_PRICE) for row in self.holds)
        settled = Counter((e.card_order_id, e.outcome) for e in self._told(epb.CardOrderSettled))
        assert set(settled.values()) <= {1}
        assert {(order_id, epb.CARD_ORDER_OUTCOME_CAPTURE) for order_id in spent} <= settled.keys()
        kinds = Counter(row["kind"] for row in self.ledger)
        assert kinds.keys() <= {"EARN", "HOLD", "CAPTURE", "RELEASE", "REVERSE", "EXPIRE"}
        assert (kinds["HOLD"], kinds["CAPTURE"], kinds["RELEASE"]) == (
            len(holds),
            len(spent),
            len(holds) - len(spent),
        )
        assert self.moved or not kinds["EXPIRE"]
        bonuses = [row for row in self.ledger if row["kind"] == "EARN"]
        activated = Counter(f"~card_activated:{row['segment_id']}" for row in self.kept["segments"])
        assert Counter(row["activity_id"] for row in bonuses) == activated
        assert all(moved(row) == BONUS for row in bonuses)


def moved(row: Any) -> int:
    """How many points a transaction moves."""
    return sum(amount for *_, amount in json.loads(row["transfers"]))


# --- when all of it has come to an end ------------------------------------------------------------------


async def settled(cards: Any, points: Any, members: Sequence[str], returned: int) -> bool:
    """Whether all that points pay has ended on both sides, every bonus came, and so many points back."""
    orders = await rows_of(cards, "orders", members)
    if any(not row["currency_code"] and row["status"] in ("PENDING_PAYMENT", "SETTLING") for row in orders):
        return False
    asked = {row["order_id"] for row in orders if not row["currency_code"]}
    if not asked <= await _answered(points, members):
        return False
    if any(row["state"] == "PLACED" for row in await rows_of(points, "holds", members)):
        return False
    ledger = await rows_of(points, "transactions", members)
    periods = await rows_of(cards, "segments", members)
    came = {row["activity_id"] for row in ledger if row["activity_id"]}
    return {f"~card_activated:{row['segment_id']}" for row in periods} <= came and returned == sum(
        moved(row) for row in ledger if row["kind"] == "REVERSE"
    )


async def _answered(points: Any, members: Sequence[str]) -> set[str]:
    """The orders for which points were held, or refused."""
    found = await events_of(points, members, points_pb)
    placed = {e.hold.reference_id for _, e, _ in found if isinstance(e, points_pb.HoldPlaced)}
    return placed | {e.reference_id for _, e, _ in found if isinstance(e, points_pb.HoldRefused)}


async def events_of(
    connection: Any, members: Sequence[str], contract: Any
) -> list[tuple[str, Message, bytes]]:
    """Members, and what was announced about each of them, in order, read and as it is."""
    columns = "entity_key, subject, body"
    rows = await rows_of(connection, "outbox", members, columns, order="position", member="entity_key")
    return [
        (
            row["entity_key"],
            getattr(contract, row["subject"].rpartition(".")[2]).FromString(row["body"]),
            row["body"],
        )
        for row in rows
    ]
