"""Messages of the contract: requests as commands, and what is kept as calls are answered with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_events_pb2 import REFUND_DUE_REASON_UNSPECIFIED

from services.cards import events, store
from services.cards.domain.wallet import KeptCard, KeptPayment
from services.chassis.asked import by_call
from services.chassis.database import Row
from services.chassis.timestamps import timestamp

SERVICE = "/loyalty.cards.v1.CardsService/"
"""What the path of a method begins with."""


# --- requests as commands -----------------------------------------------------------------------------


def asked(method: str, request: Any) -> dict[str, Any]:
    """What every command has, by the request."""
    return by_call(SERVICE + method, request)


# --- what is kept, as messages ------------------------------------------------------------------------


def product(row: Row) -> pb.Product:
    """A version of a product, as it was put."""
    return pb.Product.FromString(row["body"])


def card(member_id: str, row: Row, now: datetime, zone: ZoneInfo) -> pb.Card:
    """A card as of an instant."""
    return events.card(member_id, store.to_whole_card(row), now, zone)


def savings(kept: KeptCard, found: Iterable[store.Saving]) -> pb.Savings:
    """What the uses of a card say that they saved, also of the whole: one may have come since it was read."""
    saved: Counter[str] = Counter()
    uses: dict[str, list[tuple[str, int, int]]] = {}
    for one in found:
        saved[one.segment_id] += one.saved_minor
        uses.setdefault(one.segment_id, []).append((one.benefit_code, one.uses, one.saved_minor))
    return events.savings(replace(kept, saved=saved), uses)


def payment(kept: KeptPayment) -> pb.ExportedPayment:
    """A payment that was told."""
    told = kept.payment
    return pb.ExportedPayment(
        channel=kept.channel,
        payment_id=kept.payment_id,
        order_id=kept.order_id,
        amount_minor=told.amount_minor,
        currency_code=told.currency_code,
        paid_time=timestamp(told.paid),
        outcome=pb.PAYMENT_OUTCOME_APPLIED if kept.applied else pb.PAYMENT_OUTCOME_REFUND_DUE,
        reason=events.DUE_REASONS[kept.reason] if kept.reason else REFUND_DUE_REASON_UNSPECIFIED,
    )
