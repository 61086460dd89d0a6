"""Profiles as Hypothesis makes them: anything that may be kept, and what may become of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from services.groups.domain.facts import NO_PAST, Past, Visits
from services.groups.domain.profile import (
    EVERYTHING,
    Basis,
    Ending,
    KeptOrder,
    Membership,
    MembershipStatus,
    Profile,
    Tag,
)

MOST = 10**12
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
AMOUNT = st.integers(0, MOST)
VERSION = st.integers(1, 2**62)  # nobody is kept to whom nothing ever came
INSTANT = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
FLAG = st.booleans()


def many(kind: str) -> st.SearchStrategy[list[str]]:
    """Ids of up to three things of a kind."""
    return st.integers(0, 3).map(lambda count: [f"{kind}_{number}" for number in range(count)])


@st.composite
def profiles(draw: st.DrawFn, member_id: str) -> Profile:
    """A member with some of everything, as it may be kept; of each scheme one membership."""
    memberships = [draw(_membership(scheme)) for scheme in draw(many("scheme"))]
    profile = Profile(
        member_id,
        memberships={each.membership_id: each for each in memberships},
        known=True,
        tags={key: draw(_tag(key)) for key in draw(many("tag"))},
        orders={name: draw(_order(name)) for name in draw(many("ord"))},
    )
    return replace(profile, **draw(_own()))


@st.composite
def successors(draw: st.DrawFn, profile: Profile) -> Profile:
    """What may become of a member: some records changed, some as they were, some new, some tags gone."""
    later = replace(profile.copy(), **draw(_own()))
    for key, membership in profile.memberships.items():
        if draw(FLAG):
            later.memberships[key] = draw(_standing(membership))
    for key in profile.tags:
        if draw(FLAG):
            later.tags[key] = draw(_tag(key))
        elif draw(FLAG):
            del later.tags[key]
    for name in [*(name for name in profile.orders if draw(FLAG)), "ord_new"]:
        later.orders[name] = draw(_order(name))
    new = draw(_membership("scheme_new"))
    later.memberships[new.membership_id] = new
    return later


@st.composite
def _own(draw: st.DrawFn) -> dict[str, Any]:
    """What a member has once."""
    told = draw(st.dictionaries(NAME, st.tuples(st.integers(1, 3), VERSION), max_size=3))
    times = sorted(draw(st.lists(INSTANT, min_size=2, max_size=2)))
    due, evaluate = times if draw(FLAG) else (draw(st.none() | INSTANT), None)
    return {
        "version": draw(VERSION),
        "facts": {name: draw(TEXT) for name in told if draw(FLAG)},
        "fact_versions": told,
        "left": draw(st.dictionaries(NAME, INSTANT, max_size=2)),
        "past": draw(_PASTS),
        "offer_time": draw(st.none() | INSTANT),
        "evaluate_time": evaluate,
        "next_due_time": due,
    }


_VISITS = st.builds(Visits, st.integers(1, MOST), INSTANT, INSTANT)
_PASTS = st.just(NO_PAST) | st.builds(
    Past,
    until=INSTANT,
    stores=st.dictionaries(TEXT, _VISITS, max_size=2),
    city=st.none() | st.tuples(INSTANT, NAME, NAME),
)


@st.composite
def _membership(draw: st.DrawFn, scheme_id: str) -> Membership:
    kept = Membership(
        membership_id=f"mbs of {scheme_id}",
        scheme_id=scheme_id,
        group_id="",
        anchor="",
        site_id="",
        number=draw(st.integers(1, 2**62)),
        status=MembershipStatus.LAPSED,
        basis=Basis.CHOSEN,
        assign_time=draw(INSTANT),
    )
    return draw(_standing(kept))


@st.composite
def _standing(draw: st.DrawFn, membership: Membership) -> Membership:
    """Where a membership may stand."""
    status = draw(st.sampled_from(MembershipStatus))
    joined = draw(INSTANT) if status is MembershipStatus.JOINED or draw(FLAG) else None
    arrived = joined if status is MembershipStatus.JOINED or draw(FLAG) else None
    reserved = status is MembershipStatus.ASSIGNED or (not status.active and draw(FLAG))
    lapsed = status is MembershipStatus.LAPSED and draw(FLAG)
    return replace(
        membership,
        group_id=draw(NAME),
        anchor=draw(TEXT),
        site_id=draw(TEXT),
        status=status,
        basis=draw(st.sampled_from(Basis)),
        entry_source=draw(TEXT),
        cell=draw(TEXT),
        distance_m=draw(AMOUNT),
        assign_time=draw(INSTANT),
        seat_expire_time=draw(INSTANT) if reserved else None,
        join_time=joined,
        arrive_time=arrived,
        end_time=None if status.active else draw(INSTANT),
        ending=None if status.active or lapsed else draw(st.sampled_from(Ending)),
        lost_condition=draw(TEXT),
        reward_id=draw(TEXT),
    )


def _tag(key: str) -> st.SearchStrategy[Tag]:
    return st.builds(
        Tag, key=st.just(key), value=NAME, source=TEXT, expire_time=st.none() | INSTANT, set_time=INSTANT
    )


@st.composite
def _order(draw: st.DrawFn, order_id: str) -> KeptOrder:
    refunds = draw(st.dictionaries(NAME, AMOUNT | st.just(EVERYTHING), max_size=2))
    if draw(FLAG):
        return KeptOrder(order_id=order_id, refunds=refunds)
    return KeptOrder(
        order_id=order_id,
        store_id=draw(TEXT),
        city=draw(TEXT),
        paid_time=draw(INSTANT),
        amount_minor=draw(AMOUNT),
        refunds=refunds,
    )
