"""Rows to domain and back. A record is given with its member and the name it has in its wallet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from services.cards.domain.books import KeptWindow, WindowName
from services.cards.domain.cards import Card, Ending, Rest, Segment
from services.cards.domain.payments import Order, OrderStatus, Payment, RefundReason
from services.cards.domain.periods import Anchor
from services.cards.domain.quotas import Use, UseStatus, Window
from services.cards.domain.renewals import Renewal, RenewalStatus
from services.cards.domain.wallet import (
    Basket,
    Contract,
    GiftClaim,
    KeptCard,
    KeptOrder,
    KeptPayment,
    KeptRenewal,
    KeptUse,
    PaymentClaim,
    PaymentName,
    Reward,
    Slot,
    UseEnding,
    Wallet,
)
from services.chassis.database import Row
from services.chassis.ids import bucket
from services.chassis.statements import Values

Found = Row | Mapping[str, Any]


def _json(value: Mapping[str, Any] | Sequence[str]) -> str:
    """The same text for the same value, so that one that did not change is known for it."""
    return json.dumps(value, sort_keys=True)


def day_and_week(at: datetime, zone: ZoneInfo) -> list[str]:
    """The keys of the windows of a local day and of its week."""
    return [window.key(at, "", zone) for window in (Window.DAY, Window.WEEK)]


def to_wallet(row: Found) -> Wallet:
    """A member, and nothing else of it."""
    told = {} if row["facts"] == "{}" else json.loads(row["facts"])
    return Wallet(
        row["member_id"],
        row["tier"],
        {name: value for name, (value, _) in told.items() if value is not None},
        {name: (version[0], version[1]) for name, (_, version) in told.items() if version is not None},
        row["next_due_time"],
    )


def member_rows(wallet: Wallet) -> list[Values]:
    """A member."""
    told = {
        name: (wallet.facts.get(name), wallet.fact_versions.get(name))
        for name in {*wallet.facts, *wallet.fact_versions}
    }
    return [(bucket(wallet.member_id), wallet.member_id, wallet.tier, _json(told), wallet.next_due_time)]


def to_card(row: Found, segments: Sequence[Found]) -> KeptCard:
    """A card with these rows of its periods."""
    ordered = sorted(segments, key=lambda segment: int(segment["number"]))
    rest = None if row["rest_start"] is None else Rest(row["rest_start"], row["rest_until"])
    return KeptCard(
        card=Card(row["card_id"], tuple(_to_segment(segment) for segment in ordered), rest),
        family=row["family"],
        currency_code=row["currency_code"],
        version=row["version"],
        saved={s["segment_id"]: s["saved_minor"] for s in ordered if s["saved_minor"]},
        sources={s["segment_id"]: s["source_id"] for s in ordered if s["source_id"]},
        expiring_told=row["expiring_told"],
        expired_told=row["expired_told"],
        contract=None if row["sign_time"] is None else _to_contract(row),
    )


def _to_contract(row: Found) -> Contract:
    return Contract(
        contract_id=row["contract_id"],
        product_code=row["contract_product"],
        sign_time=row["sign_time"],
        until=row["contract_until"],
    )


def _to_segment(row: Found) -> Segment:
    return Segment(
        row["segment_id"],
        row["product_code"],
        row["product_version"],
        row["start_time"],
        row["end_time"],
        Anchor(row["anchor_local"], row["anchor_months"]),
        row["days"],
        row["streak"],
        row["grace_days"],
        row["paid_time"],
        row["paid_minor"],
        row["paid_points"],
        row["freezes"],
        row["ended_time"],
        None if row["ending"] is None else Ending(row["ending"]),
    )


def card_rows(member_id: str, _name: str, kept: KeptCard) -> list[Values]:
    """A card without its periods."""
    rest, signed = kept.card.rest, kept.contract
    return [
        (
            *(bucket(member_id), member_id, kept.card_id, kept.family, kept.currency_code, kept.version),
            *((None, None) if rest is None else (rest.start, rest.until)),
            *(kept.expiring_told, kept.expired_told),
            *(("", "") if signed is None else (signed.contract_id, signed.product_code)),
            *((None, None) if signed is None else (signed.sign_time, signed.until)),
        )
    ]


def segment_rows(member_id: str, _name: str, kept: KeptCard) -> list[Values]:
    """All periods of a card."""
    return [
        (
            *(bucket(member_id), member_id, kept.card_id, number),
            *(s.segment_id, s.product_code, s.product_version, s.start, s.end),
            *(s.anchor.local, s.anchor.months, s.days, s.streak, s.grace_days),
            *(s.paid_at, s.paid_minor, s.paid_points, s.freezes, s.ended_at, s.ending),
            *(kept.saved.get(s.segment_id, 0), kept.sources.get(s.segment_id, "")),
        )
        for number, s in enumerate(kept.card.segments)
    ]


def to_order(row: Found) -> KeptOrder:
    """An order."""
    return KeptOrder(
        order_id=row["order_id"],
        order=Order(
            OrderStatus(row["status"]),
            row["pay_deadline"],
            row["amount_minor"],
            row["currency_code"],
            row["amount_points"],
            row["end_reason"],
        ),
        product_code=row["product_code"],
        product_version=row["product_version"],
        family=row["family"],
        create_time=row["create_time"],
        upgrade_now=row["upgrade_now"],
        credit=row["credit"],
        card_id=row["card_id"],
        renewal_id=row["renewal_id"],
        gift=row["gift"],
        window_key=row["window_key"],
        capped=row["capped"],
        version=row["version"],
    )


def order_rows(member_id: str, _name: str, kept: KeptOrder) -> list[Values]:
    """An order."""
    o = kept.order
    return [
        (
            *(bucket(member_id), member_id, kept.order_id),
            *(kept.product_code, kept.product_version, kept.family, o.status, o.pay_deadline),
            *(o.amount_minor, o.currency_code, o.amount_points, kept.credit, kept.upgrade_now, o.end_reason),
            *(kept.create_time, kept.card_id, kept.renewal_id, kept.gift),
            *(kept.capped, kept.window_key, kept.version),
        )
    ]


def to_payment(row: Found) -> KeptPayment:
    """A payment."""
    return KeptPayment(
        channel=row["channel"],
        payment_id=row["payment_id"],
        order_id=row["order_id"],
        payment=Payment(row["amount_minor"], row["currency_code"], row["paid_time"]),
        applied=row["applied"],
        reason=None if row["reason"] is None else RefundReason(row["reason"]),
        due=row["due_minor"],
        due_time=row["due_time"],
        refund_id=row["refund_id"],
        closed=row["close_time"],
        version=row["version"],
        create_time=row["create_time"],
    )


def payment_rows(member_id: str, _name: PaymentName, kept: KeptPayment) -> list[Values]:
    """A payment."""
    p = kept.payment
    return [
        (
            *(bucket(member_id), member_id, kept.channel, kept.payment_id, kept.order_id),
            *(p.amount_minor, p.currency_code, p.paid, kept.applied, kept.reason, kept.due),
            *(kept.due_time, kept.refund_id, kept.closed, kept.version, kept.create_time),
        )
    ]


def to_use(row: Found) -> KeptUse:
    """A redemption."""
    return KeptUse(
        redemption_id=row["redemption_id"],
        order_id=row["order_id"],
        use=Use(
            row["card_id"],
            row["segment_id"],
            row["benefit_code"],
            row["window_key"],
            row["uses"],
            row["saved_minor"],
            UseStatus(row["status"]),
            row["lapse_time"],
        ),
        lines=json.loads(row["lines"]),
        currency_code=row["currency_code"],
        create_time=row["create_time"],
        ending=None if row["ending"] is None else UseEnding(row["ending"]),
    )


def use_rows(member_id: str, _name: str, kept: KeptUse) -> list[Values]:
    """A redemption."""
    u = kept.use
    return [
        (
            *(bucket(member_id), member_id, kept.order_id, kept.redemption_id),
            *(u.card_id, u.segment_id, u.benefit_code, u.window_key, u.uses, u.saved_minor),
            *(kept.currency_code, u.status, u.lapse_time, _json(kept.lines)),
            *(kept.create_time, kept.ending),
        )
    ]


def to_basket(row: Found) -> Basket:
    """An order that benefits were asked for."""
    return Basket(
        order_id=row["order_id"],
        body_hash=row["body_hash"],
        body=row["body"],
        pays=json.loads(row["pays"]),
        redemption_ids=tuple(json.loads(row["redemption_ids"])),
        refunds=json.loads(row["refunds"]),
        create_time=row["create_time"],
    )


def basket_rows(member_id: str, _name: str, basket: Basket) -> list[Values]:
    """An order that benefits were asked for."""
    return [
        (
            *(bucket(member_id), member_id, basket.order_id, basket.body_hash, basket.body),
            *(_json(basket.pays), _json(basket.redemption_ids), _json(basket.refunds)),
            basket.create_time,
        )
    ]


def to_window(row: Found) -> tuple[WindowName, KeptWindow]:
    """A quota's window with its name."""
    name = (row["card_id"], row["benefit_code"], row["window_key"])
    return name, KeptWindow(row["used"], row["quota"])


def window_rows(member_id: str, name: WindowName, window: KeptWindow) -> list[Values]:
    """A quota's window."""
    card_id, benefit_code, window_key = name
    return [(bucket(member_id), member_id, window_key, card_id, benefit_code, window.used, window.limit)]


def to_renewal(row: Found) -> KeptRenewal:
    """A renewal."""
    return KeptRenewal(
        renewal_id=row["renewal_id"],
        renewal=Renewal(
            row["notice_due_time"],
            row["notice_deadline"],
            row["charge_time"],
            row["charge_until"],
            row["amount_minor"],
            row["notice_time"],
            None if row["outcome"] is None else RenewalStatus(row["outcome"]),
        ),
        card_id=row["card_id"],
        segment_id=row["segment_id"],
        product_code=row["product_code"],
        currency_code=row["currency_code"],
        order_id=row["order_id"],
        medium=row["medium"],
        told=row["told"],
    )


def renewal_rows(member_id: str, _name: str, kept: KeptRenewal) -> list[Values]:
    """A renewal."""
    r = kept.renewal
    return [
        (
            *(bucket(member_id), member_id, kept.renewal_id, kept.card_id, kept.segment_id),
            *(kept.product_code, r.amount_minor, kept.currency_code),
            *(r.notice_due, r.notice_deadline, r.charge, r.charge_until, r.noticed, r.outcome),
            *(kept.order_id, kept.medium, kept.told),
        )
    ]


def to_reward(row: Found) -> Reward:
    """A reward."""
    return Reward(
        reward_id=row["reward_id"],
        card_id=row["card_id"],
        segment_id=row["segment_id"],
        clawed_back=row["clawed_back"],
        version=row["version"],
    )


def reward_rows(member_id: str, _name: str, reward: Reward) -> list[Values]:
    """A reward."""
    return [
        (
            *(bucket(member_id), member_id, reward.reward_id, reward.card_id, reward.segment_id),
            *(reward.clawed_back, reward.version),
        )
    ]


def to_payment_claim(row: Found) -> PaymentClaim:
    """Whose a payment is."""
    return PaymentClaim(
        channel=row["channel"],
        payment_id=row["payment_id"],
        member_id=row["member_id"],
        payload_hash=row["payload_hash"],
    )


def to_gift(row: Found) -> GiftClaim:
    """A gift."""
    return GiftClaim(
        code_hash=row["code_hash"],
        giver_id=row["giver_id"],
        order_id=row["order_id"],
        product_code=row["product_code"],
        product_version=row["product_version"],
        claim_until=row["claim_until"],
        paid=row["paid"],
        refunded=row["refunded"],
        claimed_by=row["claimed_by"],
        claim_time=row["claim_time"],
    )


def gift_rows(gift: GiftClaim) -> list[Values]:
    """A gift."""
    return [
        (
            *(gift.code_hash, gift.giver_id, gift.order_id, gift.product_code, gift.product_version),
            *(gift.claim_until, gift.paid, gift.refunded, gift.claimed_by, gift.claim_time),
        )
    ]


def to_slot(row: Found) -> Slot:
    """A place under a sales cap."""
    return Slot(
        product_code=row["product_code"],
        window_key=row["window_key"],
        number=row["number"],
        order_id=row["order_id"],
        pay_deadline=row["pay_deadline"],
        firm=row["firm"],
    )


def slot_rows(slot: Slot) -> list[Values]:
    """A place under a sales cap."""
    return [
        (slot.product_code, slot.window_key, slot.number, slot.order_id, slot.pay_deadline, slot.firm),
    ]
