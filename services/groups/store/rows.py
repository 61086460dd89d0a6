"""Rows to domain and back. A record is given with its member and the name it has in its profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from services.chassis.database import Row
from services.chassis.ids import bucket
from services.chassis.statements import Values
from services.groups.domain.facts import NO_PAST, Past, Visits
from services.groups.domain.profile import (
    Basis,
    Ending,
    KeptOrder,
    Membership,
    MembershipStatus,
    Profile,
    Tag,
)
from services.groups.domain.seats import Group, GroupStatus, SeriesName

Found = Row | Mapping[str, Any]


def _json(value: Mapping[str, Any]) -> str:
    """The same text for the same value, so that one that did not change is known for it."""
    return json.dumps(value, sort_keys=True)


def to_profile(row: Found) -> Profile:
    """A member, and nothing else of it."""
    told = {} if row["facts"] == "{}" else json.loads(row["facts"])
    left = {} if row["left_groups"] == "{}" else json.loads(row["left_groups"])
    return Profile(
        member_id=row["member_id"],
        version=row["version"],
        facts={name: value for name, (value, _) in told.items() if value is not None},
        fact_versions={
            name: (version[0], version[1]) for name, (_, version) in told.items() if version is not None
        },
        left={group_id: datetime.fromisoformat(moment) for group_id, moment in left.items()},
        past=_to_past(row),
        offer_time=row["offer_time"],
        evaluate_time=row["evaluate_time"],
        next_due_time=row["next_due_time"],
    )


def member_rows(profile: Profile) -> list[Values]:
    """A member."""
    p = profile
    told = {name: (p.facts.get(name), p.fact_versions.get(name)) for name in {*p.facts, *p.fact_versions}}
    left = {group_id: moment.isoformat() for group_id, moment in p.left.items()}
    return [
        (
            *(bucket(p.member_id), p.member_id, p.version, _json(told), _json(left)),
            *(_json(_past(p.past)), p.past.until, p.offer_time, p.evaluate_time, p.next_due_time),
        )
    ]


def _to_past(row: Found) -> Past:
    if row["past_until"] is None:
        return NO_PAST
    past = json.loads(row["past"])
    stores = {
        store: Visits(count, datetime.fromisoformat(first), datetime.fromisoformat(last))
        for store, (count, first, last) in past["stores"].items()
    }
    city = past["city"] and (datetime.fromisoformat(past["city"][0]), past["city"][1], past["city"][2])
    return Past(until=row["past_until"], stores=stores, city=city)


def _past(past: Past) -> dict[str, Any]:
    if past.until is None:
        return {}
    stores = {
        store: (visits.orders, visits.first_time.isoformat(), visits.last_time.isoformat())
        for store, visits in past.stores.items()
    }
    return {"stores": stores, "city": past.city and (past.city[0].isoformat(), *past.city[1:])}


def to_membership(row: Found) -> Membership:
    """A member's stay in a scheme."""
    return Membership(
        membership_id=row["membership_id"],
        scheme_id=row["scheme_id"],
        group_id=row["group_id"],
        anchor=row["anchor"],
        site_id=row["site_id"],
        number=row["number"],
        status=MembershipStatus(row["status"]),
        basis=Basis(row["basis"]),
        entry_source=row["entry_source"],
        cell=row["cell"],
        distance_m=row["distance_m"],
        assign_time=row["assign_time"],
        seat_expire_time=row["seat_expire_time"],
        join_time=row["join_time"],
        arrive_time=row["arrive_time"],
        end_time=row["end_time"],
        ending=None if row["ending"] is None else Ending(row["ending"]),
        lost_condition=row["lost_condition"],
        reward_id=row["reward_id"],
    )


def membership_rows(member_id: str, _name: str, m: Membership) -> list[Values]:
    """A member's stay in a scheme."""
    return [
        (
            *(bucket(member_id), member_id, m.scheme_id, m.number, m.membership_id, m.group_id),
            *(m.anchor, m.site_id, m.status, m.basis, m.entry_source, m.cell, m.distance_m, m.assign_time),
            *(
                m.seat_expire_time,
                m.join_time,
                m.arrive_time,
                m.end_time,
                m.ending,
                m.lost_condition,
                m.reward_id,
            ),
        )
    ]


def to_tag(row: Found) -> Tag:
    """A tag."""
    return Tag(
        key=row["key"],
        value=row["value"],
        source=row["source"],
        expire_time=row["expire_time"],
        set_time=row["set_time"],
    )


def tag_rows(member_id: str, key: str, tag: Tag) -> list[Values]:
    """A tag."""
    return [
        (bucket(member_id), member_id, key, tag.value, tag.source, tag.expire_time, tag.set_time),
    ]


def to_order(row: Found) -> KeptOrder:
    """An order with its refunds."""
    return KeptOrder(
        order_id=row["order_id"],
        store_id=row["store_id"],
        city=row["city"],
        paid_time=row["paid_time"],
        amount_minor=row["amount_minor"],
        refunds={} if row["refunds"] == "{}" else json.loads(row["refunds"]),
    )


def order_rows(member_id: str, _name: str, order: KeptOrder) -> list[Values]:
    """An order with its refunds."""
    return [
        (
            *(bucket(member_id), member_id, order.order_id, order.store_id, order.city, order.paid_time),
            *(order.amount_minor, _json(order.refunds)),
        )
    ]


def series_rows(name: SeriesName, last_seq: int) -> list[Values]:
    """A series."""
    return [(*name, last_seq)]


def to_group(row: Found) -> Group:
    """A group."""
    return Group(
        group_id=row["group_id"],
        scheme_id=row["scheme_id"],
        scheme_version=row["scheme_version"],
        anchor=row["anchor"],
        seq=row["seq"],
        name=row["name"],
        capacity=row["capacity"],
        room=row["room"],
        seats_taken=row["seats_taken"],
        overbooked=row["overbooked"],
        status=GroupStatus(row["status"]),
        site_id=row["site_id"],
        chat_id=row["chat_id"],
        entry_link=row["entry_link"],
        open_time=row["open_time"],
        close_time=row["close_time"],
        sale_time=row["sale_time"],
        previous_group_id=row["previous_group_id"],
        next_occasion_time=row["next_occasion_time"],
        version=row["version"],
    )


def group_rows(_name: str, g: Group) -> list[Values]:
    """A group."""
    return [
        (
            *(g.group_id, g.scheme_id, g.scheme_version, g.anchor, g.seq, g.name, g.capacity, g.room),
            *(g.seats_taken, g.overbooked, g.status, g.site_id, g.chat_id, g.entry_link, g.open_time),
            *(g.close_time, g.sale_time, g.previous_group_id, g.next_occasion_time, g.version),
        )
    ]
