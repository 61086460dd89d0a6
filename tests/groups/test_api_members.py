"""Members over a real channel: what is near, seats, who came and left, what is known."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from grpc import StatusCode
from loyalty.groups.v1 import groups_service_pb2 as pb

from tests.groups.calls import (
    NO_GROUP,
    Maker,
    a_region,
    a_site,
    assign,
    at,
    dissolve,
    flash,
    groups_of,
    instant,
    join,
    known,
    leave,
    members_of,
    nearby,
    open_group,
    put_scheme,
    put_site,
    read_group,
    reconcile,
    seat,
    settle,
    stamp,
    tag,
    tagged,
    untag,
)
from tests.groups.requests import CALENDAR
from tests.support import Groups, fresh, refused

WISH = {"segments": tagged("wish", tea="tea", coffee="coffee")}

# --- what is near -------------------------------------------------------------------------------------


def test_the_nearest_groups_with_a_seat_are_shown_in_order(groups: Groups, make: Maker) -> None:
    region, sites = settle(groups, 300, 100, 200)
    scheme = make(overflow="OVERFLOW_NEXT_NEAREST")
    opened = open_group(groups, scheme, site_id=sites[1].site_id)
    found = nearby(groups, scheme, location=at(region), page_size=3)
    assert found.basis == pb.ASSIGN_BASIS_EXACT
    shown = [(one.site.site_id, one.distance_m, one.group.group_id) for one in found.groups]
    near, middle, far = sites[1].site_id, sites[2].site_id, sites[0].site_id
    assert shown == [(near, 100, opened.group_id), (middle, 200, ""), (far, 300, "")]
    assert found.groups[0].group == read_group(groups, opened)
    for _ in range(2):
        seat(groups, fresh("member"), scheme, chosen_group_id=opened.group_id)
    # One group a site: there is no seat at the nearest.
    [first] = nearby(groups, scheme, location=at(region), page_size=1).groups
    assert (first.site.site_id, first.distance_m) == (middle, 200)


def test_where_the_next_group_opens_by_itself_a_site_has_always_a_seat(groups: Groups, make: Maker) -> None:
    region, [site] = settle(groups)
    scheme = make()
    for number in range(4):
        [found] = nearby(groups, scheme, location=at(region), page_size=1).groups
        assert found.site.site_id == site.site_id
        mine = seat(groups, fresh("member"), scheme, location=at(region))
        assert mine.group.seq == number // 2 + 1
        assert found.group.group_id in ("", mine.group.group_id)


def test_near_is_the_city_the_site_or_the_schemes_default_where_no_location_is_given(
    groups: Groups, make: Maker
) -> None:
    _, [west, middle, east] = settle(groups, 0, 1000, 2000, city=fresh("city"))
    scheme = make(default_site_id=east.site_id)

    def nearest(**by: Any) -> tuple[str, int]:
        found = nearby(groups, scheme, page_size=1, **by)
        return found.groups[0].site.site_id, found.basis

    assert nearest(city=west.city) == (middle.site_id, pb.ASSIGN_BASIS_CITY)
    assert nearest(city=fresh("nowhere")) == (east.site_id, pb.ASSIGN_BASIS_DEFAULT)
    assert nearest(home_site_id=west.site_id) == (west.site_id, pb.ASSIGN_BASIS_HOME_SITE)
    assert nearest() == (east.site_id, pb.ASSIGN_BASIS_DEFAULT)
    with refused(StatusCode.NOT_FOUND, "SITE_UNKNOWN"):
        nearest(home_site_id=fresh("site"))


def test_groups_of_no_site_are_the_default_once_one_was_opened(groups: Groups, make: Maker) -> None:
    scheme, member = make(), fresh("member")
    for ask in (nearby, lambda *_: seat(groups, member, scheme)):
        with refused(StatusCode.FAILED_PRECONDITION, "NO_SITE"):
            ask(groups, scheme)
    opened = open_group(groups, scheme)
    [found] = nearby(groups, scheme).groups
    assert (found.group, found.HasField("site"), found.distance_m) == (opened, False, 0)
    mine = seat(groups, member, scheme)
    assert (mine.group.group_id, mine.basis) == (opened.group_id, pb.ASSIGN_BASIS_DEFAULT)


def test_near_is_asked_of_schemes_by_place_that_take_members(groups: Groups, make: Maker) -> None:
    region, _ = settle(groups)
    with refused(StatusCode.FAILED_PRECONDITION, "WRONG_KIND") as refusal:
        nearby(groups, make("INVITE"), location=at(region))
    assert refusal.metadata == {"kind": "INVITE"}
    with refused(StatusCode.NOT_FOUND, "SCHEME_UNKNOWN"):
        nearby(groups, pb.Scheme(scheme_id=fresh("scheme")), location=at(region))
    scheme = make()
    scheme.withdrawn = True
    put_scheme(groups, scheme)
    assert not nearby(groups, scheme, location=at(region)).groups


# --- seats --------------------------------------------------------------------------------------------


def test_a_seat_says_where_to_go_and_until_when_it_is_kept(groups: Groups, make: Maker) -> None:
    region, [site] = settle(groups)
    scheme = make(welcome="欢迎来到{group}，{site}", calendar=CALENDAR, seat_hold_minutes=90)
    member = fresh("member")
    mine = seat(groups, member, scheme, location=at(region, 40), entry_source="notice")
    assert mine.membership == pb.Membership(
        membership_id=mine.membership.membership_id,
        member_id=member,
        scheme_id=scheme.scheme_id,
        group_id=mine.group.group_id,
        site_id=site.site_id,
        number=1,
        status=pb.MEMBERSHIP_STATUS_ASSIGNED,
        basis=pb.ASSIGN_BASIS_EXACT,
        entry_source="notice",
        assign_time=stamp(groups.now),
        seat_expire_time=stamp(groups.now + timedelta(minutes=90)),
    )
    assert (mine.distance_m, mine.basis) == (40, pb.ASSIGN_BASIS_EXACT)
    assert mine.welcome == f"欢迎来到福利群，{site.name}"
    assert [one.benefit_code for one in mine.benefits] == ["kings-day", "payday", "holiday"]
    assert [(one.note, one.group_id) for one in mine.explanation] == [
        (pb.ASSIGN_NOTE_OPENED, mine.group.group_id)
    ]
    again = seat(groups, member, scheme, location=at(region, 40))
    assert (again.membership, again.explanation[0].note) == (mine.membership, pb.ASSIGN_NOTE_KEPT)
    [listed] = groups_of(groups, member)
    assert (listed.membership, listed.group) == (mine.membership, mine.group)
    assert members_of(groups, mine.group) == [mine.membership]


def test_a_membership_moves_only_where_another_site_is_nearer_by_the_margin(
    groups: Groups, make: Maker
) -> None:
    region, [here, there] = settle(groups, 0, 1000)
    scheme, member = make(margin_m=500), fresh("member")
    mine = seat(groups, member, scheme, location=at(region))
    kept = seat(groups, member, scheme, location=at(region, 700))
    assert (kept.membership, kept.distance_m) == (mine.membership, 700)
    assert pb.ASSIGN_NOTE_WITHIN_MARGIN in [one.note for one in kept.explanation]
    moved = seat(groups, member, scheme, location=at(region, 900))
    assert moved.membership.membership_id == mine.membership.membership_id
    assert (mine.group.site_id, moved.group.site_id) == (here.site_id, there.site_id)
    assert moved.explanation[-1].note == pb.ASSIGN_NOTE_MOVED_FROM
    assert read_group(groups, mine.group).seats_taken == 0


def test_a_repeat_may_come_from_another_place_of_the_same_cell(groups: Groups, make: Maker) -> None:
    region, _ = settle(groups, 5000)
    scheme, member, request_id = make(), fresh("member"), fresh("assign")
    first = seat(groups, member, scheme, request_id=request_id, location=at(region, 5000))
    again = seat(groups, member, scheme, request_id=request_id, location=at(region, 5300))
    assert again == first
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        seat(groups, member, scheme, request_id=request_id, location=at(region, 50_000))


def test_the_chosen_group_is_given_or_others_are_named(groups: Groups, make: Maker) -> None:
    region, [site, other] = settle(groups, 0, 100)
    scheme, member = make(overflow="OVERFLOW_NEXT_NEAREST"), fresh("member")
    chosen = open_group(groups, scheme, site_id=site.site_id)
    near = open_group(groups, scheme, site_id=other.site_id)
    mine = seat(groups, member, chosen_group_id=chosen.group_id)
    assert (mine.group.group_id, mine.basis) == (chosen.group_id, pb.ASSIGN_BASIS_CHOSEN)
    seat(groups, fresh("member"), scheme, location=at(region))
    with refused(StatusCode.FAILED_PRECONDITION, "GROUP_FULL") as refusal:
        seat(groups, fresh("member"), chosen_group_id=chosen.group_id)
    assert refusal.metadata["next_group_ids"].split(",")[0] == near.group_id
    # Who is sent by the scheme goes to the next nearest.
    sent = seat(groups, fresh("member"), scheme, location=at(region))
    assert sent.group.group_id == near.group_id
    assert [one.note for one in sent.explanation] == [pb.ASSIGN_NOTE_FULL, pb.ASSIGN_NOTE_TAKEN]
    for wrong in ({"chosen_group_id": NO_GROUP}, {"scheme": make(), "chosen_group_id": near.group_id}):
        with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
            seat(groups, member, **wrong)


def test_a_full_sale_is_full(groups: Groups, make: Maker) -> None:
    scheme = make("FLASH")
    opened = flash(groups, scheme)
    for _ in range(2):
        seat(groups, fresh("member"), scheme)
    assert read_group(groups, opened).status == pb.GROUP_STATUS_FULL
    with refused(StatusCode.FAILED_PRECONDITION, "GROUP_FULL") as refusal:
        seat(groups, fresh("member"), scheme)
    assert refusal.metadata == {"next_group_ids": ""}


def test_a_threshold_names_the_first_condition_that_fails(groups: Groups, make: Maker) -> None:
    conditions = {"fan": "tags.fan == 'yes'", "adult": "tags.adult == 'yes'"}
    threshold = [{"name": name, "expression": text} for name, text in conditions.items()]
    region, _ = settle(groups)
    scheme, member = make(threshold=threshold), fresh("member")
    for name in conditions:
        with refused(StatusCode.FAILED_PRECONDITION, "THRESHOLD_NOT_MET") as refusal:
            seat(groups, member, scheme, location=at(region))
        assert refusal.metadata == {"condition": name}
        tag(groups, member, **{name: "yes"})
    seat(groups, member, scheme, location=at(region))


def test_where_no_scheme_is_named_all_that_are_for_the_member_answer(groups: Groups, make: Maker) -> None:
    region, _ = settle(groups)
    gold = [{"name": "gold", "expression": "tags.level == 'gold'"}]
    last, first = make(priority=2), make(priority=1)
    refusing = make(priority=3, threshold=gold)
    make(audience=gold)
    make("INVITE")
    answer = assign(groups, fresh("member"), location=at(region))
    assert [one.group.scheme_id for one in answer.assignments] == [first.scheme_id, last.scheme_id]
    [refusal] = answer.refusals
    assert (refusal.scheme_id, refusal.reason) == (refusing.scheme_id, "THRESHOLD_NOT_MET")
    assert dict(refusal.metadata) == {"condition": "gold"}


def test_fans_are_seated_by_who_invited_them(groups: Groups, make: Maker) -> None:
    scheme = make("INVITE")
    mine = seat(groups, fresh("fan"), scheme, inviter_id="kol")
    assert (mine.group.inviter_id, mine.basis) == ("kol", pb.ASSIGN_BASIS_INVITER)
    with refused(StatusCode.FAILED_PRECONDITION, "INVITER_NEEDED"):
        seat(groups, fresh("fan"), scheme)
    scheme.withdrawn = True
    put_scheme(groups, scheme)
    with refused(StatusCode.FAILED_PRECONDITION, "SCHEME_WITHDRAWN"):
        seat(groups, fresh("fan"), scheme, inviter_id="kol")
    with refused(StatusCode.NOT_FOUND, "SCHEME_UNKNOWN"):
        seat(groups, fresh("fan"), scheme_id=fresh("scheme"))


def test_members_by_tag_are_seated_by_themselves_and_follow_their_segment(
    groups: Groups, make: Maker
) -> None:
    scheme, member = make("BY_TAG", **WISH), fresh("member")
    with refused(StatusCode.FAILED_PRECONDITION, "NOT_IN_SEGMENT"):
        seat(groups, member, scheme)
    for wish in ("tea", "coffee"):
        tag(groups, member, wish=wish)
        [mine] = groups_of(groups, member)
        assert (mine.membership.segment_id, mine.group.segment_id) == (wish, wish)
        assert seat(groups, member, scheme).membership == mine.membership
    other = open_group(groups, scheme, segment_id="tea")
    with refused(StatusCode.FAILED_PRECONDITION, "NOT_IN_SEGMENT"):
        seat(groups, member, chosen_group_id=other.group_id)


# --- who came and who left ----------------------------------------------------------------------------


def test_a_join_confirms_the_seat_and_a_leave_names_the_next_best_group(groups: Groups, make: Maker) -> None:
    region, [site, other] = settle(groups, 0, 100)
    scheme, member = make(cooldown_hours=24), fresh("member")
    nearest = open_group(groups, scheme, site_id=other.site_id)
    mine = seat(groups, member, scheme, location=at(region))
    assert mine.group.site_id == site.site_id
    joined = join(groups, member, mine.group, entry_source="poster")
    assert (joined.stale, joined.overbooked) == (False, False)
    assert joined.membership.status == pb.MEMBERSHIP_STATUS_JOINED
    assert joined.membership.entry_source == "poster"
    assert not joined.membership.HasField("seat_expire_time")
    left = leave(groups, member, mine.group)
    assert left.membership.status == pb.MEMBERSHIP_STATUS_LEFT
    assert left.next_group.group_id == nearest.group_id
    assert groups_of(groups, member) == []
    [ended] = groups_of(groups, member, include_ended=True)
    assert ended.membership == left.membership
    with refused(StatusCode.FAILED_PRECONDITION, "COOLDOWN") as refusal:
        seat(groups, member, scheme, location=at(region))
    assert refusal.metadata == {"until": (groups.now + timedelta(days=1)).isoformat()}


def test_who_comes_without_a_seat_is_never_refused(groups: Groups, make: Maker) -> None:
    group = open_group(groups, make())
    seated = [join(groups, fresh("member"), group) for _ in range(4)]
    assert [one.overbooked for one in seated] == [False, False, True, True]
    full = read_group(groups, group)
    assert (full.seats_taken, full.overbooked, full.status) == (2, 2, pb.GROUP_STATUS_FULL)
    assert len(members_of(groups, group, page_size=1)) == 4
    gone = leave(groups, seated[0].membership.member_id, group, removed=True)
    assert gone.membership.status == pb.MEMBERSHIP_STATUS_REMOVED
    assert read_group(groups, group).overbooked == 1


def test_facts_are_told_in_any_order(groups: Groups, make: Maker) -> None:
    group, member = open_group(groups, make()), fresh("member")
    join(groups, member, group)
    before = {"occur_time": stamp(groups.now - timedelta(hours=1))}
    late = leave(groups, member, group, **before)
    assert (late.stale, late.membership.status) == (True, pb.MEMBERSHIP_STATUS_JOINED)
    leave(groups, member, group)
    assert join(groups, member, group, **before).stale
    assert read_group(groups, group).seats_taken == 0
    for tell in (join, leave):
        with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
            tell(groups, member, NO_GROUP)
    # Ahead of the clock counts as now.
    ahead = join(groups, fresh("member"), group, occur_time=stamp(groups.now + timedelta(days=1)))
    assert instant(ahead.membership.join_time) == groups.now


def test_a_list_of_the_platforms_is_compared_and_ours_made_like_it(groups: Groups, make: Maker) -> None:
    group = open_group(groups, make(capacity=9))
    gone, here, arrived, waiting, new = (fresh("member") for _ in range(5))
    for member in (gone, here):
        join(groups, member, group)
    for member in (arrived, waiting):
        seat(groups, member, chosen_group_id=group.group_id)
    found = reconcile(groups, group, here, arrived, new)
    assert (list(found.missing), list(found.unknown), list(found.arrived)) == ([gone], [new], [arrived])
    assert reconcile(groups, group, here, arrived, new) == found
    request_id = fresh("list")
    for _ in range(2):
        assert reconcile(groups, group, here, arrived, new, request_id=request_id, apply=True) == found
    joined = {one.member_id for one in members_of(groups, group) if not one.HasField("seat_expire_time")}
    assert joined == {here, arrived, new}
    assert {one.member_id for one in members_of(groups, group)} == joined | {waiting}
    again = reconcile(groups, group, here, arrived, new)
    assert again == pb.ReconcileGroupResponse()
    with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
        reconcile(groups, pb.Group(group_id=NO_GROUP), here)


def test_a_long_list_is_taken_whole(groups: Groups, make: Maker) -> None:
    group = open_group(groups, make(capacity=5000))
    members = sorted(fresh("member") for _ in range(600))
    found = reconcile(groups, group, *members, apply=True)
    assert list(found.unknown) == members
    assert read_group(groups, group).seats_taken == 600


def test_pages_of_members_and_of_groups_join(groups: Groups, make: Maker) -> None:
    schemes, member = [make("INVITE") for _ in range(3)], fresh("member")
    mine = [seat(groups, member, scheme, inviter_id="kol") for scheme in schemes]
    for size in (1, 2, 1000):
        found = groups_of(groups, member, page_size=size)
        assert [one.membership for one in found] == [one.membership for one in reversed(mine)]
    group = open_group(groups, make(capacity=100))
    members = {fresh("member") for _ in range(5)}
    for name in members:
        join(groups, name, group)
    whole = members_of(groups, group)
    assert {one.member_id for one in whole} == members
    assert members_of(groups, group, page_size=2) == whole
    forged = pb.ListGroupMembersRequest(group_id=group.group_id, page_token="AAAA")  # noqa: S106
    with refused(StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        groups.call(groups.groups.ListGroupMembers, forged)
    with refused(StatusCode.NOT_FOUND, "GROUP_UNKNOWN"):
        members_of(groups, pb.Group(group_id=NO_GROUP))


def test_who_is_in_a_dissolved_group_is_seated_elsewhere_when_it_asks(groups: Groups, make: Maker) -> None:
    region, _ = settle(groups)
    scheme, member = make(), fresh("member")
    mine = seat(groups, member, scheme, location=at(region))
    dissolve(groups, mine.group)
    again = seat(groups, member, scheme, location=at(region))
    assert again.group.group_id != mine.group.group_id
    assert again.group.status == pb.GROUP_STATUS_OPEN


# --- what is known ------------------------------------------------------------------------------------


def test_tags_are_set_changed_and_removed(groups: Groups) -> None:
    member = fresh("member")
    said = tag(groups, member, wish="tea", level="gold").changes
    assert [(one.key, one.value, one.previous_value) for one in said] == [
        ("level", "gold", ""),
        ("wish", "tea", ""),
    ]
    [changed] = tag(groups, member, wish="coffee", level="gold").changes
    assert (changed.key, changed.value, changed.previous_value) == ("wish", "coffee", "tea")
    [one, other] = known(groups, member).tags
    assert (one.key, one.value, one.source, instant(one.set_time)) == ("level", "gold", "crm", groups.now)
    assert (other.key, other.value) == ("wish", "coffee")
    [removed] = untag(groups, member, "level", "nothing").changes
    assert (removed.key, removed.removed) == ("level", True)
    assert [one.key for one in known(groups, member).tags] == ["wish"]


def test_a_tag_that_would_have_ended_is_refused_and_so_are_too_many(groups: Groups) -> None:
    member = fresh("member")
    past = pb.NewTag(key="wish", value="tea", expire_time=stamp(groups.now))
    request = pb.TagMemberRequest(member_id=member, request_id="1", tags=[past], source="crm")
    with refused(StatusCode.FAILED_PRECONDITION, "TAG_TIME_PAST") as refusal:
        groups.call(groups.groups.TagMember, request)
    assert refusal.metadata == {"key": "wish"}
    for batch in range(2):
        tag(groups, member, **{f"key-{batch}-{number}": "x" for number in range(100)})
    with refused(StatusCode.FAILED_PRECONDITION, "TOO_MANY_TAGS") as refusal:
        tag(groups, member, wish="tea")
    assert refusal.metadata == {"limit": "200"}


def test_tags_of_many_members_are_set_together_and_each_item_stands_for_itself(groups: Groups) -> None:
    one, other = fresh("member"), fresh("member")

    def item(member: str, **fields: Any) -> pb.BatchTagItem:
        request = pb.TagMemberRequest(member_id=member, request_id=fresh("tag"), source="crm")
        request.tags.add(key="wish", value="tea", **fields)
        return pb.BatchTagItem(tag=request)

    removal = pb.UntagMemberRequest(member_id=one, request_id=fresh("untag"), keys=["wish"])
    items = [item(one), item(other, expire_time=stamp(groups.now)), pb.BatchTagItem(untag=removal)]
    request = pb.BatchTagRequest(items=items)
    set_, late, removed = groups.call(groups.groups.BatchTag, request).results
    assert [change.value for change in set_.changes.changes] == ["tea"]
    assert (late.error.code, late.error.reason) == (9, "TAG_TIME_PAST")
    assert dict(late.error.metadata) == {"key": "wish"}
    assert [change.removed for change in removed.changes.changes] == [True]
    assert groups.call(groups.groups.BatchTag, request).results[0] == set_
    assert groups.call(groups.groups.TagMember, items[0].tag) == set_.changes


def test_of_an_unknown_member_nothing_is_known(groups: Groups) -> None:
    member = fresh("nobody")
    found = known(groups, member)
    assert found == pb.MemberTags(member_id=member, facts=pb.Facts(recency_days=400, first_days=400))


def test_a_scheme_is_tried_before_it_is_put(groups: Groups, make: Maker) -> None:
    mark = fresh("mark")
    for wish in ("tea", "tea", "coffee", "water", ""):
        tag(groups, fresh("member"), mark=mark, **({"wish": wish} if wish else {}))
    marked = [{"name": "marked", "expression": f"'mark' in tags && tags.mark == '{mark}'"}]
    thirsty = [{"name": "thirsty", "expression": "tags.wish != ''"}]
    scheme = make("INVITE")  # a name that is taken: what is tried need not be put
    tried = pb.Scheme()
    tried.CopyFrom(scheme)
    tried.kind = pb.SCHEME_KIND_BY_TAG
    for condition in marked:
        tried.audience.add(**condition)
    for condition in thirsty:
        tried.threshold.add(**condition)
    for segment in WISH["segments"]:
        tried.segments.add(**segment)
    total, pages = pb.PreviewSchemeResponse(), 0
    request = pb.PreviewSchemeRequest(scheme=tried, page_size=7)
    by_segment = dict.fromkeys(("tea", "coffee"), 0)
    while True:
        page, pages = groups.call(groups.groups.PreviewScheme, request), pages + 1
        for count in ("looked_at", "in_audience", "meet_threshold", "in_no_segment", "failed"):
            setattr(total, count, getattr(total, count) + getattr(page, count))
        for one in page.segments:
            by_segment[one.segment_id] += one.members
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert (total.in_audience, total.meet_threshold, total.in_no_segment) == (5, 4, 1)
    assert (by_segment, total.failed) == ({"tea": 2, "coffee": 1}, 1)
    assert pages == -(-total.looked_at // 7)
    request.scheme.audience[0].expression = "facts"
    with refused(StatusCode.INVALID_ARGUMENT, "SCHEME_INVALID"):
        groups.call(groups.groups.PreviewScheme, request)


@pytest.mark.parametrize("count", [1, 60])
def test_of_many_full_sites_the_next_with_a_seat_is_shown(groups: Groups, make: Maker, count: int) -> None:
    region = a_region()
    sites = [a_site(region, 10 * number) for number in range(count + 1)]
    put = pb.BatchPutSitesRequest(request_id=fresh("put"), sites=sites)
    groups.call(groups.groups.BatchPutSites, put)
    scheme = make(capacity=1, headroom=0, overflow="OVERFLOW_NEXT_NEAREST")
    for site in sites[:-1]:
        join(groups, fresh("member"), open_group(groups, scheme, site_id=site.site_id))
    [found] = nearby(groups, scheme, location=at(region), page_size=1).groups
    assert (found.site.site_id, found.distance_m) == (sites[-1].site_id, 10 * count)
    put_site(groups, sites[-1])
