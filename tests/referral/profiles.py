"""Profiles as Hypothesis makes them: anything that may be kept of a member, and what may become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from services.referral.domain.campaigns import FactKind, Gift, GiftKind
from services.referral.domain.profile import (
    EVERYTHING,
    Attribution,
    AttributionStatus,
    Fact,
    Invite,
    Invitee,
    InviteeState,
    Profile,
    Rank,
    RevokeReason,
    Reward,
    RewardStatus,
    Role,
    Rung,
    Verdict,
)

MOST = 10**12
CAMPAIGNS = ("spring", "summer", "autumn")
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
SOME = st.integers(1, 3)
AMOUNT = st.integers(0, MOST)
VERSION = st.integers(0, 2**62)
INSTANT = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
LENGTH = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))
FLAG = st.booleans()
KIND = st.sampled_from(FactKind)
REASON = st.sampled_from(RevokeReason)
SIGNALS = st.lists(NAME, max_size=3).map(tuple)


def some(names: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    """The first few of some names."""
    return st.integers(0, len(names)).map(lambda count: list(names[:count]))


def many(kind: str) -> st.SearchStrategy[list[str]]:
    """Ids of up to three things of a kind."""
    return some((f"{kind}_0", f"{kind}_1", f"{kind}_2"))


@st.composite
def profiles(draw: st.DrawFn, member_id: str) -> Profile:
    """A member with some of everything, as it may be kept."""
    told = draw(st.dictionaries(NAME, st.tuples(SOME, VERSION), max_size=3))
    facts = [draw(_fact(name)) for name in draw(many("ord"))]
    invitees = [draw(_invitee(name)) for name in draw(many("atr"))]
    rungs = [draw(_rung(name)) for name in draw(many("step"))]
    return Profile(
        member_id,
        draw(VERSION),
        {name: draw(TEXT) for name in told if draw(FLAG)},
        told,
        draw(st.none() | INSTANT),
        attributions={name: draw(_attribution(name)) for name in draw(some(CAMPAIGNS))},
        facts={fact.name: fact for fact in facts},
        invites={name: draw(_invite(name, member_id)) for name in draw(some(CAMPAIGNS))},
        invitees={(invitee.attribution_id, invitee.depth): invitee for invitee in invitees},
        rungs={rung.name: rung for rung in rungs},
        rewards={
            f"{name} of {member_id}": draw(_reward(f"{name} of {member_id}", member_id))
            for name in draw(many("rwd"))
        },
        ranks={name: draw(_rank(name)) for name in draw(some(CAMPAIGNS))},
    )


@st.composite
def successors(draw: st.DrawFn, profile: Profile) -> Profile:
    """What may become of a member: some records changed, some as they were, some new."""
    later = profile.copy()
    later.version = draw(VERSION)
    later.next_due_time = draw(st.none() | INSTANT)
    for name, change in _CHANGES.items():
        records = getattr(later, name)
        for key, record in records.items():
            if draw(FLAG):
                records[key] = draw(change(record))
    more = draw(_reward(f"rwd_new of {profile.member_id}", profile.member_id))
    later.rewards |= {more.reward_id: more}
    return later


# --- the invitee --------------------------------------------------------------------------------------


@st.composite
def _attribution(draw: st.DrawFn, campaign_id: str) -> Attribution:
    bind_time = draw(INSTANT)
    bond = Attribution(
        attribution_id=draw(NAME),
        campaign_id=campaign_id,
        campaign_version=draw(SOME),
        inviter_id="who brought it",
        grand_inviter_id=draw(st.sampled_from(["", "who brought that one"])),
        code=draw(NAME),
        bind_time=bind_time,
        lapse_time=bind_time + draw(LENGTH),
        score=draw(AMOUNT),
    )
    return draw(_later_attribution(bond))


@st.composite
def _later_attribution(draw: st.DrawFn, bond: Attribution) -> Attribution:
    status = draw(st.sampled_from(AttributionStatus))
    verdicts = {AttributionStatus.QUALIFIED: Verdict.PASS, AttributionStatus.REJECTED: Verdict.REJECT}
    by_fact = status in (AttributionStatus.QUALIFIED, AttributionStatus.REVOKED) or draw(FLAG)
    return replace(
        bond,
        status=status,
        verdict=verdicts.get(status) or draw(st.sampled_from(Verdict)),
        signals=draw(SIGNALS),
        resolved=draw(FLAG),
        version=draw(VERSION),
        kind=draw(KIND) if by_fact else None,
        reference_id=draw(TEXT),
        amount_minor=draw(AMOUNT),
        currency_code=draw(TEXT),
        qualify_time=draw(INSTANT) if by_fact else None,
    )


@st.composite
def _fact(draw: st.DrawFn, reference_id: str) -> Fact:
    return draw(_later_fact(Fact(kind=draw(KIND), reference_id=reference_id)))


@st.composite
def _later_fact(draw: st.DrawFn, fact: Fact) -> Fact:
    told, revoked = draw(FLAG), draw(FLAG)
    refund = st.tuples(AMOUNT | st.just(EVERYTHING), INSTANT)
    return replace(
        fact,
        occur_time=draw(INSTANT) if told else None,
        amount_minor=draw(AMOUNT) if told else 0,
        currency_code=draw(TEXT),
        attributes=draw(st.none() | st.dictionaries(TEXT, TEXT, max_size=3)),
        refunds=draw(st.dictionaries(TEXT, refund, max_size=2)),
        revoke_time=draw(INSTANT) if revoked else None,
        revoke_reason=draw(REASON) if revoked else None,
    )


# --- the inviter --------------------------------------------------------------------------------------


def _invite(campaign_id: str, member_id: str) -> st.SearchStrategy[Invite]:
    return st.builds(
        Invite,
        campaign_id=st.just(campaign_id),
        campaign_version=SOME,
        code=st.just(f"{campaign_id} of {member_id}"),  # nobody else has it
        create_time=INSTANT,
        group_id=TEXT,
        masked_name=TEXT,
    )


@st.composite
def _invitee(draw: st.DrawFn, attribution_id: str) -> Invitee:
    invitee = Invitee(
        attribution_id=attribution_id,
        campaign_id=draw(st.sampled_from(CAMPAIGNS)),
        depth=draw(st.integers(1, 2)),
        member_id=f"invitee of {attribution_id}",
        state=InviteeState.BOUND,
        told=(1, 1),
    )
    return draw(_later_invitee(invitee))


@st.composite
def _later_invitee(draw: st.DrawFn, invitee: Invitee) -> Invitee:
    state = draw(st.sampled_from(InviteeState))
    qualified = state is InviteeState.QUALIFIED or draw(FLAG)
    return replace(
        invitee,
        state=state,
        told=(draw(SOME), draw(VERSION)),
        bind_time=draw(st.none() | INSTANT),
        kind=draw(KIND) if qualified else None,
        reference_id=draw(TEXT),
        amount_minor=draw(AMOUNT),
        currency_code=draw(TEXT),
        qualify_time=draw(INSTANT) if qualified else None,
        revoke_reason=draw(st.none() | REASON),
    )


@st.composite
def _rung(draw: st.DrawFn, step_id: str) -> Rung:
    rung = Rung(
        campaign_id=draw(st.sampled_from(CAMPAIGNS)),
        campaign_version=draw(SOME),
        step_id=step_id,
        round=draw(SOME),
        depth=draw(st.integers(1, 2)),
        position=draw(SOME),
        each=draw(FLAG),
        attribution_id=draw(NAME),
        reach_time=draw(INSTANT),
    )
    return draw(_later_rung(rung))


@st.composite
def _later_rung(draw: st.DrawFn, rung: Rung) -> Rung:
    return replace(
        rung,
        attribution_id=draw(NAME),
        attempt=draw(SOME),
        reach_time=draw(INSTANT),
        lost=draw(FLAG),
    )


@st.composite
def _reward(draw: st.DrawFn, reward_id: str, member_id: str) -> Reward:
    role, kind = draw(st.sampled_from(Role)), draw(st.sampled_from(GiftKind))
    share = draw(SOME) if kind is GiftKind.CASH and draw(FLAG) else 0
    counted = kind in (GiftKind.POINTS, GiftKind.COUPON, GiftKind.CASH)
    gift = Gift(
        kind=kind,
        code=draw(TEXT),
        group_id=draw(TEXT),
        quantity=1 if counted else 0,
        currency_code=draw(TEXT),
        share_basis_points=share,
    )
    reward = Reward(
        reward_id=reward_id,
        campaign_id=draw(st.sampled_from(CAMPAIGNS)),
        campaign_version=draw(SOME),
        step_id=f"of {reward_id}",  # of one rung, one stands on each side
        round=draw(SOME),
        attempt=draw(SOME),
        role=role,
        receiver_id=member_id if role is Role.INVITER else "an invitee",
        attribution_id=draw(NAME),
        gift=gift,
        order_id="an order" if share else "",
        qualified_count=0,
        reach_time=datetime(2026, 1, 1, tzinfo=UTC),
        grant_after=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return draw(_later_reward(reward))


@st.composite
def _later_reward(draw: st.DrawFn, reward: Reward) -> Reward:
    status = draw(st.sampled_from(RewardStatus))
    granted = status not in (RewardStatus.PENDING, RewardStatus.WITHDRAWN)
    opened = status in (RewardStatus.PENDING, RewardStatus.GRANTED)
    handed_over = status in (RewardStatus.FULFILLED, RewardStatus.CLAWED_BACK)
    reach_time = draw(INSTANT)
    grant_after = reach_time + draw(LENGTH)
    quantity = draw(st.integers(1, MOST)) if reward.gift.quantity else 0
    return replace(
        reward,
        receiver_id=reward.receiver_id if reward.role is Role.INVITER else draw(st.sampled_from(["a", "b"])),
        attribution_id=draw(NAME),
        gift=replace(reward.gift, quantity=quantity, cost_minor=draw(AMOUNT)),
        order_id=draw(NAME) if reward.order_id else "",
        qualified_count=draw(AMOUNT),
        reach_time=reach_time,
        grant_after=grant_after,
        status=status,
        version=draw(st.integers(1, 2**62)) if granted else 0,
        grant_time=grant_after + draw(LENGTH) if granted else None,
        fulfil_by=draw(INSTANT) if status is RewardStatus.GRANTED else None,
        overdue=draw(FLAG),
        end_time=None if opened else draw(INSTANT),
        reference_id=draw(TEXT) if handed_over else "",
        reason=draw(NAME) if status in (RewardStatus.FAILED, RewardStatus.CLAWED_BACK) else "",
        returned=status is RewardStatus.CLAWED_BACK and draw(FLAG),
    )


def _rank(campaign_id: str) -> st.SearchStrategy[Rank]:
    return st.builds(Rank, campaign_id=st.just(campaign_id), count=AMOUNT, reach_time=INSTANT)


_CHANGES: Mapping[str, Callable[[Any], st.SearchStrategy[Any]]] = {
    "attributions": _later_attribution,
    "facts": _later_fact,
    "invites": lambda invite: TEXT.map(lambda name: replace(invite, masked_name=name)),
    "invitees": _later_invitee,
    "rungs": _later_rung,
    "rewards": _later_reward,
    "ranks": lambda rank: _rank(rank.campaign_id),
}
