"""Pay channels: each reads what was paid out of its own notifications, and refuses what it did not send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.cards.errors import NotificationRefused


@dataclass(frozen=True, slots=True)
class Paid:
    """A payment, as its channel told it: the facts of ConfirmPayment but for the member."""

    order_id: str
    """The order that it names, known or not."""
    channel: str
    payment_id: str
    """The channel's id of the payment, unique within it."""
    amount_minor: int
    """What the order cost, whoever bore it: a coupon of the channel lowers what the payer paid, not this."""
    currency_code: str
    paid_time: datetime


class PayChannel(Protocol):
    """One more channel is one more class with this method."""

    def read(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Paid:
        """What a notification tells, with its headers by the names that the channel gives them.

        `now` is wall time: the channel's clock knows no test clock. Raises NotificationRefused, nothing else.
        """
        ...


class Closed:
    """A channel that is not set up."""

    def read(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Paid:  # noqa: ARG002 - looks at nothing
        """Raises NotificationRefused."""
        raise NotificationRefused(cause="the pay channel is not set up")
