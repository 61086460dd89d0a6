"""What a batch needs to see, what it saw, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from services.cards.domain.wallet import (
    GiftClaim,
    PaymentClaim,
    PaymentName,
    Slot,
    Wallet,
)
from services.chassis.answers import Done, Named
from services.chassis.inbox import InboxKey
from services.chassis.statements import copied


@dataclass(slots=True)
class Wanted:
    """What a batch needs to see under the locks.

    Of every member named it sees the cards, the open renewals, the orders that can still be paid, the
    reservations, the windows that may be used at `at`, and those that the uses it sees count in; of orders
    that are not paid also the slots of their windows.
    """

    at: datetime
    members: set[str] = field(default_factory=set)  # all of whom something is wanted; made if not there
    requests: set[Named] = field(default_factory=set)
    orders: set[Named] = field(default_factory=set)
    """With their payments, gifts and renewals, closed ones too."""
    baskets: set[Named] = field(default_factory=set)  # with all uses of the order
    payments: set[tuple[str, str, str]] = field(default_factory=set)  # of a member, by channel and id
    paid_cards: set[Named] = field(default_factory=set)  # with their paid orders, payments, and uses counted
    purchases: set[Named] = field(default_factory=set)  # products, of which the member's orders are counted
    renewals: set[Named] = field(default_factory=set)
    rewards: set[Named] = field(default_factory=set)
    events: list[InboxKey] = field(default_factory=list)
    payment_claims: set[PaymentName] = field(default_factory=set)
    gift_claims: set[bytes] = field(default_factory=set)  # by the hash of the code
    gifts_of: set[str] = field(default_factory=set)  # by the order, claimed or not
    slots: set[tuple[str, str]] = field(default_factory=set)  # product and window, with all their slots


@dataclass(slots=True)
class Seen:
    """What the database says, locked until commit."""

    wallets: dict[str, Wallet] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    """Members who were not there; those to whom nothing comes are dropped again."""
    done: Done = field(default_factory=Done)
    payment_claims: dict[PaymentName, PaymentClaim] = field(default_factory=dict)
    gifts: dict[bytes, GiftClaim] = field(default_factory=dict)
    slots: dict[tuple[str, str, int], Slot] = field(default_factory=dict)

    def copy(self) -> Seen:
        """What it says now. Records are never changed: the collections keep them."""
        return copied(self, "wallets", "payment_claims", "gifts", "slots")


@dataclass(slots=True)
class Changes:
    """What a batch did: the state before and after, of which what is not the same object is written."""

    before: Seen
    after: Seen
