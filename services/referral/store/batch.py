"""Reading what a batch of commands sees under the locks, and writing what it did: a statement per table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.chassis.database import Connection, Insert, Statement, rows_of
from services.chassis.members import Members
from services.chassis.statements import (
    MEMBER,
    By,
    Lookup,
    Upsert,
    keyed,
    keys,
    one_of,
    replaced,
)
from services.referral import tables as t
from services.referral.domain.campaigns import MOST_COUNTED
from services.referral.domain.profile import RewardStatus
from services.referral.store.boxes import ANSWERS
from services.referral.store.budget import lock_budgets, save_budgets
from services.referral.store.limits import add_tries, tries
from services.referral.store.rows import (
    attribution_rows,
    fact_rows,
    invite_rows,
    invitee_rows,
    member_rows,
    rank_rows,
    review_rows,
    reward_rows,
    rung_rows,
    to_attribution,
    to_fact,
    to_invite,
    to_invitee,
    to_profile,
    to_rank,
    to_review,
    to_reward,
    to_rung,
)
from services.referral.store.wanted import Changes, Pair, Seen, Wanted

# --- lock ---------------------------------------------------------------------------------------------


def _came(given: sa.TableValuedAlias) -> sa.Select[Any]:
    """Members who came with the given value of a signal."""
    s = t.signals.c
    same = [s[name] == given.c[name] for name in ("campaign_id", "signal", "value")]
    return sa.select(s.member_id).where(*same)


def _bound(given: sa.TableValuedAlias) -> sa.Select[Any]:
    """Members who were bound to the given inviter since the given instant."""
    a = t.attributions.c
    same = [a[name] == given.c[name] for name in ("campaign_id", "inviter_id")]
    return sa.select(a.member_id).where(*same, a.bind_time >= given.c.since)


def _counting(found: Callable[[sa.TableValuedAlias], sa.Select[Any]], **given: Any) -> Statement:
    """How many are found for each row that is given, but for more than are counted."""
    rows = rows_of(**given)
    some = found(rows).limit(sa.literal_column(str(MOST_COUNTED))).correlate(rows).subquery()
    count = sa.select(sa.func.count()).select_from(some).scalar_subquery()
    return Statement(sa.select(*(rows.c[name] for name in given), count.label("count")).select_from(rows))


def _lock_pairs() -> Statement:
    """The arrays' order is the order of the locks."""
    given = rows_of(name=sa.Text)
    return Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(given.c.name, 0))))


_CAMPAIGN = (*MEMBER, "campaign_id")
# A profile, and what it holds, by the name of the collection.
_MEMBERS = Members(
    t.members,
    member_rows,
    (
        ("attributions", t.attributions, attribution_rows),
        ("facts", t.facts, fact_rows),
        ("invites", t.invites, invite_rows),
        ("invitees", t.invitees, invitee_rows),
        ("rungs", t.steps, rung_rows),
        ("rewards", t.rewards, reward_rows),
        ("ranks", t.ranks, rank_rows),
    ),
    t.CHANGING,
)
_ATTRIBUTIONS = Lookup(t.attributions, all=By(MEMBER), named=By(_CAMPAIGN))
_FACTS = Lookup(t.facts, all=By(MEMBER))
_INVITES = Lookup(t.invites, all=By(MEMBER))
_INVITEES = Lookup(t.invitees, campaign=By(_CAMPAIGN))
_RUNGS = Lookup(t.steps, campaign=By(_CAMPAIGN))
_REWARDS = Lookup(
    t.rewards,
    granted=By(MEMBER, one_of(t.rewards.c.status, RewardStatus.GRANTED)),
    named=By((*MEMBER, "reward_id")),
    campaign=By(_CAMPAIGN),
)
_RANKS = Lookup(t.ranks, all=By(MEMBER))
_BLOCKS = Lookup(t.blocks, named=By(_CAMPAIGN))
_REVIEWS = Lookup(t.reviews, named=By(("review_id",)))
_LOCK_PAIRS = _lock_pairs()
_PAIRS = Lookup(t.pairs, named=By(("campaign_id", "lesser_id", "greater_id")))
_SIGNALS = _counting(_came, campaign_id=sa.Text, signal=sa.Text, value=sa.Text)
_BINDS = _counting(_bound, inviter_id=sa.Text, campaign_id=sa.Text, since=t.INSTANT)


async def lock(connection: Connection, wanted: Wanted) -> Seen:
    """Locks the members in order, then the pairs, then the budgets, and reads what the batch may depend on.

    Members and budgets are made if they are not there.
    """
    seen = Seen()
    rows, seen.made = await _MEMBERS.lock(connection, wanted.members)
    seen.profiles = {row["member_id"]: to_profile(row) for row in rows}
    seen.done = await ANSWERS.read(connection, wanted.requests, wanted.events)
    known = seen.profiles.keys() - seen.made
    await _load_invitees(connection, wanted, known, seen)
    await _load_inviters(connection, wanted, known, seen)
    await _load_others(connection, wanted, seen)
    await _lock_pairs_and_budgets(connection, wanted, seen)
    return seen


async def _load_invitees(connection: Connection, wanted: Wanted, known: set[str], seen: Seen) -> None:
    """What members are as invitees; and who brought those who are not locked."""
    found = await _ATTRIBUTIONS.fetch(connection, all=keys(known), named=keyed(wanted.attributions))
    for row in found:
        name = (row["member_id"], row["campaign_id"])
        bond = to_attribution(row)
        if name in wanted.attributions:
            seen.attributions[name] = bond
        if row["member_id"] in known:
            seen.profiles[row["member_id"]].attributions[row["campaign_id"]] = bond
    for row in await _FACTS.fetch(connection, all=keys(wanted.facts_of & known)):
        fact = to_fact(row)
        seen.profiles[row["member_id"]].facts[fact.name] = fact


async def _load_inviters(connection: Connection, wanted: Wanted, known: set[str], seen: Seen) -> None:
    """What members are as inviters."""
    profiles, members, inviters = seen.profiles, keys(known), keyed(wanted.inviters)
    for row in await _INVITES.fetch(connection, all=members):
        profiles[row["member_id"]].invites[row["campaign_id"]] = to_invite(row)
    for row in await _RANKS.fetch(connection, all=members):
        profiles[row["member_id"]].ranks[row["campaign_id"]] = to_rank(row)
    for row in await _INVITEES.fetch(connection, campaign=inviters):
        invitee = to_invitee(row)
        profiles[row["member_id"]].invitees[invitee.attribution_id, invitee.depth] = invitee
    for row in await _RUNGS.fetch(connection, campaign=inviters):
        rung = to_rung(row)
        profiles[row["member_id"]].rungs[rung.name] = rung
    rewards = keyed(wanted.rewards)
    for row in await _REWARDS.fetch(connection, granted=members, named=rewards, campaign=inviters):
        found = profiles[row["member_id"]].rewards
        if row["reward_id"] not in found:
            found[row["reward_id"]] = to_reward(row)


async def _load_others(connection: Connection, wanted: Wanted, seen: Seen) -> None:
    """What is known beside the members: blocks, reviews, signals, binds of late, and tries."""
    blocked = wanted.blocked | {(member_id, "") for member_id, _ in wanted.blocked}
    blocks = await _BLOCKS.fetch(connection, named=keyed(blocked))
    found = {(row["member_id"], row["campaign_id"]) for row in blocks}
    seen.blocked = {name for name in wanted.blocked if found & {name, (name[0], "")}}
    for row in await _REVIEWS.fetch(connection, named=[(review_id,) for review_id in wanted.reviews]):
        seen.reviews[row["review_id"]] = to_review(row)
    counts = await _SIGNALS.fetch_rows(connection, sorted({one[:3] for one in wanted.signals}))
    came = {tuple(value): count for *value, count in counts}
    seen.signals = {one: came[one[:3]] for one in wanted.signals}
    since = [(*inviter, instant) for inviter, instant in wanted.binds_since.items()]
    for inviter_id, campaign_id, _, count in await _BINDS.fetch_rows(connection, since):
        seen.binds[inviter_id, campaign_id] = count
    seen.tries = await tries(connection, wanted.tries)


async def _lock_pairs_and_budgets(connection: Connection, wanted: Wanted, seen: Seen) -> None:
    names = sorted("\x1f".join(("pair", *pair)) for pair in wanted.pairs)
    await _LOCK_PAIRS.fetch_rows(connection, [(name,) for name in names])
    seen.pairs = {Pair(*row) for row in await _PAIRS.fetch(connection, named=wanted.pairs)}
    seen.budgets = await lock_budgets(connection, wanted.budgets)


# --- save ---------------------------------------------------------------------------------------------


_ADD_CODES = Insert(t.codes)
_ADD_PAIRS = Insert(t.pairs)
_ADD_SIGNALS = Insert(t.signals)
_SAVE_REVIEWS = Upsert(t.reviews, t.CHANGING["reviews"])


async def save(connection: Connection, changes: Changes, received: datetime) -> None:
    """Writes what a batch did, a statement per table; `received` is wall time.

    Members who were made for the lock and to whom nothing came are dropped again.
    """
    before, after = changes.before, changes.after
    touched = await _MEMBERS.save(connection, before.profiles, after.profiles)
    touched |= await ANSWERS.write(connection, after.done, received)
    await _MEMBERS.drop(connection, before.made - touched)
    await _save_shared(connection, changes)


async def _save_shared(connection: Connection, changes: Changes) -> None:
    """What members share: codes, pairs, signals, reviews, budgets and tries."""
    before, after = changes.before, changes.after
    codes = [
        (invite.code, campaign_id, name)
        for name, profile in after.profiles.items()
        for campaign_id, invite in profile.invites.items()
        if campaign_id not in before.profiles[name].invites
    ]
    await _ADD_CODES.rows(connection, codes)
    await _ADD_PAIRS.rows(connection, sorted(after.pairs - before.pairs))
    await _ADD_SIGNALS.rows(connection, sorted(changes.signals))
    reviews = _SAVE_REVIEWS.changed(
        (review_rows(old) if old else (), review_rows(new))
        for _, old, new in replaced(before.reviews, after.reviews)
    )
    await _SAVE_REVIEWS.write(connection, reviews)
    await save_budgets(connection, before.budgets, after.budgets)
    more = {name: count - before.tries.get(name, 0) for name, count in after.tries.items()}
    await add_tries(connection, {name: count for name, count in more.items() if count > 0})
