"""What is announced: every message keeps to its contract, and says what the domain says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis.interceptors import validate
from services.chassis.outbox import About, Event
from services.chassis.timestamps import instant
from services.referral import events
from services.referral.domain.campaigns import Campaign, FactKind, Gift, GiftKind, Qualify, Step
from services.referral.domain.profile import (
    Attribution,
    AttributionStatus,
    Invite,
    RevokeReason,
    Reward,
    RewardStatus,
    Role,
    Rung,
)

NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MEMBER, INVITER, GRAND = "member", "inviter", "grand"
ABOUT = About(MEMBER, NOON + DAY, 3, 7, "")

CAMPAIGN = Campaign(
    campaign_id="spring",
    version=2,
    name="Spring",
    open_time=NOON,
    close_time=NOON + 30 * DAY,
    settle_time=NOON + 40 * DAY,
    qualify=Qualify(kind=FactKind.ORDER),
    ladder=(Step(step_id="first", at=1),),
    attribution_window=7 * DAY,
    hold_period=DAY,
    clawback_window=7 * DAY,
    budget_minor=10_000,
    currency_code="CNY",
    share_title="Come along",
    poster_fields={"hint": "{name} says {code}"},
)
INVITE = Invite(
    campaign_id="spring",
    campaign_version=2,
    code="ABCDEFGHJKMN",
    create_time=NOON,
    group_id="grp_1",
    masked_name="张**",
)
BOUND = Attribution(
    attribution_id="atr_1",
    campaign_id="spring",
    campaign_version=2,
    inviter_id=INVITER,
    grand_inviter_id=GRAND,
    code="ABCDEFGHJKMN",
    bind_time=NOON,
    lapse_time=NOON + 7 * DAY,
)
QUALIFIED = replace(
    BOUND,
    status=AttributionStatus.QUALIFIED,
    kind=FactKind.ORDER,
    reference_id="order-1",
    amount_minor=4200,
    currency_code="CNY",
    qualify_time=NOON + HOUR,
)
JOINED = replace(QUALIFIED, kind=FactKind.GROUP, reference_id="mbr_1", amount_minor=0, currency_code="")
RUNG = Rung(
    campaign_id="spring",
    campaign_version=2,
    step_id="five",
    round=3,
    depth=1,
    position=15,
    attribution_id="atr_1",
    attempt=2,
    reach_time=NOON,
)


def reward(kind: GiftKind, **more: Any) -> Reward:
    gift = {
        GiftKind.POINTS: Gift(kind=kind, quantity=1000),
        GiftKind.CARD: Gift(kind=kind, code="king"),
        GiftKind.COUPON: Gift(kind=kind, code="tea", quantity=2),
        GiftKind.GROUP_ENTRY: Gift(kind=kind, code="vip", group_id="grp_9"),
        GiftKind.CASH: Gift(kind=kind, quantity=420, currency_code="CNY"),
    }[kind]
    made = Reward(
        reward_id="rwd_1",
        campaign_id="spring",
        campaign_version=2,
        step_id="five",
        round=3,
        attempt=2,
        role=Role.INVITER,
        receiver_id=MEMBER,
        attribution_id="atr_1",
        gift=gift,
        qualified_count=16,
        reach_time=NOON,
        grant_after=NOON + DAY,
    )
    return replace(made, **more)


POINTS, CASH = reward(GiftKind.POINTS), reward(GiftKind.CASH, order_id="order-1", role=Role.INVITEE)
DONE = replace(POINTS, status=RewardStatus.FULFILLED, reference_id="txn_1")
BACK = replace(CASH, status=RewardStatus.CLAWED_BACK, reason=RevokeReason.FRAUD)

ANNOUNCED: dict[str, tuple[Callable[..., Event], Any]] = {
    "an invite": (events.invite_created, (INVITE, CAMPAIGN)),
    "a bond": (events.invitee_bound, (BOUND, 1)),
    "a bond by way of two": (events.invitee_bound, (BOUND, 2)),
    "an order that counts": (events.invitee_qualified, (QUALIFIED, 1)),
    "an order that counts by way of two": (events.invitee_qualified, (QUALIFIED, 2)),
    "a group that counts": (events.invitee_qualified, (JOINED, 1)),
    **{
        f"one that counts no more: {reason}": (events.invitee_revoked, (QUALIFIED, 1, reason))
        for reason in RevokeReason
    },
    "one that lapsed": (events.invitee_dropped, (replace(BOUND, status=AttributionStatus.LAPSED), 1)),
    "one that was rejected": (
        events.invitee_dropped,
        (replace(BOUND, status=AttributionStatus.REJECTED), 2),
    ),
    "a rung": (events.step_reached, (RUNG, 16, "ten", 4)),
    "the top": (events.step_reached, (replace(RUNG, round=1, attempt=1), 15, "", 0)),
    **{f"a reward: {kind}": (events.reward_granted, (reward(kind), "grp_1", "张**")) for kind in GiftKind},
    "a share": (events.reward_granted, (CASH, "", "")),
    "a reward handed over": (events.reward_fulfilled, DONE),
    "a reward refused": (events.reward_failed, replace(POINTS, reason="BALANCE_LIMIT")),
    "a reward taken back": (events.reward_clawed_back, BACK),
}


def message(event: Event) -> Any:
    """The message of an event, held against its contract."""
    parsed = getattr(epb, event.subject.rpartition(".")[2]).FromString(event.body)
    validate(parsed)
    return parsed


def announced(name: str) -> Any:
    make, what = ANNOUNCED[name]
    return message(make(ABOUT, what))


@pytest.mark.parametrize("name", ANNOUNCED)
def test_every_event_keeps_to_its_contract_and_says_what_it_is_about(name: str) -> None:
    make, what = ANNOUNCED[name]
    event = make(ABOUT, what)
    assert event.stream == events.STREAM
    assert any(event.subject.startswith(subject[:-1]) for subject in events.SUBJECTS)
    assert event.entity_key == MEMBER
    told = message(event)
    assert (told.member_id, told.epoch, told.version) == (MEMBER, 3, 7)
    if make is not events.invitee_qualified:
        assert instant(told.occur_time) == NOON + DAY


def test_every_event_of_the_contract_is_announced_here() -> None:
    made = {make(ABOUT, what).subject.rpartition(".")[2] for make, what in ANNOUNCED.values()}
    declared = {kind.name for kind in epb.DESCRIPTOR.message_types_by_name.values()}
    gifts = {"PointsReward", "CardReward", "CouponReward", "GroupEntryReward", "CashReward"}
    assert made | {"BudgetExhausted"} == declared - gifts


def test_an_invite_is_told_with_what_its_poster_shows() -> None:
    told = announced("an invite")
    assert (told.code, told.scene, told.share_title) == (INVITE.code, INVITE.code, "Come along")
    assert dict(told.poster_fields) == {"hint": f"张** says {INVITE.code}"}
    assert told.group_id == "grp_1"


def test_of_two_levels_each_is_told_of_its_own_inviter() -> None:
    for first, second in (
        ("a bond", "a bond by way of two"),
        ("an order that counts", "an order that counts by way of two"),
    ):
        near, far = announced(first), announced(second)
        assert (near.inviter_member_id, near.depth) == (INVITER, 1)
        assert (far.inviter_member_id, far.depth) == (GRAND, 2)


def test_an_invitee_counts_since_it_did_what_was_asked_for() -> None:
    told, joined = announced("an order that counts"), announced("a group that counts")
    assert instant(told.occur_time) == NOON + HOUR
    assert (told.kind, told.reference_id) == (epb.QUALIFICATION_KIND_ORDER, "order-1")
    assert (told.amount_minor, told.currency_code) == (4200, "CNY")
    assert (joined.kind, joined.amount_minor, joined.currency_code) == (epb.QUALIFICATION_KIND_GROUP, 0, "")


def test_who_will_not_count_is_told_with_the_reason() -> None:
    assert announced("one that lapsed").reason == epb.DROP_REASON_LAPSED
    assert announced("one that was rejected").reason == epb.DROP_REASON_REJECTED


def test_a_rung_is_told_with_the_next_one() -> None:
    told = announced("a rung")
    assert (told.step_id, told.round, told.attempt, told.qualified_count) == ("five", 3, 2, 16)
    assert (told.next_step_id, told.missing_count) == ("ten", 4)


def test_a_reward_says_what_it_gives_and_where_that_is_announced() -> None:
    given = [announced(f"a reward: {kind}") for kind in GiftKind]
    assert [told.WhichOneof("reward") for told in given] == [
        *("points", "card", "coupon", "group_entry", "cash")
    ]
    points, card, coupon, seat, cash = given
    assert (points.points.amount, card.card.plan_id) == (1000, "king")
    assert (coupon.coupon.coupon_code, coupon.coupon.quantity) == ("tea", 2)
    assert (seat.group_entry.scheme_id, seat.group_entry.group_id) == ("vip", "grp_9")
    assert (cash.cash.amount_minor, cash.cash.currency_code, cash.cash.order_id) == (420, "CNY", "")
    assert (points.announce_group_id, points.masked_name, points.qualified_count) == ("grp_1", "张**", 16)
    assert (points.role, points.round, points.attempt) == (epb.REWARD_ROLE_INVITER, 3, 2)
    share = announced("a share")
    assert (share.cash.order_id, share.role) == ("order-1", epb.REWARD_ROLE_INVITEE)


def test_how_a_reward_ends_is_told_under_its_id() -> None:
    done, refused, back = (announced(f"a reward {how}") for how in ("handed over", "refused", "taken back"))
    assert {told.reward_id for told in (done, refused, back)} == {"rwd_1"}
    assert (done.reference_id, refused.reason) == ("txn_1", "BALANCE_LIMIT")
    assert (back.reason, back.cash.amount_minor) == (epb.REVOKE_REASON_FRAUD, 420)


def test_a_budget_that_is_spent_is_told_of_its_campaign() -> None:
    event = events.budget_exhausted(About("spring", NOON, 1, 2, ""), (CAMPAIGN, 9_900, 41))
    told = message(event)
    assert (event.entity_key, told.campaign_id, told.campaign_version, told.version) == (
        *("spring", "spring"),
        *(2, 2),
    )
    assert (told.budget_minor, told.granted_minor, told.waiting_count) == (10_000, 9_900, 41)
