"""Members who bring members; `referral_books` holds the books against what came of it.

Each worker is a circle: a member, and whoever came with it. They come by codes of their own circle and of
others, buy, and give back. Pairs bring each other at once. Beside them an operator judges, blocks, pays, and
raises the budget.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import grpc
from loyalty.cards.v1 import cards_events_pb2 as cards_pb
from loyalty.points.v1 import points_events_pb2 as points_pb
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.cli.house import House
from services.referral import codes
from tests.cards.calls import a_product
from tests.cards.calls import put as put_product
from tests.chaos.cards_books import events_of
from tests.chaos.groups_books import REQUESTS
from tests.chaos.journal import (
    REFUSED,
    SETTLE_TIMEOUT,
    Client,
    Entry,
    Journal,
    Outcome,
    owner,
    rows_of,
    snapshot,
    until,
)
from tests.chaos.parts import Part
from tests.chaos.points import announced, check_member
from tests.chaos.referral_books import (
    AGAIN,
    CARD,
    COST,
    CROWD,
    CROWD_SCORE,
    DEEP,
    EACH,
    FIRST,
    OF_ONE,
    PAYERS,
    PAYERS_SCORE,
    SETTLED,
    TABLES,
    THIRD,
    WINDOW,
    Books,
    Friend,
    about,
    check_cards,
    check_points,
    handed_over,
    status,
    told,
)
from tests.chaos.site import Caller
from tests.referral.calls import a_campaign, cash, points, stamp
from tests.referral.requests import GOOD
from tests.support import Cards, Referral, fresh

BUDGET, MORE = 2_000, 5_000  # minor units, at first and each time that it is raised
PAUSE = 0.3  # seconds between two works of the operator's, and between two pairs, at most
AGES = timedelta(days=365 * 1_000)  # longer than the clock leaps
LONG = WINDOW // timedelta(hours=1)
YEAR = 8_784  # hours
OPENED = 200  # rewards that an operator looks at
GUEST = a_product(code="guest", period="P30D")  # what the rung of a card gives

Make = Callable[[dict[str, Any], str, Friend], Entry]
ByHand = Callable[[dict[str, Any]], Entry]


def ladder(house: House) -> list[dict[str, Any]]:
    """A rung of each kind, as far as there is a service in the house that hands it over."""
    steps: list[dict[str, Any]] = [
        {"step_id": FIRST, "at": 1, "reward": points(100, COST), "invitee_reward": points(50, COST)},
        {"step_id": THIRD, "at": 3, "reward": cash(300)},
        {"step_id": AGAIN, "every": {"count": 2, "first": 4}, "reward": points(30, COST)},
        {"step_id": EACH, "each_from": 2, "reward": {"cash": {"share_basis_points": 1_000}}},
        {"step_id": DEEP, "depth": 2, "each_from": 1, "reward": points(20)},
    ]
    if "cards" in house.services:
        reward = {"card": {"plan_id": GUEST.code}, "cost_minor": COST}
        steps.insert(2, {"step_id": CARD, "at": 4, "reward": reward})
    return steps


class ReferralJournal(Journal):
    """Members who invite, come, buy and give back, in a campaign of their own."""

    service = "referral"
    reads = frozenset({"GetProgress", "ListRewards", "ListOpenRewards", "ListReviews"})
    by_hand = frozenset({"BlockInviter", "UnblockInviter"})
    refused = REFUSED | {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.NOT_FOUND}

    def __init__(self, house: House, **how: Any) -> None:
        super().__init__(house, **how)
        self.friends = {member: Friend() for member in self.members}
        self.campaign = a_campaign(
            open_time=(self._now - timedelta(days=1)).isoformat(),
            close_time=(self._now + AGES).isoformat(),
            settle_time=(self._now + AGES).isoformat(),
            ladder=ladder(house),
            max_depth=2,
            attribution_window_hours=LONG,
            clawback_window_hours=LONG,
            fulfil_within_hours=YEAR,
            budget_minor=BUDGET,
            currency_code="CNY",
            signal_limits=[
                {"signal": "SIGNAL_DEVICE", "limit": CROWD, "score": CROWD_SCORE},
                {"signal": "SIGNAL_PAYMENT_ACCOUNT", "limit": PAYERS, "score": PAYERS_SCORE},
            ],
            review_score=CROWD_SCORE,
            reject_score=PAYERS_SCORE,
        )
        self._circles = {member: [member] for member in self.members}
        self._codes: dict[str, str] = {}  # and whose each is
        self._brought = dict.fromkeys(self.members, 0)  # by each who tried to come
        self._wrong: dict[Entry, str] = {}  # what must be refused, and why
        self._blocked: set[str] = set()
        self._ever_blocked: set[str] = set()
        self._reviews: set[str] = set()
        self._judged: dict[str, int] = {}
        self._payable: set[str] = set()
        self._paid: dict[str, str] = {}

    # --- the load -------------------------------------------------------------------------------------

    async def _lay_ground(self, client: Client) -> None:
        await self._do(client, self._put({"request_id": fresh("put")}))
        for member in self.members:  # so that all know codes
            common = {"member_id": member, "request_id": fresh("r"), "campaign_id": self._campaign_id}
            await self._do(client, Entry("CreateInvite", pb.CreateInviteRequest(**common)))

    def _workers(
        self, client: Client, each: int, struck: asyncio.Event
    ) -> Iterable[Coroutine[Any, Any, None]]:
        yield from super()._workers(client, each, struck)
        yield self._operate(client, each // 2, struck)
        yield self._meet(client, each // 8, struck)

    async def _operate(self, client: Client, commands: int, struck: asyncio.Event) -> None:
        """By hand; whoever is blocked in the end is so no more."""
        sent = 0
        while sent < commands or not struck.is_set():
            sent += 1
            make: ByHand = self._choose(self._works())
            await self._do(client, make({"request_id": fresh("r")}))
            await asyncio.sleep(self._random.uniform(0, PAUSE))
        while self._blocked:
            await self._do(client, self._unblock({"request_id": fresh("r")}))

    async def _meet(self, client: Client, pairs: int, struck: asyncio.Event) -> None:
        """Two bring each other at once: just one of them is brought."""
        met = 0
        while met < pairs or not struck.is_set():
            met += 1
            pair = [self._newcomer(), self._newcomer()]
            for member in pair:
                await self._do(client, self._invite(self._common(member), member, self.friends[member]))
            binds = [
                self._bind(self._common(one), one, self.friends[other].code)
                for one, other in (pair, reversed(pair))
            ]
            await asyncio.gather(*(self._do(client, bind) for bind in binds))
            assert sorted(bind.reason for bind in binds) == ["", "CYCLE"], pair
            await asyncio.sleep(self._random.uniform(0, PAUSE))

    def _command(self, member: str) -> Entry:
        who = self._random.choice(self._circles[member])
        friend = self.friends[who]
        make: Make = self._choose(self._wishes(friend))
        if make == self._bring and (friend.bond or self._random.random() < 0.7):
            who = self._newcomer()
            self._circles[member].append(who)
            friend = self.friends[who]
        return make(self._common(who), who, friend)

    def _choose(self, wishes: Iterable[tuple[int, bool, Any]]) -> Any:
        possible = [(weight, make) for weight, there_is, make in wishes if there_is]
        (make,) = self._random.choices([make for _, make in possible], [weight for weight, _ in possible])
        return make

    def _newcomer(self) -> str:
        member = fresh("friend")
        self.members.append(member)
        self.friends[member] = Friend()
        return member

    def _common(self, member: str) -> dict[str, Any]:
        return {"member_id": member, "request_id": fresh("r"), "campaign_id": self._campaign_id}

    @property
    def _campaign_id(self) -> str:
        return str(self.campaign.campaign_id)

    # --- by members -----------------------------------------------------------------------------------

    def _wishes(self, friend: Friend) -> Iterator[tuple[int, bool, Make]]:
        """What a member may want: how much, and whether there is what it is about."""
        yield 14, True, self._bring
        yield 5, True, self._invite
        yield 16, True, self._buy
        yield 2, bool(friend.orders), self._tell_again
        yield 5, bool(friend.orders), self._give_back
        yield 1, True, self._give_back_early
        yield 3, friend.bond is not None, self._come_again
        yield 1, bool(friend.code), self._come_to_itself
        yield 1, friend.bond is None, self._guess
        yield 4, True, self._look
        yield 3, True, self._look_at_rewards

    def _bring(self, common: dict[str, Any], member: str, _: Friend) -> Entry:
        mine = self.friends[member].code
        return self._bind(common, member, self._random.choice([code for code in self._codes if code != mine]))

    def _bind(self, common: dict[str, Any], member: str, code: str) -> Entry:
        signals = self.friends[member].signals
        signals.Clear()
        if self._random.random() < 0.2:
            signals.device = "shared"
        if self._random.random() < 0.05:
            signals.payment_account = "shared"
        self._brought[self._codes[code]] = self._brought.get(self._codes[code], 0) + 1
        typed = code.lower() if self._random.random() < 0.5 else code
        return Entry("BindInvitee", pb.BindInviteeRequest(**common, code=typed, signals=signals))

    def _invite(self, common: dict[str, Any], _: str, __: Friend) -> Entry:
        return Entry("CreateInvite", pb.CreateInviteRequest(**common, display_name="友"))

    def _buy(self, common: dict[str, Any], _: str, __: Friend) -> Entry:
        return self._order(common, fresh("order"))

    def _tell_again(self, common: dict[str, Any], _: str, friend: Friend) -> Entry:
        """Of what was told before, as worth something else: the first word holds."""
        return self._order(common, self._random.choice(sorted(friend.orders)))

    def _order(self, common: dict[str, Any], order_id: str) -> Entry:
        worth: dict[str, Any] = {"amount_minor": self._random.randint(1_000, 5_000), "currency_code": "CNY"}
        request = pb.RecordQualificationRequest(
            **common,
            kind=epb.QUALIFICATION_KIND_ORDER,
            reference_id=order_id,
            occur_time=stamp(self._now),
            **worth,
        )
        return Entry("RecordQualification", request)

    def _give_back(self, common: dict[str, Any], _: str, friend: Friend) -> Entry:
        return self._undo(common, self._random.choice(sorted(friend.orders)))

    def _give_back_early(self, common: dict[str, Any], _: str, __: Friend) -> Entry:
        """What nobody has told yet."""
        return self._undo(common, fresh("order"))

    def _undo(self, common: dict[str, Any], order_id: str) -> Entry:
        reason = self._random.choice((epb.REVOKE_REASON_REFUNDED, epb.REVOKE_REASON_REQUESTED))
        said: dict[str, Any] = {"reference_id": order_id, "reason": reason, "occur_time": stamp(self._now)}
        return Entry("RevokeQualification", pb.RevokeQualificationRequest(**common, **said))

    def _come_again(self, common: dict[str, Any], _: str, friend: Friend) -> Entry:
        code = self._random.choice([code for code in self._codes if code != friend.code])
        return self._must_be_refused(common, code, "ALREADY_BOUND")

    def _come_to_itself(self, common: dict[str, Any], _: str, friend: Friend) -> Entry:
        return self._must_be_refused(common, friend.code, "SELF_REFERRAL")

    def _guess(self, common: dict[str, Any], _: str, __: Friend) -> Entry:
        code = self._random.choice((codes.make(), "NOBODY"))
        return self._must_be_refused(common, code, "CODE_UNKNOWN")

    def _must_be_refused(self, common: dict[str, Any], code: str, reason: str) -> Entry:
        entry = Entry("BindInvitee", pb.BindInviteeRequest(**common, code=code))
        self._wrong[entry] = reason
        return entry

    def _look(self, common: dict[str, Any], _: str, __: Friend) -> Entry:
        return Entry("GetProgress", pb.GetProgressRequest(**_asking(common)))

    def _look_at_rewards(self, common: dict[str, Any], _: str, __: Friend) -> Entry:
        return Entry("ListRewards", pb.ListRewardsRequest(**_asking(common)))

    # --- by hand --------------------------------------------------------------------------------------

    def _works(self) -> Iterator[tuple[int, bool, ByHand]]:
        """What may be done by hand, likewise."""
        yield 3, True, self._put_more
        yield 3, True, self._look_for_reviews
        yield 6, bool(self._reviews), self._judge
        yield 3, True, self._look_for_rewards
        yield 8, bool(self._payable), self._pay
        yield 2, True, self._block
        yield 4, bool(self._blocked), self._unblock

    def _put(self, common: dict[str, Any]) -> Entry:
        return Entry("PutCampaign", pb.PutCampaignRequest(**common, campaign=self.campaign))

    def _put_more(self, common: dict[str, Any]) -> Entry:
        self.campaign.budget_minor += MORE
        return self._put(common)

    def _look_for_reviews(self, _: dict[str, Any]) -> Entry:
        request = pb.ListReviewsRequest(campaign_id=self._campaign_id, include_resolved=True)
        return Entry("ListReviews", request)

    def _judge(self, common: dict[str, Any]) -> Entry:
        verdict = self._random.choice((pb.REVIEW_STATUS_PASSED, pb.REVIEW_STATUS_REJECTED))
        review_id = self._random.choice(sorted(self._reviews))
        return Entry("ResolveReview", pb.ResolveReviewRequest(**common, review_id=review_id, verdict=verdict))

    def _look_for_rewards(self, _: dict[str, Any]) -> Entry:
        request = pb.ListOpenRewardsRequest(campaign_id=self._campaign_id, page_size=OPENED)
        return Entry("ListOpenRewards", request)

    def _pay(self, common: dict[str, Any]) -> Entry:
        reward_id = self._payable.pop()
        said = {"reward_id": reward_id, "reference_id": fresh("payment")}
        return Entry("RecordRewardPaid", pb.RecordRewardPaidRequest(**common, **said))

    def _block(self, common: dict[str, Any]) -> Entry:
        member = self._random.choice(list(self._circles))
        self._blocked.add(member)
        self._ever_blocked.add(member)
        whom = {"member_id": member, "campaign_id": self._campaign_id, "reason": "chaos"}
        return Entry("BlockInviter", pb.BlockInviterRequest(**common, **whom))

    def _unblock(self, common: dict[str, Any]) -> Entry:
        member = self._random.choice(sorted(self._blocked))
        self._blocked.remove(member)
        whom = {"member_id": member, "campaign_id": self._campaign_id}
        return Entry("UnblockInviter", pb.UnblockInviterRequest(**common, **whom))

    # --- what was answered ----------------------------------------------------------------------------

    def _note(self, entry: Entry) -> None:
        request, answer = entry.request, entry.answer
        assert entry not in self._wrong, (request, answer)
        match answer:
            case pb.ListReviewsResponse():
                self._reviews |= {review.review_id for review in answer.reviews}
            case pb.Review():
                self._judged[answer.review_id] = request.verdict
            case pb.ListOpenRewardsResponse():
                self._payable |= {one.reward_id for one in answer.rewards if one.HasField("cash")}
            case pb.Reward():
                self._paid[answer.reward_id] = request.reference_id
            case _ if entry.member and entry.method not in self.by_hand:
                self._note_member(self.friends[request.member_id], entry)

    def _note_member(self, friend: Friend, entry: Entry) -> None:
        request, answer = entry.request, entry.answer
        match answer:
            case pb.Invite():
                assert friend.code in ("", answer.code)
                friend.code = answer.code
                self._codes[answer.code] = request.member_id
            case pb.BindInviteeResponse():
                friend.bond, friend.bind = answer.attribution, entry
                assert friend.inviter == self._codes[request.code.upper()]
                assert answer.attribution.status == pb.ATTRIBUTION_STATUS_BOUND
            case pb.RecordQualificationResponse():
                friend.orders.setdefault(request.reference_id, request.amount_minor)
                self._check_standing(friend, answer)
            case pb.RevokeQualificationResponse():
                friend.undone.add(request.reference_id)
                self._check_standing(friend, answer)
            case pb.Progress():
                brought = answer.qualified + answer.pending + answer.rejected
                assert brought <= self._brought.get(request.member_id, 0)
                reached = [(step.step_id, step.round) for step in answer.steps]
                assert len(set(reached)) == len(reached)

    @property
    def _moved(self) -> bool:
        """Whether the clock was moved since the load began."""
        return self._now > self._began

    def _check_standing(self, friend: Friend, answer: Any) -> None:
        """Where nothing looks suspicious the answer is known, but for what the clock does to it."""
        assert answer.HasField("attribution") == (friend.bond is not None)
        if friend.bond is not None and not friend.signals.ByteSize() and not self._moved:
            stands = f"ATTRIBUTION_STATUS_{status('PASS', friend.orders, friend.undone)}"
            assert answer.attribution.status == pb.AttributionStatus.Value(stands), answer

    # --- the audit ------------------------------------------------------------------------------------

    async def verify(self, patience: float = SETTLE_TIMEOUT) -> Sequence[Mapping[str, Any]]:
        """What is told and granted must have come to its end in `patience` seconds. Returns the events."""
        connection = await owner(self.house, "referral")
        try:

            async def settled() -> bool:
                return bool(await connection.fetchval(SETTLED, self._campaign_id))

            await until(settled, patience)
            async with snapshot(connection):
                kept = {table: await rows_of(connection, table, self.members) for table in TABLES}
                mine = {
                    table: await connection.fetch(query, self._campaign_id) for table, query in OF_ONE.items()
                }
                events = await told(connection, [*self.members, self._campaign_id])
                asked = [entry.request.request_id for entry in self.entries if entry.method not in self.reads]
                requests = await connection.fetch(REQUESTS, asked)
                moved = self._moved
        finally:
            connection.terminate()  # which cannot fail, whatever happened to it
        self._check_answers(kept["answers"])
        self._check_works(requests, kept, mine["campaigns"])
        self._check_refusals()
        books = Books(
            campaign_id=self._campaign_id,
            steps=[step.step_id for step in self.campaign.ladder],
            kept=kept,
            reviews=mine["reviews"],
            pairs=mine["pairs"],
            budget=mine["budgets"][0],
            events=[event for event, _ in events],
            moved=moved,
        )
        books.check(self.friends, self._judged)
        await self._check_givers(kept["rewards"], patience)
        return [{"member_id": about(event), "hash": _digest(body)} for event, body in events]

    def _check_works(
        self, requests: Sequence[Any], kept: Mapping[str, Sequence[Any]], campaigns: Sequence[Any]
    ) -> None:
        """What was done by hand is kept with its answer, and holds."""
        done = self._of(Outcome.ACKNOWLEDGED)
        by_hand = [entry for entry in done if entry.method in self.by_hand | {"PutCampaign"}]
        # What is asked about somebody's bond or reward, is answered with the rest that is about that member.
        about_members = [entry for entry in done if entry.method in ("ResolveReview", "RecordRewardPaid")]
        assert {row["request_id"]: row["answer"] for row in requests} == {
            **{entry.request.request_id: _body(entry) for entry in by_hand},
            **{entry.request.request_id: b"" for entry in about_members},
        }
        assert sorted(row["body"] for row in kept["answers"] if row["request_id"][0] == "~") == sorted(
            map(_body, about_members)
        )
        puts = [entry for entry in by_hand if entry.method == "PutCampaign"]
        assert sorted(row["version"] for row in campaigns) == list(range(1, len(puts) + 1))
        paid = {
            row["reward_id"]: row["reference_id"] for row in kept["rewards"] if row["gift_kind"] == "CASH"
        }
        assert {name: reference for name, reference in paid.items() if reference} == self._paid

    def _check_refusals(self) -> None:
        """Each was refused for what was wrong with it, and for nothing else."""
        for entry in self._of(Outcome.REFUSED):
            if entry in self._wrong:
                assert entry.reason == self._wrong[entry], entry
                continue
            match entry.method, entry.reason:
                case "CreateInvite", "INVITER_BLOCKED":
                    assert entry.member in self._ever_blocked
                case "BindInvitee", "INVITER_BLOCKED":
                    assert self._codes[entry.request.code.upper()] in self._ever_blocked
                case "BindInvitee", "CYCLE":
                    inviter = self._codes[entry.request.code.upper()]
                    assert self.friends[inviter].inviter == entry.member
                case "RecordRewardPaid", "REWARD_NOT_OPEN":  # it was taken back
                    assert entry.request.reward_id not in self._paid
                case _:
                    raise AssertionError(entry)

    async def _check_givers(self, rewards: Sequence[Any], patience: float) -> None:
        """Points and cards gave what referral says that they did; what is taken back, they hear of later."""
        connection = await owner(self.house, "points")
        try:
            mine = [row for row in rewards if row["gift_kind"] == "POINTS"]
            await until(lambda: handed_over(connection, self.members, mine, points_pb), patience)
            async with snapshot(connection):
                ledger = await rows_of(connection, "transactions", self.members, order="seq")
                members = await rows_of(connection, "members", self.members)
                versions = await announced(connection, self.members)
                events = await events_of(connection, self.members, points_pb)
        finally:
            connection.terminate()
        check_points(rewards, members, ledger, [event for _, event, _ in events])
        for row in members:
            own = [each for each in ledger if each["member_id"] == row["member_id"]]
            check_member(row, own, versions[row["member_id"]])
            await asyncio.sleep(0)  # others want to go on meanwhile
        if "cards" in self.house.services:
            connection = await owner(self.house, "cards")
            try:
                bought = [row for row in rewards if row["gift_kind"] == "CARD"]
                await until(lambda: handed_over(connection, self.members, bought, cards_pb), patience)
                found = await events_of(connection, self.members, cards_pb)
            finally:
                connection.terminate()
            check_cards(rewards, [event for _, event, _ in found])


def _asking(common: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common.items() if name != "request_id"}


def _body(entry: Entry) -> bytes:
    assert entry.answer is not None
    return entry.answer.SerializeToString(deterministic=True)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).digest()


# --- what a run, and its faults, ask for ----------------------------------------------------------------


def prepare(house: House) -> None:
    """Puts on sale what a rung gives."""
    if "cards" in house.services:
        with Cards(house) as cards:
            put_product(cards, GUEST)


async def open_campaign(caller: Caller, at: datetime, rewards: int) -> str:
    """A campaign with the budget for so many rewards, each for one who is brought and buys."""
    campaign = a_campaign(
        close_time=(at + AGES).isoformat(),
        settle_time=(at + AGES).isoformat(),
        ladder=[{"step_id": EACH, "each_from": 1, "reward": cash(COST)}],
        attribution_window_hours=LONG,
        budget_minor=rewards * COST,
        currency_code="CNY",
    )
    put = pb.PutCampaignRequest(request_id=fresh("put"), campaign=campaign)
    assert isinstance(await caller.insist("PutCampaign", put), pb.Campaign)
    return campaign.campaign_id


async def bring(caller: Caller, campaign_id: str, code: str, at: datetime) -> None:
    """Brings a newcomer, who buys something."""
    common: dict[str, Any] = {"member_id": fresh("m"), "campaign_id": campaign_id}
    bind = pb.BindInviteeRequest(**common, request_id=fresh("r"), code=code)
    assert isinstance(await caller.insist("BindInvitee", bind), pb.BindInviteeResponse)
    order: dict[str, Any] = {"reference_id": fresh("order"), "amount_minor": 1_000, "currency_code": "CNY"}
    bought = pb.RecordQualificationRequest(
        **common,
        request_id=fresh("r"),
        kind=epb.QUALIFICATION_KIND_ORDER,
        occur_time=stamp(at),
        **order,
    )
    assert isinstance(await caller.insist("RecordQualification", bought), pb.RecordQualificationResponse)


PART = Part(
    service="referral",
    prepare=prepare,
    lanes=[partial(ReferralJournal, members=8), partial(ReferralJournal, members=3, cancelling=True)],
    caller=Referral,
    good=list(GOOD.items()),
    entity=lambda event: (about(event),),
    link=lambda _, body: _digest(body),
    about=about,
)
