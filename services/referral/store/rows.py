"""Rows to domain and back. A record is given with its member and the name it has in its profile."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from services.chassis.clock import wall
from services.chassis.database import Row
from services.chassis.ids import bucket
from services.chassis.statements import Values
from services.referral.domain.campaigns import FactKind, Gift, GiftKind
from services.referral.domain.profile import (
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
from services.referral.store.wanted import Budget, Review

Found = Row | Mapping[str, Any]
T = TypeVar("T", bound=Hashable)


def _json(value: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The same text for the same value, so that one that did not change is known for it."""
    return json.dumps(value, sort_keys=True)


def _same(record: type[T], row: Found, /, **others: Any) -> T:
    """A record of what stands in a row under the names of its fields, but for some."""
    return record(**{name: row[name] for name in _names(record, *others)}, **others)


@cache
def _names(record: type[Any], *others: str) -> tuple[str, ...]:
    """The fields of a record, but for some: an inviter may have ten thousand of a kind."""
    return tuple(field.name for field in fields(record) if field.name not in others)


def to_profile(row: Found) -> Profile:
    """A member, and nothing else of it."""
    told = {} if row["told"] == "{}" else json.loads(row["told"])
    return Profile(
        row["member_id"],
        row["version"],
        {name: value for name, (value, _) in told.items() if value is not None},
        {name: (version[0], version[1]) for name, (_, version) in told.items() if version is not None},
        row["next_due_time"],
    )


def member_rows(profile: Profile) -> list[Values]:
    """A member."""
    told = {
        name: (profile.told.get(name), profile.told_versions.get(name))
        for name in {*profile.told, *profile.told_versions}
    }
    key = (bucket(profile.member_id), profile.member_id)
    return [(*key, profile.version, _json(told), profile.next_due_time)]


# --- the invitee --------------------------------------------------------------------------------------


def _kind(row: Found) -> FactKind | None:
    return None if row["kind"] is None else FactKind(row["kind"])


def _reason(row: Found) -> RevokeReason | None:
    return None if row["revoke_reason"] is None else RevokeReason(row["revoke_reason"])


def to_attribution(row: Found) -> Attribution:
    """An attribution."""
    return _same(
        Attribution,
        row,
        status=AttributionStatus(row["status"]),
        verdict=Verdict(row["verdict"]),
        signals=tuple(json.loads(row["signals"])),
        kind=_kind(row),
    )


def attribution_rows(member_id: str, _name: object, a: Attribution) -> list[Values]:
    """An attribution."""
    return [
        (
            *(bucket(member_id), member_id, a.campaign_id, a.attribution_id, a.campaign_version),
            *(a.inviter_id, a.grand_inviter_id, a.code, a.bind_time, a.lapse_time),
            *(a.status, a.verdict, a.score, _json(a.signals), a.resolved, a.version),
            *(a.kind, a.reference_id, a.amount_minor, a.currency_code, a.qualify_time),
        )
    ]


def to_fact(row: Found) -> Fact:
    """A fact."""
    refunds = json.loads(row["refunds"])
    return _same(
        Fact,
        row,
        kind=FactKind(row["kind"]),
        attributes=None if row["attributes"] is None else json.loads(row["attributes"]),
        refunds={name: (amount, datetime.fromisoformat(at)) for name, (amount, at) in refunds.items()},
        revoke_reason=_reason(row),
    )


def fact_rows(member_id: str, _name: object, f: Fact) -> list[Values]:
    """A fact. One of which something is told is looked at again once that is long ago."""
    attributes = None if f.attributes is None else _json(f.attributes)
    refunds = {name: (amount, at.isoformat()) for name, (amount, at) in f.refunds.items()}
    return [
        (
            *(bucket(member_id), member_id, f.kind, f.reference_id, f.occur_time),
            *(f.amount_minor, f.currency_code, attributes, _json(refunds)),
            *(f.revoke_time, f.revoke_reason, wall(), False),
        )
    ]


# --- the inviter --------------------------------------------------------------------------------------


def to_invite(row: Found) -> Invite:
    """An invite."""
    return _same(Invite, row)


def invite_rows(member_id: str, _name: object, i: Invite) -> list[Values]:
    """An invite."""
    return [
        (
            *(bucket(member_id), member_id, i.campaign_id, i.campaign_version, i.code),
            *(i.create_time, i.group_id, i.masked_name, i.ladder_version),
        )
    ]


def to_invitee(row: Found) -> Invitee:
    """An invitee."""
    return _same(
        Invitee,
        row,
        member_id=row["invitee_id"],
        state=InviteeState(row["state"]),
        told=(row["told_epoch"], row["told_version"]),
        kind=_kind(row),
        revoke_reason=_reason(row),
    )


def invitee_rows(member_id: str, _name: object, i: Invitee) -> list[Values]:
    """An invitee."""
    return [
        (
            *(bucket(member_id), member_id, i.campaign_id, i.attribution_id, i.depth, i.member_id),
            *(i.state, *i.told, i.bind_time, i.kind, i.reference_id),
            *(i.amount_minor, i.currency_code, i.qualify_time, i.revoke_reason),
        )
    ]


def to_rung(row: Found) -> Rung:
    """A rung."""
    return _same(Rung, row)


def rung_rows(member_id: str, _name: object, r: Rung) -> list[Values]:
    """A rung."""
    return [
        (
            *(bucket(member_id), member_id, r.campaign_id, r.step_id, r.round),
            *(r.campaign_version, r.depth, r.position, r.each),
            *(r.attribution_id, r.attempt, r.reach_time, r.lost),
        )
    ]


def to_reward(row: Found) -> Reward:
    """A reward."""
    gift = Gift(
        kind=GiftKind(row["gift_kind"]),
        code=row["gift_code"],
        group_id=row["gift_group_id"],
        quantity=row["quantity"],
        currency_code=row["currency_code"],
        share_basis_points=row["share_basis_points"],
        cost_minor=row["cost_minor"],
    )
    return _same(Reward, row, role=Role(row["role"]), gift=gift, status=RewardStatus(row["status"]))


def reward_rows(member_id: str, _name: object, r: Reward) -> list[Values]:
    """A reward."""
    g = r.gift
    return [
        (
            *(bucket(member_id), member_id, r.reward_id, r.campaign_id, r.campaign_version),
            *(r.step_id, r.round, r.attempt, r.role, r.receiver_id, r.attribution_id),
            *(g.kind, g.code, g.group_id, g.quantity, g.currency_code, g.share_basis_points, g.cost_minor),
            *(r.order_id, r.qualified_count, r.reach_time, r.grant_after),
            *(r.status, r.version, r.grant_time, r.fulfil_by, r.overdue),
            *(r.end_time, r.reference_id, r.reason, r.returned),
        )
    ]


def to_rank(row: Found) -> Rank:
    """A place on a leaderboard."""
    return _same(Rank, row)


def rank_rows(member_id: str, _name: object, r: Rank) -> list[Values]:
    """A place on a leaderboard."""
    return [(bucket(member_id), member_id, r.campaign_id, r.count, r.reach_time)]


# --- what operators decide, and budgets ---------------------------------------------------------------


def to_review(row: Found) -> Review:
    """A review."""
    return _same(Review, row, signals=tuple(json.loads(row["signals"])))


def review_rows(r: Review) -> list[Values]:
    """A review."""
    return [
        (
            *(bucket(r.member_id), r.member_id, r.review_id, r.campaign_id, r.attribution_id),
            *(r.inviter_id, r.score, _json(r.signals), r.create_time),
            *(r.verdict, r.resolve_time, r.resolved_by, r.note),
        )
    ]


def to_budget(row: Found) -> Budget:
    """A budget."""
    return _same(Budget, row)


def budget_rows(b: Budget) -> list[Values]:
    """A budget."""
    return [(b.campaign_id, b.budget_minor, b.granted_minor, b.exhausted, b.version)]
