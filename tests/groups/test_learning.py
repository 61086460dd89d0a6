"""What others tell, in any order and more than once; and the entry that is offered after an order."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.groups import learning
from services.groups.commands import (
    AssignMember,
    JoinGroup,
    LearnFact,
    LeaveGroup,
    OrderTold,
    RefundTold,
    TagMember,
)
from services.groups.domain.facts import Facts, facts_of
from services.groups.domain.profile import CARD, EVERYTHING, TIER
from services.groups.domain.schemes import Programme
from tests.groups.village import (
    ANN,
    BEN,
    DAY,
    HOUR,
    NOON,
    TICK,
    ZONE,
    Village,
    condition,
    scheme,
    site,
    tag,
)

HORIZON = Programme().horizon_days


def told(order_id: str = "o", days: int = 0, amount_minor: int = 2000, store_id: str = "s") -> dict[str, Any]:
    """An order, paid so many days ago."""
    paid = {"paid_time": NOON - days * DAY, "amount_minor": amount_minor}
    return {"order_id": order_id, "store_id": store_id, "city": "北京", **paid}


def facts(village: Village) -> Facts:
    return village.scene().facts(village.profile())


# --- orders and refunds -------------------------------------------------------------------------------


def test_orders_are_facts_from_when_they_are_told() -> None:
    village = Village(spent="string(facts.spend_30d_minor)")
    village.do(OrderTold, **told("a"))
    village.do(OrderTold, **told("b", days=40, amount_minor=500, store_id="t"))
    village.do(OrderTold, **told("c", days=1))
    assert facts(village) == Facts(
        recency_days=0,
        first_days=40,
        orders_30d=2,
        orders_90d=3,
        orders_total=3,
        spend_30d_minor=4000,
        spend_90d_minor=4500,
        home_site="s",
    )
    assert village.tags() == {"spent": "4000"}


def test_a_refund_counts_once_and_from_when_its_order_is_told() -> None:
    village = Village(spent="string(facts.spend_30d_minor)")
    for _ in range(2):
        village.do(RefundTold, order_id="a", refund_id="r", amount_minor=300)
    assert village.profile().orders["a"].paid_time is None
    village.do(OrderTold, **told("a"))
    assert village.tags() == {"spent": "1700"}
    village.do(RefundTold, order_id="a", refund_id="r", amount_minor=300)
    village.do(RefundTold, order_id="a", refund_id="other", amount_minor=700)
    assert village.tags() == {"spent": "1000"}
    village.do(RefundTold, order_id="a", refund_id="last", amount_minor=EVERYTHING)
    assert facts(village).orders_total == 0


TELLINGS = st.lists(
    st.one_of(
        st.integers(0, 3).map(lambda number: (OrderTold, told(f"o{number}", 30 * number, 100 * number))),
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([40, 60, EVERYTHING])).map(
            lambda one: (
                RefundTold,
                {"order_id": f"o{one[0]}", "refund_id": f"r{one[1]}-{one[2]}", "amount_minor": one[2]},
            )
        ),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(tellings=TELLINGS, data=st.data())
def test_in_whatever_order_and_however_often_it_is_told_the_same_is_known(tellings: Any, data: Any) -> None:
    rule: dict[str, Any] = {"known": "string(facts.orders_total) + '/' + string(facts.spend_90d_minor)"}
    one, other = Village(**rule), Village(**rule)
    for kind, fields in tellings:
        one.do(kind, **fields)
    for kind, fields in data.draw(st.permutations(tellings * 2)):
        other.do(kind, **fields)
    if tellings:
        assert facts(one) == facts(other)
        assert one.profile().orders == other.profile().orders
        assert one.tags() == other.tags()


# --- facts of others ----------------------------------------------------------------------------------


def test_what_is_told_late_does_not_undo_what_is_newer() -> None:
    village = Village(seen="tier + (size(cards) == 0 ? '' : '+' + cards[0])")
    for version, tier, seen in (((1, 2), "gold", "gold"), ((1, 1), "silver", "gold"), ((2, 1), "", None)):
        village.do(LearnFact, name=TIER, value=tier, version=version)
        assert village.tags().get("seen") == seen
    village.do(LearnFact, name=f"{CARD}king", value="king-month", version=(1, 1))
    assert village.tags() == {"seen": "+king"}
    village.do(LearnFact, name=f"{CARD}king", value="", version=(1, 2))
    assert village.tags() == {}
    assert village.profile().facts == {}
    assert len(village.told(epb.TagsChanged)) == 4


def test_what_is_neither_tier_nor_card_is_a_tag() -> None:
    village = Village()
    village.do(LearnFact, name="stratum", value="kol", version=(1, 1))
    assert village.tags() == {"stratum": "kol"}
    village.do(LearnFact, name="stratum", value="kol", version=(1, 2))
    village.do(LearnFact, name="stratum", value="", version=(1, 3))
    assert village.tags() == {}
    assert len(village.told(epb.TagsChanged)) == 2


LONG_TELLINGS = st.lists(
    st.one_of(
        st.builds(
            lambda number, days: (OrderTold, told(f"o{number}", days, 100 * number, f"s{number % 2}")),
            st.integers(0, 7),
            st.sampled_from([0, 1, 60, 120, 121, 400]),
        ),
        st.builds(
            lambda number, amount: (
                RefundTold,
                {"order_id": f"o{number}", "refund_id": f"r{amount}", "amount_minor": amount},
            ),
            st.integers(0, 7),
            st.sampled_from([40, EVERYTHING]),
        ),
        st.integers(1, 120).map(lambda days: (None, days)),
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(LONG_TELLINGS)
def test_however_late_it_is_told_facts_are_those_of_all_orders(tellings: list[tuple[Any, Any]]) -> None:
    village = Village(known="string(facts.orders_total) + facts.home_site")
    for kind, said in tellings:
        if kind is None:
            village.wait(said * DAY)
        else:
            village.do(kind, **said)
        profile = village.profile()
        all_of_them = profile.purchases()
        assert facts(village) == facts_of(all_of_them, village.at, ZONE, HORIZON)
        assert profile.past == profile.past.anew(all_of_them)


# --- an entry, offered --------------------------------------------------------------------------------

STREET = (site("s"), site("t", 500), site("u", 1500))


def local(**more: Any) -> pb.Scheme:
    return scheme("BY_LOCATION", **more)


def offered(village: Village, member: str = ANN) -> list[list[str]]:
    """The sites whose groups were offered, by offer."""
    return [[group.site_id for group in one.groups] for one in village.told(epb.EntryOffered, member)]


def test_after_an_order_the_stores_group_is_offered_once_per_cooldown() -> None:
    village = Village(local(), sites=STREET)
    village.do(OrderTold, **told("a"))
    (offer,) = village.told(epb.EntryOffered)
    (group,) = offer.groups
    assert (offer.order_id, offer.store_id, group.site_id) == ("a", "s", "s")
    assert group.group_id in village.seen.groups  # opened for it
    assert len(offer.scene) == 32
    village.do(OrderTold, **told("a"))
    village.at = NOON + 7 * DAY - TICK
    village.do(OrderTold, **told("b") | {"paid_time": village.at})
    assert len(offered(village)) == 1
    village.at = NOON + 7 * DAY
    village.do(OrderTold, **told("c") | {"paid_time": village.at})
    assert len(offered(village)) == 2
    assert len(village.seen.groups) == 1
    assert village.stay() is None


def test_who_is_in_or_may_not_be_is_offered_nothing() -> None:
    village = Village(local(cooldown_hours=24), sites=STREET)
    village.put_programme(pb.Programme(opt_out_key="quiet"))
    village.do(AssignMember, scheme_id="scheme", home_site_id="u")
    village.do(OrderTold, **told("a"))
    assert offered(village) == []
    (group_id,) = village.seen.groups
    village.do(JoinGroup, group_id=group_id, occur_time=NOON)
    village.do(LeaveGroup, group_id=group_id, occur_time=NOON)
    village.do(OrderTold, **told("b"))
    assert offered(village) == []  # left not long ago
    village.do(TagMember, BEN, tags=(tag("quiet"),))
    village.do(OrderTold, BEN, **told("c"))
    assert offered(village, BEN) == []
    village.at = NOON + DAY
    village.do(OrderTold, **told("d") | {"paid_time": village.at})
    assert offered(village) == [["s"]]


@pytest.mark.parametrize(
    "order",
    [
        told(store_id="elsewhere"),
        told(store_id=""),
        told() | {"paid_time": NOON - learning.FRESH - timedelta(microseconds=1)},
    ],
    ids=["another store", "no store", "told late"],
)
def test_an_order_of_another_store_or_another_day_is_no_occasion(order: dict[str, Any]) -> None:
    village = Village(local(), sites=STREET)
    village.do(OrderTold, **order)
    assert offered(village) == []
    assert village.seen.groups == {}


def test_an_order_told_within_a_day_is_one() -> None:
    village = Village(local(), sites=STREET)
    village.do(OrderTold, **told() | {"paid_time": NOON - learning.FRESH})
    assert offered(village) == [["s"]]


def test_where_the_stores_group_is_full_the_next_nearest_is_offered() -> None:
    village = Village(local(overflow="OVERFLOW_NEXT_NEAREST"), sites=STREET)
    for number in range(2):
        village.do(AssignMember, f"m{number}", scheme_id="scheme", home_site_id="s")
    village.do(OrderTold, **told())
    assert offered(village) == [["t"]]
    for number in range(2, 6):
        village.do(AssignMember, f"m{number}", scheme_id="scheme", home_site_id="s")
    village.do(OrderTold, BEN, **told("b"))
    assert offered(village, BEN) == []


def test_a_closed_stores_neighbour_is_offered_and_where_no_site_is_open_nothing() -> None:
    village = Village(local(), sites=(site("s", is_open=False), site("t", 500)))
    village.do(OrderTold, **told())
    assert offered(village) == [["t"]]
    village = Village(local(), sites=(site("s", is_open=False),))
    village.do(OrderTold, **told())
    assert offered(village) == []


def test_every_scheme_that_is_for_the_member_is_offered_by_priority() -> None:
    village = Village(
        local(scheme_id="late", priority=2),
        local(scheme_id="early", priority=1),
        local(scheme_id="strict", threshold=[condition("loyal", "'loyal' in tags")]),
        local(scheme_id="others", audience=[condition("south", "city == '广州'")]),
        local(scheme_id="over", withdrawn=True),
        scheme("BY_TAG", "tagged", segments=[{"segment_id": "x", "name": "x", "expression": "false"}]),
        sites=STREET,
    )
    village.do(OrderTold, **told())
    (offer,) = village.told(epb.EntryOffered)
    assert [group.scheme_id for group in offer.groups] == ["early", "late"]


def test_facts_of_an_order_hold_on_its_local_day() -> None:
    village = Village()
    village.do(OrderTold, **told())
    assert village.profile().evaluate_time == (NOON.astimezone(ZONE).replace(hour=0) + DAY)
    assert village.profile().evaluate_time == NOON + 12 * HOUR
