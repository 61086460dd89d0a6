"""Who counts for an inviter, which rungs that reaches, loses and regains, and what comes next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.referral.domain import ladder
from services.referral.domain.campaigns import Campaign, Caps, FactKind, Step
from services.referral.domain.ladder import Ahead, ahead, climb
from services.referral.domain.profile import Invitee, InviteeState, Rank, Rung, RungName
from tests.referral.plain import DAY, HOUR, NOON, ZONE, Bound, Done, Plain, campaign, points

LOCAL_MIDNIGHT = NOON - 12 * HOUR
TICK = timedelta(microseconds=1)
THOUSAND = points(1000)

AT_TWO = Step(step_id="two", at=2, reward=THOUSAND)
AT_FOUR = Step(step_id="four", at=4, reward=THOUSAND)
EVERY_THREE = Step(step_id="more", every=3, every_from=3, reward=THOUSAND)
EACH_FROM_TWO = Step(step_id="each", each_from=2, reward=THOUSAND)
OF_THEIRS = Step(step_id="theirs", depth=2, at=2, reward=THOUSAND)
WELCOME = Step(step_id="welcome", each_from=1, invitee_reward=THOUSAND)
LADDER = (AT_TWO, AT_FOUR, EVERY_THREE, EACH_FROM_TWO, OF_THEIRS)


def invitee(name: str, at: datetime = NOON, depth: int = 1, **more: object) -> Invitee:
    """One who qualified."""
    made = Invitee(
        attribution_id=name,
        campaign_id="king",
        depth=depth,
        member_id=f"m-{name}",
        state=InviteeState.QUALIFIED,
        told=(1, 1),
        kind=FactKind.ORDER,
        reference_id=f"o-{name}",
        amount_minor=10_000,
        currency_code="CNY",
        qualify_time=at,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def some(names: str, depth: int = 1) -> list[Invitee]:
    """Invitees who qualified at the hour of their letter."""
    return [invitee(name, NOON + (ord(name) - ord("a")) * HOUR, depth) for name in names]


def names(invitees: Iterable[Invitee], depth: int = 1, **caps: int) -> str:
    """Who counts of these."""
    return "".join(ladder.line(invitees, depth, Caps(**caps), ZONE))


Rungs = dict[RungName, Rung]


def climbed(of: Campaign, invitees: Iterable[Invitee], rungs: Rungs | None = None) -> Rungs:
    return climb(of, ladder.lines(list(invitees), of, ZONE), (rungs or {}).values())


def standing(rungs: Rungs) -> set[tuple[str, int]]:
    return {(rung.step_id, rung.round) for rung in rungs.values() if not rung.lost}


# --- who counts ---------------------------------------------------------------------------------------


def test_those_count_who_qualified_each_once_in_the_order_of_time_and_name() -> None:
    gone = [
        invitee("x", state=InviteeState.REVOKED),
        invitee("y", state=InviteeState.BOUND, qualify_time=None),
        invitee("z", state=InviteeState.DROPPED),
    ]
    assert names([*some("cb"), *gone, invitee("a", NOON + HOUR), invitee("d", depth=2)]) == "abc"
    assert names([invitee("d", depth=2)], depth=2) == "d"


def test_of_a_local_day_and_a_local_month_the_first_count_and_in_all() -> None:
    late, early = invitee("a", LOCAL_MIDNIGHT - TICK), invitee("b", LOCAL_MIDNIGHT)  # the end of February
    assert names([late, early], per_day=1) == "ab"
    assert names([early, invitee("c", LOCAL_MIDNIGHT + DAY - TICK)], per_day=1) == "b"
    assert names([late, early], per_month=1) == "ab"
    assert names([early, invitee("c", LOCAL_MIDNIGHT + 30 * DAY)], per_month=1) == "b"
    assert names([early, invitee("c", LOCAL_MIDNIGHT + 31 * DAY)], per_month=1) == "bc"
    assert names(some("abc"), lifetime=2) == "ab"
    assert names([*some("a"), invitee("b", depth=2)], lifetime=1) == "a"


def test_who_is_beyond_the_days_limit_does_not_use_up_the_months() -> None:
    today = some("abc")
    assert names([*today, invitee("d", NOON + DAY)], per_day=1, per_month=2) == "ad"


# --- which rungs that reaches -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "reached"),
    [
        (0, set()),
        (1, set()),
        (2, {("two", 1), ("each", 1)}),
        (3, {("two", 1), ("more", 1), ("each", 1), ("each", 2)}),
        (4, {("two", 1), ("four", 1), ("more", 1), ("each", 1), ("each", 2), ("each", 3)}),
        (6, {("two", 1), ("four", 1), ("more", 1), ("more", 2), *(("each", n) for n in range(1, 6))}),
    ],
)
def test_rungs_are_reached_by_as_many_as_they_need(count: int, reached: set[tuple[str, int]]) -> None:
    assert standing(climbed(campaign(*LADDER), some("abcdef"[:count]))) == reached


def test_a_rung_belongs_to_who_stands_there_at_the_time_of_that_one() -> None:
    rungs = climbed(campaign(*LADDER), some("abcd"))
    assert {
        (rung.step_id, rung.round): (rung.attribution_id, rung.reach_time - NOON, rung.position)
        for rung in rungs.values()
    } == {
        ("two", 1): ("b", HOUR, 2),
        ("four", 1): ("d", 3 * HOUR, 4),
        ("more", 1): ("c", 2 * HOUR, 3),
        ("each", 1): ("b", HOUR, 2),
        ("each", 2): ("c", 2 * HOUR, 2),
        ("each", 3): ("d", 3 * HOUR, 2),
    }


def test_a_rung_that_is_lost_and_regained_is_the_same_rung_at_another_attempt() -> None:
    of = campaign(AT_TWO, EACH_FROM_TWO)
    reached = climbed(of, some("ab"))
    lost = climbed(of, some("a"), reached)
    assert standing(lost) == set()
    assert {rung.attempt for rung in lost.values()} == {1}
    regained = climbed(of, some("ab"), lost)
    assert standing(regained) == standing(reached)
    assert {rung.attempt for rung in regained.values()} == {2}


def test_nothing_is_new_where_nothing_changed() -> None:
    of = campaign(*LADDER)
    reached = climbed(of, some("abcd"))
    again = climbed(of, some("dcba"), reached)
    assert all(again[name] is rung for name, rung in reached.items())
    lost = climbed(of, [], reached)
    assert all(climbed(of, [], lost)[name] is rung for name, rung in lost.items())


def test_another_takes_the_place_of_one_who_does_not_count_any_more() -> None:
    of = campaign(AT_TWO)
    was = climbed(of, some("abc"))
    now = climbed(of, some("bc"), was)
    rung = now["king", "two", 1]
    assert (rung.attribution_id, rung.reach_time, rung.attempt) == ("c", NOON + 2 * HOUR, 1)


def test_each_further_invitee_has_a_rung_of_its_own_and_the_first_ones_have_none() -> None:
    """As many as count, less those before the step is open: whoever leaves, and whenever."""
    of = campaign(EACH_FROM_TWO)
    was = climbed(of, some("bc"))
    assert [(rung.attribution_id, rung.round) for rung in was.values()] == [("c", 1)]
    earlier = climbed(of, some("abc"), was)
    assert {(r.attribution_id, r.round) for r in earlier.values() if not r.lost} == {("b", 2), ("c", 1)}
    without = climbed(of, some("bc"), earlier)
    assert {(r.attribution_id, r.round) for r in without.values() if not r.lost} == {("c", 1)}
    assert without["king", "each", 2].lost


def test_a_rung_keeps_what_it_needs_and_new_ones_are_those_of_the_latest_version() -> None:
    first = campaign(AT_TWO, EVERY_THREE)
    was = climbed(first, some("abc"))
    latest = campaign(replace(AT_TWO, at=3), replace(EVERY_THREE, every=1, every_from=1), AT_FOUR, version=2)
    now = climbed(latest, some("abc"), was)
    assert standing(now) == {("two", 1), ("more", 1), ("more", 2), ("more", 3)}
    assert now["king", "two", 1] is was["king", "two", 1]
    assert now["king", "more", 2].campaign_version == 2
    fewer = climbed(latest, some("ab"), now)
    assert standing(fewer) == {("two", 1), ("more", 2)}
    dropped = climbed(campaign(AT_FOUR, version=3), some("ab"), fewer)
    assert standing(dropped) == {("two", 1), ("more", 2)}


def test_two_levels_count_each_for_itself() -> None:
    of = campaign(AT_TWO, OF_THEIRS, max_depth=2)
    assert standing(climbed(of, [*some("a"), *some("b", 2)])) == set()
    reached = climbed(of, [*some("ab"), *some("cd", 2)])
    assert standing(reached) == {("two", 1), ("theirs", 1)}
    one_level = campaign(AT_TWO, version=2)
    assert standing(climbed(one_level, [*some("ab"), *some("cd", 2)], reached)) == standing(reached)


# --- what is ahead ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "steps", "following"),
    [
        (0, (AT_TWO, AT_FOUR), Ahead("two", 2)),
        (1, (AT_TWO, AT_FOUR), Ahead("two", 1)),
        (2, (AT_TWO, AT_FOUR), Ahead("four", 2)),
        (4, (AT_TWO, AT_FOUR), None),
        (3, (AT_FOUR, EVERY_THREE), Ahead("four", 1)),
        (4, (AT_FOUR, EVERY_THREE), Ahead("more", 2)),
        (0, (EACH_FROM_TWO,), Ahead("each", 2)),
        (5, (EACH_FROM_TWO, EVERY_THREE), Ahead("each", 1)),
        (1, (OF_THEIRS,), None),
        (0, (WELCOME, AT_FOUR), Ahead("four", 4)),
    ],
)
def test_what_comes_next_is_the_nearest_that_gives_the_inviter_something(
    count: int, steps: tuple[Step, ...], following: Ahead | None
) -> None:
    of = campaign(*steps, max_depth=2)
    assert ahead(of, 1, count, climbed(of, some("abcdef"[:count]))) == following


def test_a_rung_that_was_lost_comes_next_at_its_own_position_and_none_beyond_the_cap() -> None:
    was = climbed(campaign(AT_TWO, AT_FOUR), some("ab"))
    latest = campaign(replace(AT_TWO, at=3), AT_FOUR, version=2)
    assert ahead(latest, 1, 1, climbed(latest, some("a"), was)) == Ahead("two", 1)
    capped = campaign(AT_TWO, EVERY_THREE, caps=Caps(lifetime=5))
    assert ahead(capped, 1, 3, climbed(capped, some("abc"))) is None


# --- the leaderboard ----------------------------------------------------------------------------------


def test_a_rank_is_how_many_count_and_since_when() -> None:
    of = campaign()
    assert ladder.rank(of, {}, None) is None
    two = ladder.rank(of, ladder.line(some("ab"), 1, Caps(), ZONE), None)
    assert two == Rank(campaign_id="king", count=2, reach_time=NOON + HOUR)
    assert ladder.rank(of, ladder.line(some("ba"), 1, Caps(), ZONE), two) is two
    assert ladder.rank(of, {}, two) == Rank(campaign_id="king", count=0, reach_time=NOON + HOUR)


# --- in any order -------------------------------------------------------------------------------------

TIMES = st.integers(0, 12).map(lambda halves: NOON + halves * 12 * HOUR)
TOLD = st.tuples(st.sampled_from("abcdefg"), st.sampled_from(["QUALIFIED", "REVOKED"]), TIMES)


@settings(deadline=None, max_examples=80)
@given(st.lists(TOLD, max_size=25), st.integers(1, 3), st.integers(1, 6))
def test_whatever_is_told_of_invitees_each_rung_stands_once_and_as_their_number_says(
    told: list[tuple[str, str, datetime]], per_day: int, lifetime: int
) -> None:
    of = campaign(*LADDER, caps=Caps(per_day=per_day, lifetime=lifetime))
    invitees: dict[str, Invitee] = {}
    rungs: Rungs = {}
    reached: dict[RungName, int] = {}
    for name, state, at in told:
        invitees[name] = invitee(name, at, state=InviteeState(state))
        was, rungs = rungs, climbed(of, invitees.values(), rungs)
        assert rungs.keys() >= was.keys()
        for key, rung in rungs.items():
            came = not rung.lost and (key not in was or was[key].lost)
            reached[key] = reached.get(key, 0) + came
            assert rung.attempt == reached[key]
        own = [rung.attribution_id for rung in rungs.values() if rung.each]
        assert len(own) == len(set(own))
        assert _named(rungs) == _plain(of, invitees.values()).reached("ann", NOON)


def _named(rungs: Rungs) -> set[tuple[str, int, str]]:
    return {
        (rung.step_id, 0, rung.attribution_id) if rung.each else (rung.step_id, rung.round, "")
        for rung in rungs.values()
        if not rung.lost
    }


def _plain(of: Campaign, invitees: Iterable[Invitee]) -> Plain:
    """The same, as what was bound and done."""
    plain = Plain(of)
    for one in invitees:
        if one.state is InviteeState.QUALIFIED and one.qualify_time:
            plain.bonds.append(Bound(one.attribution_id, one.member_id, "ann", NOON))
            done = Done(one.member_id, FactKind.ORDER, one.reference_id, one.qualify_time, one.amount_minor)
            plain.done.append(done)
    return plain
