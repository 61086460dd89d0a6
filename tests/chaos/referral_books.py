"""What a client knows of members who bring members, and how it holds the books of referral against that.

What each member did is told by one caller, one after the other, so where its bond stands is known exactly,
but for what the fraud rules think of it. From that follows who counts for whom, which rungs that reaches, and
which rewards stand; of these events tell, and points and cards tell what they handed over.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from loyalty.cards.v1 import cards_events_pb2 as cards_pb
from loyalty.points.v1 import points_events_pb2 as points_pb
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.ids import bucket
from tests.chaos.cards_books import events_of
from tests.chaos.journal import Entry, rows_of

FIRST, THIRD, CARD, AGAIN, EACH, DEEP = "first", "third", "card", "again", "each", "deep"
ONCE = {FIRST: 1, THIRD: 3, CARD: 4}  # at how many
WINDOW = timedelta(hours=87_840)  # ten years: seldom does the clock leap so far while a journal runs
COST = 100  # minor units, of what has a price of its own
CROWD, CROWD_SCORE = 2, 50  # members with one device of whom none waits for an operator, and what more bring
PAYERS, PAYERS_SCORE = 1, 100  # the same of the account that pays, and how many are wrong for sure
TABLES = ("members", "answers", "attributions", "facts", "invites", "invitees", "steps", "rewards", "ranks")
STANDING = ("PENDING", "GRANTED", "FULFILLED", "FAILED")
GRANTED, FULFILLED = epb.RewardGranted, epb.RewardFulfilled
# What is told of a reward that stands so: one way or another.
WAYS: Mapping[str, Sequence[Sequence[Any]]] = {
    "PENDING": [[]],
    "WITHDRAWN": [[]],
    "GRANTED": [[GRANTED]],
    "FULFILLED": [[GRANTED, FULFILLED]],
    "CLAWED_BACK": [[GRANTED, epb.RewardClawedBack], [GRANTED, FULFILLED, epb.RewardClawedBack]],
}
BY_SCORE = "~score"  # who rejected what no operator judged
VERDICTS: Mapping[int, str] = {pb.REVIEW_STATUS_PASSED: "PASS", pb.REVIEW_STATUS_REJECTED: "REJECT"}

Rows = Sequence[Any]


def about(event: Any) -> str:
    """What an event counts in its version: a reward, a bond, a member or a campaign."""
    match event:
        case epb.BudgetExhausted():
            return str(event.campaign_id)
        case epb.InviteCreated() | epb.StepReached():
            return str(event.member_id)
    return str(getattr(event, "reward_id", "") or event.attribution_id)


def rounds(step_id: str, near: int, far: int) -> int:
    """How often a step is reached with so many who count, brought by the member and by whom it brought."""
    if step_id in ONCE:
        return int(near >= ONCE[step_id])
    return {AGAIN: max(0, (near - 2) // 2), EACH: max(0, near - 1), DEEP: far}[step_id]


def status(verdict: str, orders: Collection[str], undone: Collection[str]) -> str:
    """Where a bond stands that is judged so, by what its invitee bought and gave back."""
    if verdict == "REJECT":
        return "REJECTED"
    if set(orders) - set(undone):
        return "QUALIFIED" if verdict == "PASS" else "BOUND"
    return "REVOKED" if orders else "BOUND"


# --- what the client knows ------------------------------------------------------------------------------


@dataclass
class Friend:
    """What the client knows of a member: nobody else touches it."""

    code: str = ""
    """Of its own invite."""
    bond: pb.Attribution | None = None
    """As its bind was answered."""
    bind: Entry | None = None
    signals: pb.Signals = field(default_factory=pb.Signals)
    orders: dict[str, int] = field(default_factory=dict)
    """What each was worth when it was told first."""
    undone: set[str] = field(default_factory=set)
    """Orders that were given back, also some of which that is all that was told."""

    @property
    def inviter(self) -> str:
        """Who brought it."""
        return self.bond.inviter_member_id if self.bond else ""


# --- what the books have --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Books:
    """What the database has of a campaign and of all its members."""

    campaign_id: str
    steps: Sequence[str]
    """Of its ladder."""
    kept: Mapping[str, Rows]
    reviews: Rows
    pairs: Rows
    budget: Any
    events: Sequence[Any]
    """In the order in which they were written."""
    moved: bool
    """Whether the clock was moved since the load began."""

    def check(self, friends: Mapping[str, Friend], judged: Mapping[str, int]) -> None:
        """Holds all of it against what the client knows, and what events say."""
        self._check_bonds(friends)
        self._check_facts(friends)
        self._check_verdicts(friends, judged)
        self._check_standing(friends)
        self._check_invitees()
        self._check_rungs()
        self._check_versions()
        self._check_rewards()
        self._check_budget()

    # --- invitees -------------------------------------------------------------------------------------

    def _check_bonds(self, friends: Mapping[str, Friend]) -> None:
        """Every bond that was answered is there once, no other is, and no two members brought each other."""
        rows = {row["member_id"]: row for row in self.kept["attributions"]}
        assert len(rows) == len(self.kept["attributions"])
        assert {member: (row["attribution_id"], row["inviter_id"]) for member, row in rows.items()} == {
            member: (friend.bond.attribution_id, friend.inviter)
            for member, friend in friends.items()
            if friend.bond
        }
        bonds = {(member, row["inviter_id"]) for member, row in rows.items()}
        assert not bonds & {(inviter, member) for member, inviter in bonds}
        claims = {(row["lesser_id"], row["greater_id"]) for row in self.pairs}
        assert claims == {(min(pair), max(pair)) for pair in bonds}
        for member, row in rows.items():
            self._check_grand_inviter(friends[member], friends[row["inviter_id"]], row)
        codes = {row["member_id"]: row["code"] for row in self.kept["invites"]}
        assert codes == {member: friend.code for member, friend in friends.items() if friend.code}

    def _check_grand_inviter(self, friend: Friend, inviter: Friend, row: Any) -> None:
        """The second level is whoever had brought the inviter by then, and nobody else."""
        assert row["grand_inviter_id"] in ("", inviter.inviter)
        assert friend.bind is not None
        if inviter.bind is not None and inviter.bind.ended < friend.bind.began:
            assert row["grand_inviter_id"] == inviter.inviter

    def _check_facts(self, friends: Mapping[str, Friend]) -> None:
        found = {
            (row["member_id"], row["reference_id"]): (row["amount_minor"], row["revoke_time"] is not None)
            for row in self.kept["facts"]
        }
        assert found == {
            (member, order_id): (friend.orders.get(order_id, 0), order_id in friend.undone)
            for member, friend in friends.items()
            for order_id in friend.orders.keys() | friend.undone
        }

    def _check_verdicts(self, friends: Mapping[str, Friend], judged: Mapping[str, int]) -> None:
        """Who looks suspicious is so by what it came with; what an operator said of it last holds."""
        by_operators = [row for row in self.reviews if row["resolved_by"] != BY_SCORE]
        assert {row["review_id"]: row["verdict"] for row in by_operators} == {
            row["review_id"]: VERDICTS[judged[row["review_id"]]] if row["review_id"] in judged else ""
            for row in by_operators
        }
        assert judged.keys() <= {row["review_id"] for row in self.reviews}
        said = {row["member_id"]: row["verdict"] for row in self.reviews}
        beyond: Counter[str] = Counter()
        for row in self.kept["attributions"]:
            signals, friend = set(json.loads(row["signals"])), friends[row["member_id"]]
            beyond.update(signals)
            assert signals <= {field.name.upper() for field, _ in friend.signals.ListFields()}
            score = CROWD_SCORE * ("DEVICE" in signals) + PAYERS_SCORE * ("PAYMENT_ACCOUNT" in signals)
            first = "REJECT" if score >= PAYERS_SCORE else "REVIEW" if score else "PASS"
            assert row["verdict"] == (said.get(row["member_id"]) or first)
            assert (row["member_id"] in said) == (first != "PASS")
        came = Counter(
            name.name.upper()
            for friend in friends.values()
            if friend.bond
            for name, _ in friend.signals.ListFields()
        )
        for signal, limit in (("DEVICE", CROWD), ("PAYMENT_ACCOUNT", PAYERS)):
            # Who came at once, to two processes, may not have seen each other.
            assert beyond[signal] <= max(0, came[signal] - limit)

    def _check_standing(self, friends: Mapping[str, Friend]) -> None:
        """Each bond stands as what its invitee did says, by the first of it that was not undone."""
        told: defaultdict[str, list[Any]] = defaultdict(list)
        for fact in self.kept["facts"]:
            told[fact["member_id"]].append(fact)
        for row in self.kept["attributions"]:
            friend = friends[row["member_id"]]
            facts = [fact for fact in told[row["member_id"]] if _in_time(fact, row["lapse_time"])]
            undone = {fact["reference_id"] for fact in facts if _undone(fact)}
            deeds = sorted((fact["occur_time"], fact["reference_id"]) for fact in facts)
            stands = status(row["verdict"], [order_id for _, order_id in deeds], undone)
            lapsed = stands == "BOUND" and not deeds and self.moved
            assert row["status"] == stands or (lapsed and row["status"] == "LAPSED"), row
            counting = [deed for deed in deeds if deed[1] not in undone] or deeds
            by = (row["qualify_time"], row["reference_id"])
            assert by == (counting[0] if counting else (None, ""))
            assert row["amount_minor"] == friend.orders.get(row["reference_id"], 0)

    # --- inviters -------------------------------------------------------------------------------------

    def _check_invitees(self) -> None:
        """Each inviter knows of each of its invitees once, and whether it counts."""
        expected = {}
        for row in self.kept["attributions"]:
            levels = [(row["inviter_id"], 1), (row["grand_inviter_id"], 2)]
            for inviter, depth in levels[: 2 if row["grand_inviter_id"] else 1]:
                expected[inviter, row["attribution_id"], depth] = row["status"] == "QUALIFIED"
        found = {
            (row["member_id"], row["attribution_id"], row["depth"]): row["state"] == "QUALIFIED"
            for row in self.kept["invitees"]
        }
        assert found == expected
        assert len(found) == len(self.kept["invitees"])

    @property
    def _counts(self) -> dict[str, Counter[int]]:
        """How many count for each member who brought some, by level."""
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for row in self.kept["attributions"]:
            if row["status"] == "QUALIFIED":
                counts[row["inviter_id"]][1] += 1
                counts[row["grand_inviter_id"]][2] += 1
        return counts

    def _check_rungs(self) -> None:
        """As many rungs of each step stand as so many invitees reach, and each gives each side one reward."""
        counts = self._counts
        stand = Counter((r["member_id"], r["step_id"]) for r in self.kept["steps"] if not r["lost"])
        expected: Counter[tuple[str, str]] = Counter()
        for member, by_depth in counts.items():
            if member:
                expected.update(
                    {(member, name): rounds(name, by_depth[1], by_depth[2]) for name in self.steps}
                )
        assert +stand == +expected
        given: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(list)
        for reward in self.kept["rewards"]:
            given[reward["member_id"], reward["step_id"], reward["round"], reward["role"]].append(reward)
        for rung in self.kept["steps"]:
            for role in ("INVITER", "INVITEE") if rung["step_id"] == FIRST else ("INVITER",):
                mine = given.pop((rung["member_id"], rung["step_id"], rung["round"], role), [])
                assert sum(reward["status"] in STANDING for reward in mine) == (not rung["lost"]), rung
                attempts = sorted(reward["attempt"] for reward in mine)
                assert attempts == list(range(1, len(mine) + 1))
        assert not given
        ranks = {row["member_id"]: row["count"] for row in self.kept["ranks"]}
        assert +Counter(ranks) == +Counter({member: by[1] for member, by in counts.items() if member})

    def _check_versions(self) -> None:
        """Events about each thing are numbered without a gap, and as many as it says there are."""
        versions: defaultdict[str, list[int]] = defaultdict(list)
        for event in self.events:
            versions[about(event)].append(event.version)
        counted = {row["member_id"]: row["version"] for row in self.kept["members"]}
        counted |= {row["attribution_id"]: row["version"] for row in self.kept["attributions"]}
        counted |= {row["reward_id"]: row["version"] for row in self.kept["rewards"]}
        counted[self.campaign_id] = self.budget["version"]
        assert versions == {name: list(range(1, last + 1)) for name, last in counted.items() if last}

    # --- rewards --------------------------------------------------------------------------------------

    def _check_rewards(self) -> None:
        """What is told of a reward is what became of it: granted once, then handed over, or taken back."""
        told: defaultdict[str, list[Any]] = defaultdict(list)
        for event in self.events:
            if name := getattr(event, "reward_id", ""):
                told[name].append(event)
        for reward in self.kept["rewards"]:
            kinds = [type(event) for event in told.pop(reward["reward_id"], [])]
            again = kinds[1:].count(epb.RewardGranted)
            assert not again or self.moved  # told again, as it was not handed over for a year
            assert kinds[:1] + kinds[1 + again :] in WAYS.get(reward["status"], []), reward
        assert not told

    def _check_budget(self) -> None:
        """What was granted of the budget is what rewards cost, never was more than it, and is told so."""
        costs = {row["reward_id"]: row["cost_minor"] for row in self.kept["rewards"]}
        stand: set[str] = set()
        for event in self.events:
            match event:
                case epb.RewardGranted():
                    stand.add(event.reward_id)
                    assert sum(costs[name] for name in stand) <= self.budget["budget_minor"]
                case epb.RewardClawedBack():
                    assert event.reward_id in stand
                    stand.remove(event.reward_id)
        assert self.budget["granted_minor"] == sum(costs[name] for name in stand)
        exhausted = [event for event in self.events if isinstance(event, epb.BudgetExhausted)]
        assert all(event.granted_minor <= event.budget_minor for event in exhausted)
        budgets = [event.budget_minor for event in exhausted]
        assert budgets == sorted(set(budgets))  # told once for each that was set


def _in_time(fact: Any, lapse_time: datetime) -> bool:
    return fact["occur_time"] is not None and fact["occur_time"] < lapse_time


def _undone(fact: Any) -> bool:
    return fact["revoke_time"] is not None and fact["revoke_time"] < fact["occur_time"] + WINDOW


def check_points(rewards: Rows, members: Rows, ledger: Rows, told: Iterable[Any]) -> None:
    """Points gave what was granted, once, took back what was taken back, and said so."""
    granted = {row["reward_id"]: row for row in rewards if row["gift_kind"] == "POINTS" and row["grant_time"]}
    events = list(told)
    _check_handed_over(granted, events, points_pb)
    fulfilled = {e.reward_id: e.transaction_id for e in events if isinstance(e, points_pb.RewardFulfilled)}
    given = {row["transaction_id"]: row for row in ledger if row["kind"] == "EARN" and not row["activity_id"]}
    assert given.keys() == set(fulfilled.values())
    undone = Counter(row["reverses_transaction_id"] for row in ledger if row["kind"] == "REVERSE")
    assert undone == Counter(fulfilled[n] for n in fulfilled if granted[n]["status"] == "CLAWED_BACK")
    for name, transaction_id in fulfilled.items():
        row, earned = granted[name], given[transaction_id]
        assert (earned["member_id"], moved(earned)) == (row["receiver_id"], row["quantity"])
        assert row["status"] == "CLAWED_BACK" or row["reference_id"] == transaction_id
    assert {row["member_id"] for row in ledger} <= {row["member_id"] for row in members}


def check_cards(rewards: Rows, told: Iterable[Any]) -> None:
    """Cards gave what was granted, once, and said so."""
    granted = {row["reward_id"]: row for row in rewards if row["gift_kind"] == "CARD" and row["grant_time"]}
    _check_handed_over(granted, list(told), cards_pb)


def _check_handed_over(granted: Mapping[str, Any], told: Iterable[Any], contract: Any) -> None:
    """Each granted reward was handed over once; or refused, since that it is taken back was heard first."""
    fulfilled = Counter(e.reward_id for e in told if isinstance(e, contract.RewardFulfilled))
    refused = {e.reward_id for e in told if isinstance(e, contract.FulfilmentRefused)}
    assert fulfilled == Counter(granted.keys() - refused)
    assert {granted[name]["status"] for name in refused} <= {"CLAWED_BACK"}


async def handed_over(connection: Any, members: Sequence[str], rewards: Iterable[Any], contract: Any) -> bool:
    """Whether each reward that was granted was handed over or refused, and points are taken back again."""
    granted = {row["reward_id"]: row["status"] == "CLAWED_BACK" for row in rewards if row["grant_time"]}
    events = [event for _, event, _ in await events_of(connection, members, contract)]
    answers = (contract.RewardFulfilled, contract.FulfilmentRefused)
    if granted.keys() - {event.reward_id for event in events if isinstance(event, answers)}:
        return False
    if contract is not points_pb:
        return True
    back = {row["reverses_transaction_id"] for row in await rows_of(connection, "transactions", members)}
    given = {e.reward_id: e.transaction_id for e in events if isinstance(e, points_pb.RewardFulfilled)}
    return {transaction_id for name, transaction_id in given.items() if granted[name]} <= back


def moved(row: Any) -> int:
    """How many points a transaction moved."""
    return sum(amount for *_, amount in json.loads(row["transfers"]))


# --- how it is read -------------------------------------------------------------------------------------

_TOLD = """
SELECT entity_key, subject, body FROM outbox
WHERE (bucket, entity_key) IN (SELECT * FROM unnest($1::smallint[], $2::text[])) ORDER BY position
"""
OF_ONE = {
    table: f"SELECT * FROM {table} WHERE campaign_id = $1"  # noqa: S608 - ours
    for table in ("reviews", "pairs", "budgets", "campaigns")
}
# Whatever somebody still has to be told, to be granted, to be returned or to be handed over.
SETTLED = """
SELECT NOT EXISTS (
  SELECT FROM attributions a LEFT JOIN invitees i
    ON (i.campaign_id, i.attribution_id, i.depth) = (a.campaign_id, a.attribution_id, 1)
  WHERE a.campaign_id = $1
    AND i.told_version IS DISTINCT FROM a.version - (a.grand_inviter_id <> '')::int
) AND NOT EXISTS (
  SELECT FROM attributions a LEFT JOIN invitees i
    ON (i.campaign_id, i.attribution_id, i.depth) = (a.campaign_id, a.attribution_id, 2)
  WHERE a.campaign_id = $1 AND a.grand_inviter_id <> '' AND i.told_version IS DISTINCT FROM a.version
) AND NOT EXISTS (
  SELECT FROM rewards WHERE campaign_id = $1
  AND (status = 'GRANTED' AND gift_kind IN ('POINTS', 'CARD') OR status = 'CLAWED_BACK' AND NOT returned)
) AND NOT EXISTS (
  SELECT FROM (
    SELECT cost_minor FROM rewards WHERE campaign_id = $1 AND status = 'PENDING'
    ORDER BY reach_time, reward_id LIMIT 1
  ) next, budgets b
  WHERE b.campaign_id = $1 AND (b.granted_minor + next.cost_minor <= b.budget_minor OR NOT b.exhausted)
)
"""


async def told(connection: Any, entities: Sequence[str]) -> list[tuple[Any, bytes]]:
    """What was announced to some members, and about a campaign, in the order in which it was written."""
    rows = await connection.fetch(_TOLD, [bucket(one) for one in entities], entities)
    return [(getattr(epb, subject.rpartition(".")[2]).FromString(body), body) for _, subject, body in rows]
