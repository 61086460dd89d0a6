"""Tags, and what becomes of a member by them: changes are told once, and everybody is where it belongs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Database
from services.chassis.timestamps import instant
from services.cli.servers import Postgres
from services.groups import rules, store, tagging
from services.groups.commands import (
    AssignMember,
    JoinGroup,
    LearnFact,
    LeaveGroup,
    OrderTold,
    Reevaluate,
    RefundTold,
    Settle,
    TagMember,
    UntagMember,
)
from services.groups.domain.facts import Facts
from services.groups.domain.profile import TIER, Profile
from services.groups.domain.schemes import Programme
from services.groups.errors import TagDerived, TagTimePast, TooManyTags
from tests.groups.town import StandingClock, Town, by_event, check_seats, make_database, shop
from tests.groups.town import scheme as stored_scheme
from tests.groups.village import (
    ANN,
    BEN,
    DAY,
    HOUR,
    MIDNIGHT,
    NOON,
    TICK,
    ZONE,
    Village,
    condition,
    scheme,
    segments,
    site,
    tag,
)

LIFECYCLE = "facts.recency_days < 2 ? 'fresh' : facts.recency_days < 400 ? 'stale' : ''"


def set_tags(village: Village, *tags: Any, member: str = ANN) -> pb.TagChanges:
    changes = village.do(TagMember, member, tags=tags)
    assert isinstance(changes, pb.TagChanges)
    return changes


def buy(village: Village, order_id: str = "o", **more: Any) -> None:
    fields = {"store_id": "", "city": "", "paid_time": village.at, "amount_minor": 2000, **more}
    village.do(OrderTold, order_id=order_id, **fields)


def shown(changes: Any) -> list[tuple[str, str, str]]:
    """Changes as key, value before and value now."""
    return [(one.key, one.previous_value, one.value) for one in changes]


# --- tags ---------------------------------------------------------------------------------------------


def test_only_what_changed_is_answered_and_announced_with_what_follows() -> None:
    village = Village(double="'a' in tags ? tags.a + tags.a : ''")
    answer = set_tags(village, tag("a", "1"), tag("b", "2"))
    assert shown(answer.changes) == [("a", "", "1"), ("b", "", "2"), ("double", "", "11")]
    answer = set_tags(village, tag("a", "3"), tag("b", "2"))
    assert shown(answer.changes) == [("a", "1", "3"), ("double", "11", "33")]
    answer = village.do(UntagMember, keys=("a", "none"))
    assert shown(answer.changes) == [("a", "3", ""), ("double", "33", "")]
    told = village.told(epb.TagsChanged)
    assert [len(one.changes) for one in told] == [3, 2, 2]
    assert list(told[-1].changes) == list(answer.changes)
    assert village.tags() == {"b": "2"}


def test_a_tag_that_says_the_same_is_no_change_but_one_that_says_it_otherwise_is() -> None:
    village = Village()
    set_tags(village, tag("a", "1"))
    before = village.profile().tags["a"]
    assert before.set_time == NOON
    village.at += HOUR
    assert not set_tags(village, tag("a", "1")).changes
    assert not village.do(UntagMember, keys=("none",)).changes
    assert village.profile().tags["a"] is before
    assert len(village.told(epb.TagsChanged)) == 1
    assert shown(set_tags(village, tag("a", "1", "other")).changes) == [("a", "1", "1")]
    (change,) = set_tags(village, tag("a", "1", "other", village.at + DAY)).changes
    assert instant(change.expire_time) == village.at + DAY


def test_a_tag_that_a_rule_gives_is_nobody_elses() -> None:
    village = Village(lifecycle=LIFECYCLE)
    for refused in (
        village.answer(TagMember, tags=(tag("a"), tag("lifecycle"))),
        village.answer(UntagMember, keys=("a", "lifecycle")),
    ):
        assert isinstance(refused, TagDerived)
        assert refused.metadata == {"key": "lifecycle"}
    assert village.tags() == {}


def test_a_tag_of_the_past_and_one_too_many_are_refused() -> None:
    village = Village(double="'a'")
    past = village.answer(TagMember, tags=(tag("a", expire_time=NOON),))
    assert isinstance(past, TagTimePast)
    assert past.metadata == {"key": "a"}
    for start in range(0, tagging.TAGS, 100):
        set_tags(village, *(tag(str(number)) for number in range(start, start + 100)))
    many = village.answer(TagMember, tags=(tag("one-more"),))
    assert isinstance(many, TooManyTags)
    assert many.metadata == {"limit": str(tagging.TAGS)}
    assert set_tags(village, tag("0", "other")).changes  # one that is there is none more
    assert len(village.tags()) == tagging.TAGS + 1


# --- time ---------------------------------------------------------------------------------------------


def test_a_tag_ends_at_its_time_and_what_followed_from_it_too() -> None:
    village = Village(vip="'card' in tags ? 'yes' : ''")
    set_tags(village, tag("card", expire_time=NOON + HOUR))
    assert village.profile().next_due_time == NOON + HOUR
    village.wait(NOON + HOUR - TICK)
    assert village.tags() == {"card": "yes", "vip": "yes"}
    village.wait(NOON + HOUR)
    assert village.tags() == {}
    ended = village.told(epb.TagsChanged)[-1]
    assert [(one.key, one.removed) for one in ended.changes] == [("card", True), ("vip", True)]
    assert village.profile().next_due_time is None


def test_time_alone_moves_a_member_at_local_midnight_until_the_horizon() -> None:
    village = Village(lifecycle=LIFECYCLE)
    village.put_programme(pb.Programme(horizon_days=90), lifecycle=LIFECYCLE)
    buy(village)
    assert (village.tags(), village.profile().next_due_time) == ({"lifecycle": "fresh"}, MIDNIGHT)
    village.wait(MIDNIGHT)
    assert (village.tags(), village.profile().next_due_time) == ({"lifecycle": "fresh"}, MIDNIGHT + DAY)
    village.wait(MIDNIGHT + DAY - TICK)
    assert village.tags() == {"lifecycle": "fresh"}
    village.wait(MIDNIGHT + DAY)
    assert shown(village.told(epb.TagsChanged)[-1].changes) == [("lifecycle", "fresh", "stale")]
    village.wait(MIDNIGHT + 88 * DAY)
    assert village.profile().next_due_time == MIDNIGHT + 89 * DAY
    village.wait(MIDNIGHT + 89 * DAY)
    assert village.profile().next_due_time is None
    assert len(village.told(epb.TagsChanged)) == 2


def test_what_is_due_comes_before_the_command_that_finds_it_due() -> None:
    village = Village()
    set_tags(village, tag("a", "1", expire_time=NOON + HOUR))
    village.at = NOON + 2 * HOUR
    assert shown(set_tags(village, tag("a", "2")).changes) == [("a", "", "2")]
    assert [len(one.changes) for one in village.told(epb.TagsChanged)] == [1, 1, 1]


# --- groups by tag ------------------------------------------------------------------------------------


def by_tag(**more: Any) -> pb.Scheme:
    split = segments(gold="'gold' in tags", silver="'silver' in tags")
    return scheme("BY_TAG", **{"segments": split, **more})


def test_a_member_is_seated_in_its_segments_group_and_moves_with_it() -> None:
    village = Village(by_tag())
    set_tags(village, tag("silver"))
    (seat,) = village.told(epb.MemberAssigned)
    assert (seat.segment_id, village.anchor()) == ("silver", "silver")
    (opened,) = village.told(epb.GroupOpened, seat.group_id)
    assert (opened.segment_id, opened.reason) == ("silver", epb.GROUP_OPEN_REASON_FIRST)
    set_tags(village, tag("gold"))
    (moved,) = village.told(epb.MemberMoved)
    assert (moved.reason, moved.segment_id) == (epb.MEMBER_MOVE_REASON_TAGS_CHANGED, "gold")
    assert (moved.membership_id, moved.from_group_id) == (seat.membership_id, seat.group_id)
    village.forget()
    set_tags(village, tag("other"))
    village.do(Reevaluate)
    assert village.kinds() == ["TagsChanged"]


def test_everybody_finds_a_seat_for_the_next_group_opens_by_itself() -> None:
    village = Village(by_tag())
    for number in range(5):
        set_tags(village, tag("gold"), member=f"m{number}")
    assert sorted(group.members for group in village.seen.groups.values()) == [1, 2, 2]


@pytest.mark.parametrize("policy", ["KEEP", "NOTIFY", "REMOVE"])
def test_who_is_in_no_segment_any_more_is_kept_told_of_or_removed(policy: str) -> None:
    village = Village(by_tag(on_threshold_lost=f"THRESHOLD_LOST_POLICY_{policy}"))
    set_tags(village, tag("gold"))
    village.do(JoinGroup, group_id=next(iter(village.seen.groups)), occur_time=NOON)
    village.forget()
    for key in ("a", "b"):
        village.do(UntagMember, keys=("gold",))
        set_tags(village, tag(key))  # told once for each time that it is lost
    told = [kind for kind in village.kinds() if kind != "TagsChanged"]
    assert told == {"KEEP": [], "NOTIFY": ["ThresholdLost"], "REMOVE": ["MemberLeft"]}[policy]
    if policy == "REMOVE":
        (left,) = village.told(epb.MemberLeft)
        assert left.reason == epb.MEMBER_LEAVE_REASON_THRESHOLD_LOST
    else:
        current = village.stay()
        assert current is not None
        assert current.lost_condition == "segment"
    set_tags(village, tag("gold"))
    current = village.stay()
    assert current is not None
    assert (current.anchor, current.lost_condition) == ("gold", "")
    village.do(UntagMember, keys=("gold",))
    assert len(village.told(epb.ThresholdLost)) == (2 if policy == "NOTIFY" else 0)


def test_a_seat_that_nobody_came_to_is_not_kept_again_until_the_segment_changes() -> None:
    village = Village(by_tag(seat_hold_minutes=60))
    set_tags(village, tag("gold"))
    village.wait(HOUR)
    assert [one.reason for one in village.told(epb.SeatLapsed)] == [epb.SEAT_LAPSE_REASON_TIMEOUT]
    set_tags(village, tag("other"))
    village.do(UntagMember, keys=("gold",))
    set_tags(village, tag("gold"))
    assert village.stay() is None
    village.do(AssignMember, scheme_id="scheme")
    assert village.anchor() == "gold"
    village.wait(HOUR)
    village.do(UntagMember, keys=("gold",))
    set_tags(village, tag("silver"))
    assert village.anchor() == "silver"


def test_who_left_is_not_asked_again_and_in_another_segment_only_after_the_cooldown() -> None:
    village = Village(by_tag(cooldown_hours=2))
    set_tags(village, tag("silver"))
    (group_id,) = village.seen.groups
    village.do(JoinGroup, group_id=group_id, occur_time=NOON)
    village.do(LeaveGroup, group_id=group_id, occur_time=NOON)
    village.at += DAY
    village.do(Reevaluate)
    assert village.stay() is None
    village.at = NOON + 2 * HOUR - TICK
    set_tags(village, tag("gold"))
    assert village.stay() is None
    village.at = NOON + 2 * HOUR
    village.do(Reevaluate)
    assert village.anchor() == "gold"


def test_a_seat_that_was_taken_back_is_given_again_when_the_threshold_is_met_again() -> None:
    policy = {"on_threshold_lost": "THRESHOLD_LOST_POLICY_REMOVE", "cooldown_hours": 48}
    village = Village(by_tag(threshold=[condition("paying", "tier != ''")], **policy))
    set_tags(village, tag("gold"))
    assert village.stay() is None
    for version, tier in enumerate(("fan", "", "fan"), 1):
        village.do(LearnFact, name=TIER, value=tier, version=(1, version))
        assert (village.stay() is None) is (tier == "")
    (lapsed,) = village.told(epb.SeatLapsed)
    assert lapsed.reason == epb.SEAT_LAPSE_REASON_THRESHOLD_LOST


def test_whom_a_scheme_is_not_for_gets_no_seat_but_keeps_the_one_it_has() -> None:
    village = Village(by_tag(audience=[condition("loud", "!('quiet' in tags)")]))
    set_tags(village, tag("quiet"), tag("silver"), member=BEN)
    assert village.stay(member=BEN) is None
    set_tags(village, tag("silver"))
    set_tags(village, tag("quiet"), tag("gold"))
    assert village.anchor() == "gold"


def test_of_a_scheme_that_takes_no_more_members_all_stays_as_it_is() -> None:
    lost = {"on_threshold_lost": "THRESHOLD_LOST_POLICY_REMOVE"}
    village = Village(by_tag(**lost))
    set_tags(village, tag("gold"))
    village.put(by_tag(version=2, withdrawn=True, **lost))
    village.forget()
    village.do(UntagMember, keys=("gold",))
    set_tags(village, tag("gold"), member=BEN)
    assert (village.anchor(), village.kinds()) == ("gold", ["TagsChanged"])
    assert village.stay(member=BEN) is None


def test_a_new_version_of_a_scheme_or_programme_holds_from_the_next_look_on() -> None:
    village = Village(by_tag(), mark="'1'")
    set_tags(village, tag("silver"))
    village.put(by_tag(version=2, segments=segments(all="true")))
    village.put_programme(pb.Programme(), other="'2'")
    village.forget()
    village.do(Reevaluate)
    assert (village.anchor(), village.tags()) == ("all", {"silver": "yes", "other": "2"})
    assert village.kinds() == ["TagsChanged", "MemberMoved"]
    village.forget()
    village.do(Reevaluate)
    assert village.kinds() == []


# --- thresholds of other schemes ----------------------------------------------------------------------


def test_a_threshold_that_is_lost_is_told_once_with_the_first_condition() -> None:
    asked = [condition("loyal", "'loyal' in tags"), condition("near", "'near' in tags")]
    local = scheme("BY_LOCATION", threshold=asked, on_threshold_lost="THRESHOLD_LOST_POLICY_NOTIFY")
    village = Village(local, sites=(site("s"),))
    set_tags(village, tag("loyal"), tag("near"))
    assert village.stay() is None  # nobody asked for it
    village.do(AssignMember, scheme_id="scheme", home_site_id="s")
    village.forget()
    village.do(UntagMember, keys=("near",))
    village.do(UntagMember, keys=("loyal",))
    current = village.stay()
    assert current is not None
    assert current.lost_condition == "loyal"
    assert [one.condition for one in village.told(epb.ThresholdLost)] == ["near"]
    set_tags(village, tag("loyal"), tag("near"))
    village.do(UntagMember, keys=("near",))
    assert [one.condition for one in village.told(epb.ThresholdLost)] == ["near", "near"]


def test_facts_that_time_moves_end_a_membership_that_depends_on_them() -> None:
    asked = [condition("active", "facts.recency_days < 2")]
    local = scheme("BY_LOCATION", threshold=asked, on_threshold_lost="THRESHOLD_LOST_POLICY_REMOVE")
    village = Village(local, sites=(site("s"),))
    buy(village)
    village.do(AssignMember, scheme_id="scheme", home_site_id="s")
    village.do(JoinGroup, group_id=next(iter(village.seen.groups)), occur_time=NOON)
    village.wait(MIDNIGHT + DAY - TICK)
    assert village.anchor() == "s"
    village.wait(MIDNIGHT + DAY)
    assert village.stay() is None
    (left,) = village.told(epb.MemberLeft)
    assert left.reason == epb.MEMBER_LEAVE_REASON_THRESHOLD_LOST


# --- whatever comes -----------------------------------------------------------------------------------

KEYS = ("gold", "silver", "x")
CHANGES = st.one_of(
    st.tuples(st.just("tag"), st.sampled_from(KEYS), st.sampled_from(["1", "2"]), st.integers(0, 3)),
    st.tuples(st.just("untag"), st.sampled_from(KEYS)),
    st.tuples(st.just("tier"), st.sampled_from(["", "fan"]), st.integers(1, 9)),
    st.tuples(st.just("buy"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.integers(1, 50)),
)


def change(village: Village, what: tuple[Any, ...]) -> None:
    match what:
        case ("tag", key, value, hours):
            set_tags(village, tag(key, value, expire_time=village.at + hours * HOUR if hours else None))
        case ("untag", key):
            village.do(UntagMember, keys=(key,))
        case ("tier", tier, version):
            village.do(LearnFact, name=TIER, value=tier, version=(1, version))
        case ("buy", number):
            buy(village, f"o{number}")
        case ("wait", hours):
            village.wait(timedelta(hours=hours))


def retold(village: Village) -> dict[str, str]:
    """The member's tags, as somebody knows them who only heard what was told."""
    heard: dict[str, str] = {}
    for told in village.told(epb.TagsChanged):
        for one in told.changes:
            assert heard.get(one.key, "") == one.previous_value
            if one.removed:
                del heard[one.key]
            else:
                heard[one.key] = one.value
    return heard


def belongs(tags: dict[str, str], tier: str) -> str | None:
    """The segment of a member, by the words of the scheme below."""
    if "gold" in tags and tier == "fan":
        return "gold"
    if tags.get("life") == "fresh":
        return "fresh"
    return "x" if tags.get("x") == "1" else None


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, max_size=12))
def test_whatever_comes_a_member_is_where_it_belongs_and_every_change_was_told(
    changes: list[tuple[Any, ...]],
) -> None:
    split = segments(gold="'gold' in tags && tier == 'fan'", fresh="tags.life == 'fresh'", x="tags.x == '1'")
    both = "'gold' in tags && 'silver' in tags ? tags.gold + tags.silver : ''"
    made = by_tag(segments=split, on_threshold_lost="THRESHOLD_LOST_POLICY_REMOVE")
    village = Village(made, life=LIFECYCLE, both=both)
    for what in changes:
        change(village, what)
        profile, tags = village.profile(), village.tags()
        assert retold(village) == tags
        assert village.programme.tags_of(profile, village.scene().known(profile), village.at) == profile.tags
        assert tags.get("both", "") == (
            tags["gold"] + tags["silver"] if {"gold", "silver"} <= tags.keys() else ""
        )
        assert village.anchor() == belongs(tags, profile.facts.get(TIER, ""))


# --- on a real database -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own: the schemes and the programme are everybody's."""
    return make_database(groups_server)


@pytest.fixture
async def towns(town_url: str) -> AsyncIterator[tuple[Town, Town]]:
    """Two processes of the service, in one time."""
    clock = StandingClock()
    databases = [await Database.open(town_url, size=2, name=f"town {number}") for number in range(2)]
    yield Town(databases[0], clock), Town(databases[1], clock)
    for database in databases:
        await database.close()


async def test_everybody_who_is_tagged_at_once_is_seated_once_and_moves_with_its_facts(
    towns: tuple[Town, Town],
) -> None:
    town = towns[0]
    await town.put_sites(shop("corner", 0))
    split = segments(fresh="tags.life == 'fresh'", stale="tags.life == 'stale'", vip="'vip' in tags")
    await town.put(
        stored_scheme("tagged", "BY_TAG", segments=split, seat_hold_minutes=44640),
        stored_scheme("local", on_threshold_lost="THRESHOLD_LOST_POLICY_NOTIFY"),
    )
    await town.put_programme(tag_rules=[{"key": "life", "expression": LIFECYCLE}])
    members = [f"m{number}" for number in range(10)]
    await asyncio.gather(*(towns[n % 2].tag(member, vip="yes") for n, member in enumerate(members)))
    await check_seats(town.database, ["tagged"])
    assert {(await town.membership(member, "tagged")).anchor for member in members} == {"vip"}
    assert [group.members for group in await town.groups("tagged")] == [3, 3, 3, 1]

    await asyncio.gather(*(towns[n % 2].buy(member, "corner") for n, member in enumerate(members)))
    assert {(await town.membership(member, "tagged")).anchor for member in members} == {"fresh"}
    (corner,) = await town.groups("local")
    for member in members:
        (offer,) = await town.heard(member, epb.EntryOffered)
        assert [group.group_id for group in offer.groups] == [corner.group_id]

    town.wait(days=2)
    await asyncio.gather(*(towns[n % 2].do(Settle, member) for n, member in enumerate(members)))
    for member in members:
        profile = await town.profile(member)
        assert {key: one.value for key, one in profile.tags.items()} == {"vip": "yes", "life": "stale"}
        current = profile.active("tagged")
        assert current is not None
        assert (current.anchor, current.number) == ("stale", 1)
        assert [one for one in await town.told(member) if one.startswith("Member")] == [
            "MemberAssigned",
            "MemberMoved",
            "MemberMoved",
        ]
    await check_seats(town.database, ["tagged", "local"])


async def test_however_many_schemes_a_change_or_an_order_is_about_it_comes_through(
    towns: tuple[Town, Town],
) -> None:
    town, names = towns[0], [f"many-{number:02}" for number in range(16)]
    split = segments(one="tags.many == '1'", two="tags.many == '2'")
    await town.put_sites(shop("plaza", 9000))
    await town.put(*(stored_scheme(name, "BY_TAG", segments=split) for name in names))
    asked = [condition("many", "'many' in tags")]
    await town.put(*(stored_scheme(f"at-{name}", audience=asked) for name in names))
    for value, anchor in (("1", "one"), ("2", "two")):
        await town.tag("max", many=value)
        assert {(await town.membership("max", name)).anchor for name in names} == {anchor}
    await town.buy("max", "plaza")
    (offer,) = await town.heard("max", epb.EntryOffered)
    assert {f"at-{name}" for name in names} <= {group.scheme_id for group in offer.groups}


async def test_what_was_known_is_known_again_by_another_process(towns: tuple[Town, Town]) -> None:
    one, other = towns
    ends = one.at + HOUR
    await one.do(TagMember, "zoe", tags=(tag("a", "1"), tag("b", "2", expire_time=ends)))
    await other.do(UntagMember, "zoe", keys=("a",))
    await one.do(LearnFact, "zoe", name=TIER, value="fan", version=(1, 1), **by_event("zoe"))
    await other.do(RefundTold, "zoe", order_id="o", refund_id="r", amount_minor=300, **by_event("zoe"))
    await one.do(
        OrderTold, "zoe", order_id="o", store_id="", city="", paid_time=one.at, amount_minor=1000,
        **by_event("zoe"),
    )  # fmt: skip
    profile = await other.profile("zoe")
    assert ({*profile.tags} - {"life"}, profile.facts) == ({"b"}, {TIER: "fan"})
    assert profile.orders["o"].purchase is not None
    assert profile.orders["o"].purchase.spent_minor == 700
    assert (profile.evaluate_time, profile.next_due_time) == (ends, ends)
    other.wait(hours=1)
    await other.do(Settle, "zoe")
    assert {*(await one.profile("zoe")).tags} <= {"life"}


async def test_of_a_long_history_only_what_is_recent_is_read_and_a_late_refund_still_counts(
    towns: tuple[Town, Town],
) -> None:
    one, other = towns

    async def tell(town: Town, number: int, store: str, days: int) -> None:
        told = {"store_id": store, "city": "", "paid_time": one.at - days * DAY, "amount_minor": 500}
        await town.do(OrderTold, "yan", order_id=f"y{number}", **told, **by_event("yan"))

    async def refund(town: Town, number: int) -> None:
        said = {"order_id": f"y{number}", "refund_id": "r", "amount_minor": 500}
        await town.do(RefundTold, "yan", **said, **by_event("yan"))

    async def known() -> tuple[Profile, Facts]:
        profile = await other.profile("yan")
        return profile, rules.facts_of(profile, Programme(), one.at, ZONE)

    for number in range(6):
        await tell(towns[number % 2], number, "old" if number < 3 else "new", 300 - 10 * number)
    await tell(one, 6, "new", 1)
    profile, found = await known()
    assert profile.orders.keys() == {"y6"}
    assert (found.orders_total, found.first_days, found.home_site) == (7, 300, "new")
    await refund(other, 0)  # the first there is
    await refund(one, 5)
    await tell(other, 4, "new", 260)  # told again
    await tell(one, 7, "old", 200)
    await asyncio.gather(tell(one, 8, "old", 310), refund(one, 8))
    profile, found = await known()
    assert profile.orders.keys() == {"y6"}
    assert (found.orders_total, found.first_days, found.home_site) == (6, 290, "new")
    async with one.database.read() as connection:
        rows = await store.order_page(connection, "yan", None, 100)
    assert profile.past == profile.past.anew(
        purchase for row in rows if (purchase := store.to_order(row).purchase) is not None
    )
