"""The books' proof: everything is added up again, over the whole store, while the service takes writes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from loyalty.groups.v1 import groups_events_pb2 as epb

from services.chassis.audit import Findings, Progress, Report, Rows, by_member, carried, every_row, snapshot
from services.chassis.clock import wall
from services.chassis.database import Connection, Row, Statement
from services.chassis.ids import made_at
from services.chassis.statements import word
from services.groups import events, rules, store
from services.groups import tables as t
from services.groups.domain.profile import RULE, MembershipStatus, Profile
from services.groups.domain.seats import GroupStatus
from services.groups.rules import CompiledProgramme, Rulebook
from services.groups.settings import GroupsSettings
from services.groups.store import rows

DAY, TICK = timedelta(days=1), timedelta(microseconds=1)

CHECKS = {
    "members": "every row has its member or its group, and can be read",
    "active": "a member's memberships in a scheme are numbered, and none but the last is active",
    "due": "what is due of a member next is what its seats and tags say",
    "facts": "the tags that follow, and what is added up, are those that the orders that were told give",
    "seats": "a group has as many members as it counts, on no more seats than it has",
    "places": "every active membership is in a group of its scheme and place",
    "series": "groups of a series are numbered without a gap",
    "sites": "no group lives at a site that is closed",
    "occasions": "every occasion that was announced is remembered, and was announced once",
    "events": "events about each member and each group are numbered without a gap",
}


async def audit(
    url: str,
    progress: Progress | None = None,
    *,
    stream_url: str | None = None,
    time_zone: str | None = None,
) -> Report:
    """Audits a groups database, and with `stream_url` the stream against it.

    `progress` hears the number of members and groups done. `time_zone` is the one in which the service counts
    days, by default as its settings say. Raises DatabaseUnavailable.
    """
    async with snapshot(url) as connection:
        terms = await _terms(connection, ZoneInfo(time_zone or _time_zone()))
        # What this snapshot says was sent must be in the stream by now.
        bodies = await carried(stream_url, events.STREAM, events.SUBJECTS[0]) if stream_url else None
        audit = _Audit(terms, bodies)
        for name, first, others, check in (
            ("members", _MEMBERS, _OF_MEMBERS, audit.member),
            ("groups", _GROUPS, _OF_GROUPS, audit.group),
        ):
            async for row, found in by_member(
                connection, first, others, stray=audit.stray, progress=progress, name=name
            ):
                check(row, found)
        await every_row(connection, ((_SERIES, audit.series), (_SITES, audit.site)))
    return audit.report()


def _time_zone() -> str:
    default: str = GroupsSettings.model_fields["time_zone"].default
    return os.environ.get("GROUPS_TIME_ZONE", default)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What members' tags follow from, and for which of them it was looked at."""

    programme: CompiledProgramme
    looked_at: tuple[int, str] | None
    """The last member for whom the programme in force was looked at; None where that is done for all."""
    zone: ZoneInfo


async def _terms(connection: Connection, zone: ZoneInfo) -> _Terms:
    row = await store.programme(connection)
    programme = rules.NO_PROGRAMME if row is None else Rulebook().keep_programme(row["body"])
    kinds = {one.kind: one.after for one in await store.open_evaluations(connection, 1_000_000)}
    return _Terms(programme, kinds.get(store.PROGRAMME), zone)


# --- what is read -------------------------------------------------------------------------------------

_o, _m = t.outbox.c, t.memberships.c
_ABOUT_GROUPS = (epb.GroupOpened, epb.GroupFull, epb.GroupDissolved, epb.BenefitDue)


def _outbox(*, of_groups: bool) -> Rows:
    told = _o.subject.in_([word(kind.DESCRIPTOR.full_name) for kind in _ABOUT_GROUPS])
    return Rows(
        t.outbox,
        [_o.erased, _o.subject, _o.event_id, _o.body, _o.create_time, _o.sent_at],
        [_o.position],
        where=told if of_groups else sa.not_(told),
        member="entity_key",
        bucketed=not of_groups,
    )


# How the rows of members are read, and those of groups, which come in the order of their ids.
_MEMBERS = Rows(t.members)
_OF_MEMBERS = {
    "memberships": Rows(t.memberships, order=[_m.scheme_id, _m.number]),
    "tags": Rows(t.tags),
    "orders": Rows(t.orders),
    "outbox": _outbox(of_groups=False),
}
_GROUPS = Rows(t.groups, member="group_id", bucketed=False)
_OF_GROUPS = {
    "memberships": Rows(
        t.memberships,
        [_m.scheme_id, _m.anchor, _m.site_id, _m.member_id.label("of_member")],
        where=_m.end_time.is_(None),
        member="group_id",
        bucketed=False,
    ),
    "occasions": Rows(t.occasions, member="group_id", bucketed=False),
    "outbox": _outbox(of_groups=True),
}


def _series() -> Statement:
    """Series with their groups."""
    s, g = t.series.c, t.groups.c
    same = sa.and_(s.scheme_id == g.scheme_id, s.anchor == g.anchor)
    either = [sa.func.coalesce(s[name], g[name]).label(name) for name in ("scheme_id", "anchor")]
    none: sa.ColumnElement[int] = sa.literal_column("0")
    numbers = [
        sa.func.coalesce(s.last_seq, none).label("last_seq"),
        sa.func.coalesce(sa.func.max(g.seq), none).label("last"),
        sa.func.count(g.seq).label("count"),
    ]
    return Statement(
        sa.select(*either, *numbers)
        .select_from(sa.join(t.series, t.groups, same, full=True))
        .group_by(s.scheme_id, s.anchor, s.last_seq, g.scheme_id, g.anchor)
    )


def _sites() -> Statement:
    """Groups that live at sites, which are open, closed or not there."""
    g = t.groups.c
    living = g.status.in_([word(GroupStatus.OPEN), word(GroupStatus.FULL)])
    return Statement(
        sa.select(g.group_id, g.site_id, t.sites.c.open)
        .select_from(sa.join(t.groups, t.sites, g.site_id == t.sites.c.site_id, isouter=True))
        .where(g.site_id != word(""), living)
    )


_SERIES, _SITES = _series(), _sites()


# --- what must be so ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Told:
    """The events about a member or a group that are still kept."""

    rows: Sequence[Row]
    messages: Sequence[Any] = field(default_factory=list)
    """Of those that were not erased."""


class _Audit:
    def __init__(self, terms: _Terms, bodies: Mapping[str, bytes] | None) -> None:
        self._terms = terms
        self._found = Findings(CHECKS, bodies)
        self._totals = dict.fromkeys(("members", "groups", "memberships", "orders"), 0)

    def report(self) -> Report:
        return self._found.report(self._totals)

    def stray(self, table: str, name: str) -> None:
        """Notes a row whose member, or group, is not there."""
        self._found.expect("members", False, name, f"is in {table}, and nowhere else")

    def member(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks everything about one member."""
        who = row["member_id"]
        self._found.seen["members"] += 1
        with self._found.reading(who):
            profile = _profile(row, found)
            self._active(profile)
            self._due(profile)
            self._facts(row["bucket"], profile)
            self._events(who, row["version"], self._told(who, found["outbox"]), made=None)
            self._totals["members"] += 1
            self._totals["memberships"] += len(profile.memberships)
            self._totals["orders"] += len(profile.orders)

    def group(self, row: Row, found: Mapping[str, list[Row]]) -> None:
        """Checks everything about one group."""
        who = row["member_id"]
        with self._found.reading(who):
            self._seats(who, row, found["memberships"])
            told = self._told(who, found["outbox"])
            self._occasions(who, told, [one["occasion_id"] for one in found["occasions"]])
            self._events(who, row["version"], told, made=made_at(who))
            self._totals["groups"] += 1

    # --- a member -------------------------------------------------------------------------------------

    def _active(self, profile: Profile) -> None:
        self._found.seen["active"] += len(profile.memberships)
        schemes = defaultdict(list)
        for one in profile.memberships.values():
            schemes[one.scheme_id].append(one)
        for scheme_id, stays in schemes.items():
            numbers = [one.number for one in stays]
            gapless = numbers == list(range(1, len(stays) + 1))
            self._found.expect("active", gapless, profile.member_id, f"{scheme_id} has {numbers}")
            ended = not any(one.active for one in stays[:-1])
            self._found.expect("active", ended, profile.member_id, f"{scheme_id} has one that did not end")

    def _due(self, profile: Profile) -> None:
        self._found.seen["due"] += 1
        seats = [
            one.seat_expire_time
            for one in profile.memberships.values()
            if one.status is MembershipStatus.ASSIGNED
        ]
        due = min((at for at in (*seats, profile.evaluate_time) if at is not None), default=None)
        what = f"is due at {profile.next_due_time}, and something of it at {due}"
        self._found.expect("due", due == profile.next_due_time, profile.member_id, what)

    def _facts(self, bucket: int, profile: Profile) -> None:
        """As of the last instant of the facts that it was looked at by: they hold until the next look."""
        looked_at = self._terms.looked_at
        if looked_at is not None and (bucket, profile.member_id) > looked_at:
            return
        if not (profile.orders or profile.tags or profile.facts):  # nobody told anything of it
            return
        self._found.seen["facts"] += 1
        anew = profile.past.anew(profile.purchases())
        what = f"has a past of {profile.past}, and its orders give {anew}"
        self._found.expect("facts", profile.past == anew, profile.member_id, what)
        compiled = self._terms.programme
        at = self._last_look(profile)
        known = rules.known(profile, compiled.programme, at, self._terms.zone)
        given = {
            key: one.value for key, one in compiled.tags_of(profile, known, at).items() if one.source == RULE
        }
        kept = {key: one.value for key, one in profile.tags.items() if one.source == RULE}
        what = f"has {kept}, and its orders give {given}"
        self._found.expect("facts", kept == given, profile.member_id, what)

    def _last_look(self, profile: Profile) -> datetime:
        if profile.evaluate_time is not None:
            return profile.evaluate_time - TICK
        paid = (order.paid_time for order in profile.orders.values() if order.paid_time is not None)
        horizon = self._terms.programme.programme.horizon_days + 2
        return max(paid, default=wall()) + horizon * DAY

    # --- a group --------------------------------------------------------------------------------------

    def _seats(self, who: str, row: Row, members: Sequence[Row]) -> None:
        self._found.seen["seats"] += 1
        self._found.seen["places"] += len(members)
        counted = row["seats_taken"] + row["overbooked"]
        what = f"counts {counted} members, and has {len(members)}"
        self._found.expect("seats", counted == len(members), who, what)
        within = row["seats_taken"] <= row["room"] <= row["capacity"]
        self._found.expect("seats", within, who, f"{row['seats_taken']} are on {row['room']} seats")
        where = ("scheme_id", "anchor", "site_id")
        for one in members:
            same = all(one[name] == row[name] for name in where)
            place = " ".join(one[name] for name in where)
            self._found.expect("places", same, who, f"has a member of {place}: {one['of_member']}")

    def _occasions(self, who: str, told: _Told, remembered: Sequence[str]) -> None:
        self._found.seen["occasions"] += len(remembered)
        names = [one.occasion_id for one in told.messages if isinstance(one, epb.BenefitDue)]
        once = len(names) == len(set(names))
        self._found.expect("occasions", once, who, "announced something twice")
        for name in set(names) - set(remembered):
            self._found.expect("occasions", False, who, f"announced {name}, which nobody remembers")

    # --- events ---------------------------------------------------------------------------------------

    def _told(self, who: str, outbox: Sequence[Row]) -> _Told:
        """What was announced and is kept; what was sent of it must be in the stream."""
        self._found.seen["events"] += len(outbox)
        kept = [row for row in outbox if row["create_time"] >= self._found.kept_since]
        whole = [row for row in kept if not row["erased"]]
        for row in whole:
            self._found.sent(who, row)
        return _Told(kept, [_message(row) for row in whole])

    def _events(self, who: str, version: int, told: _Told, made: datetime | None) -> None:
        """`made` is when the first event can have come, where the id says so."""
        if len(told.messages) < len(told.rows):  # of whom some were erased, the rest is not whole
            return
        versions = [message.version for message in told.messages]
        whole = self._found.unbroken(versions, version, made)
        self._found.expect("events", whole, who, f"is at version {version}, events say {versions}")

    # --- between groups -------------------------------------------------------------------------------

    def series(self, row: Row) -> None:
        """A series with its groups."""
        self._found.seen["series"] += 1
        same = row["last_seq"] == row["last"] == row["count"]
        what = f"is at number {row['last_seq']}, with {row['count']} groups up to {row['last']}"
        self._found.expect("series", same, f"{row['scheme_id']} {row['anchor']}", what)

    def site(self, row: Row) -> None:
        """A group that lives at a site."""
        self._found.seen["sites"] += 1
        self._found.expect("sites", bool(row["open"]), row["group_id"], f"lives at {row['site_id']}")


def _profile(row: Row, found: Mapping[str, list[Row]]) -> Profile:
    profile = rows.to_profile(row)
    profile.known = True
    for one in map(rows.to_membership, found["memberships"]):
        profile.memberships[one.membership_id] = one
    profile.tags = {one["key"]: rows.to_tag(one) for one in found["tags"]}
    profile.orders = {one["order_id"]: rows.to_order(one) for one in found["orders"]}
    return profile


def _message(row: Row) -> Any:
    """An event as it was announced."""
    return getattr(epb, row["subject"].rpartition(".")[2]).FromString(row["body"])
