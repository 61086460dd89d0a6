"""Two members bring others: guests to a burger chain, by its ladder up and down, and customers to a bank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_service_pb2 as cards_pb
from loyalty.groups.v1 import groups_service_pb2 as groups_pb
from loyalty.orders.v1.orders_pb2 import Refund
from loyalty.orders.v1.orders_service_pb2 import ReportOrderRefundedRequest
from loyalty.referral.v1 import referral_service_pb2 as pb
from loyalty.referral.v1.referral_events_pb2 import QUALIFICATION_KIND_REGISTRATION

from services.cli.listener import Listener
from services.cli.place import refusal
from services.cli.stories import ZONE, Patience, Scene, Stage, local_time
from services.cli.stories.groups import IN_LUJIAZUI

MEMBERS = ("emma", "felix")
COLUMNS = ("friends", "points", "rungs", "besides")
# What the brand adds to its rules for points once friends bring a card: the first month of it makes a fan.
RULES = [
    {
        "rule_id": "card-growth",
        "scope": "RULE_SCOPE_ACTIVITY",
        "unit": "UNIT_GROWTH",
        "when": (
            "activity.kind == 'card_activated' && activity.attributes['plan_id'] == 'king-month'"
            " && activity.attributes['renewal'] == 'false'"
        ),
        "fixed": 300,
        "stack": "RULE_STACK_ADD",
    },
]
FRIENDS, BRING = "friends", "bring-a-friend"  # the campaigns of the chain and of the bank that are played
OPEN, SETTLE = timedelta(days=300), timedelta(days=31)  # how long campaigns run here, as the year is another
STORE = "hangzhou-0002"
IRON_FANS, LUJIAZUI = "汉堡王铁粉群", "掌上生活陆家嘴福利群"

Said = tuple[str, str, str, str]


def play(stage: Stage, chain: Mapping[str, Any], bank: Mapping[str, Any]) -> Iterator[Scene]:
    """A week after the groups: a chain's campaigns, then a bank's, each as its whole programme says."""
    story = _Story(stage)
    emma, felix = _Inviter(story, MEMBERS[0], FRIENDS), _Inviter(story, MEMBERS[1], BRING)
    friend = _Inviter(story, "friend-1", FRIENDS)
    yield from _invited(story, emma, friend, chain)
    yield from _up_the_ladder(story, emma)
    yield from _and_down(story, emma)
    yield from _up_again(story, emma, friend)
    yield from _in_a_group(story, felix, chain, bank)


# --- a burger chain -----------------------------------------------------------------------------------


def _invited(story: _Story, emma: _Inviter, friend: _Inviter, chain: Mapping[str, Any]) -> Iterator[Scene]:
    """Nobody is brought twice, by oneself, or by whom one has brought."""
    story.stage.wait_until("2017-04-01 12:00")
    story.put(chain["referral"]["campaigns"])
    story.takes_fans(chain["groups"]["schemes"])
    poster = emma.invites("艾玛").poster_fields["headline"]
    yield emma.scene("an invite", lambda: poster, ("0 of 0", "0", "", "艾**请你吃薯条"))
    for number in range(1, 6):
        emma.brings(f"friend-{number}")
    emma.brings("friend-6", phone="friend-1")
    friend.invites("菲菲")
    refused = [emma.tries(emma.member_id), friend.tries("friend-2"), friend.tries(emma.member_id)]
    expected = "SELF_REFERRAL\nALREADY_BOUND\nCYCLE"
    yield emma.scene("six friends", lambda: "\n".join(refused), ("0 of 6", "0", "", expected))


def _up_the_ladder(story: _Story, emma: _Inviter) -> Iterator[Scene]:
    """A first meal counts; what it brings waits for a week. The fifth brings a card, whose month makes a fan.

    That is the longest chain: an order, who counts by it, the rung, the reward, the card, its points, the
    tier, and the tier's group.
    """
    story.stage.wait_until("2017-04-02 12:00")
    story.eats("friend-1")
    yield emma.scene("a friend's first meal", lambda: "", ("1 of 6", "0", "1 pending", ""))
    for number in range(2, 7):
        story.eats(f"friend-{number}")
    seen = ("5 of 6", "0", "1, 3, 5 pending", "friend-6: DEVICE")
    yield emma.scene("two friends with one phone", story.reviews, seen)
    story.rejects("friend-6")
    story.stage.wait_until("2017-04-09 13:00")
    rungs = "1, 3, 5 fulfilled"
    fan = f"king 04-09 to 05-09\n{IRON_FANS}"
    yield emma.scene("a week later", emma.card_and_group, ("5 of 6", "6020", rungs, fan))
    issued = story.issues(5)
    yield emma.scene("their fries", lambda: issued, ("5 of 6", "6020", rungs, "5 coupons"))


def _and_down(story: _Story, emma: _Inviter) -> Iterator[Scene]:
    """What was given back within the week counts though it is told later, and takes the rewards back."""
    story.stage.wait_until("2017-04-10 12:00")
    for number in (3, 4, 5):
        story.gives_back(f"friend-{number}", "2017-04-08 18:00")
    rungs = "1 fulfilled\n3, 5 clawed back"
    yield emma.scene("three meals given back", emma.card_and_group, ("2 of 6", "1020", rungs, IRON_FANS))


def _up_again(story: _Story, emma: _Inviter, friend: _Inviter) -> Iterator[Scene]:
    """A rung that was lost is paid once more when it is regained; the friends bring friends of their own."""
    emma.brings("friend-7")
    friend.brings("friend-8")
    story.stage.wait_until("2017-04-11 12:00")
    story.eats("friend-7")
    story.eats("friend-8")
    rungs = "1, 3 fulfilled\n3, 5 clawed back"
    story.stage.wait_until("2017-04-18 13:00")
    issued = story.issues(2)
    yield emma.scene("one friend more", lambda: issued, ("3 of 7", "6020", rungs, "2 coupons"))
    board = "1 艾** 3\n2 菲** 1"
    yield emma.scene("the leaderboard", story.leaderboard, ("3 of 7", "6020", rungs, board))


# --- a bank -------------------------------------------------------------------------------------------


def _in_a_group(
    story: _Story, felix: _Inviter, chain: Mapping[str, Any], bank: Mapping[str, Any]
) -> Iterator[Scene]:
    """A task group: who comes into it is given an invite, and it is told there what friends bring.

    A deployment is of one brand, so with the bank's campaigns the chain's are over.
    """
    story.stage.wait_until("2017-05-02 12:00")
    story.closes(chain["referral"]["campaigns"])
    story.put(bank["referral"]["campaigns"])
    felix.joins("nearby")
    (invited,) = story.hears("InviteCreated", lambda told: told.member_id == felix.member_id)
    felix.code = invited.code
    group = story.name_of(invited.group_id)
    yield felix.scene("in a group", lambda: group, ("0 of 0", "30", "", LUJIAZUI))
    for client in ("client-1", "client-2", "client-3"):
        felix.brings(client)
        story.opens_a_card(client)
    yield felix.scene("three cards opened", lambda: "", ("3 of 3", "30", "1, 3 pending", ""))
    story.stage.wait_until("2017-06-01 13:00")
    granted = story.hears("RewardGranted", lambda told: told.member_id == felix.member_id)
    told_in = ", ".join({f"told in {story.name_of(told.announce_group_id)}" for told in granted})
    seen = ("3 of 3", "6030", "1, 3 fulfilled", f"told in {LUJIAZUI}")
    yield felix.scene("30 days later", lambda: told_in, seen)


# --- who asks -----------------------------------------------------------------------------------------


class _Story:
    """What the brand's back end and its operators do, and what members do who bring nobody."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.call, self.of_referral = stage, stage.call, stage.referral
        self.patience = Patience()
        self._numbers = itertools.count(1)

    def named(self) -> str:
        """A request's name, never used before."""
        return f"referral-{next(self._numbers)}"

    def hears(self, kind: str, wanted: Callable[[Any], bool]) -> list[Any]:
        """What referral told of a kind, as another team hears it."""
        return Listener(self.stage.house.nats.url, "referral").heard_of(kind, wanted)

    # --- the brand ----------------------------------------------------------------------------------------

    def put(self, campaigns: Iterable[Mapping[str, Any]]) -> None:
        """Puts campaigns, open from now on."""
        for said in campaigns:
            campaign = ParseDict(dict(said), pb.Campaign())
            campaign.open_time.FromDatetime(self.stage.now)
            campaign.close_time.FromDatetime(self.stage.now + OPEN)
            campaign.settle_time.FromDatetime(self.stage.now + OPEN + SETTLE)
            request = pb.PutCampaignRequest(request_id=self.named(), campaign=campaign)
            self.call(self.of_referral.PutCampaign, request)

    def closes(self, campaigns: Iterable[Mapping[str, Any]]) -> None:
        """Ends campaigns."""
        for said in campaigns:
            request = pb.CloseCampaignRequest(request_id=self.named(), campaign_id=said["campaign_id"])
            self.call(self.of_referral.CloseCampaign, request)

    def takes_fans(self, schemes: Iterable[Mapping[str, Any]]) -> None:
        """Has the groups of the fan levels take members again, who took none since there were the bank's."""
        fans = next(scheme for scheme in schemes if scheme["scheme_id"] == "fans")
        scheme = ParseDict(dict(fans), groups_pb.Scheme())
        request = groups_pb.PutSchemeRequest(request_id=self.named(), scheme=scheme)
        self.call(self.stage.groups.PutScheme, request)

    def name_of(self, group_id: str) -> str:
        """A group's name."""
        asked = groups_pb.GetGroupRequest(group_id=group_id)
        return self.call(self.stage.groups.GetGroup, asked).name

    def leaderboard(self) -> str:
        """Who brought most."""
        asked = pb.GetLeaderboardRequest(campaign_id=FRIENDS)
        places = self.call(self.of_referral.GetLeaderboard, asked).entries
        return "\n".join(f"{place.rank} {place.masked_name} {place.qualified}" for place in places)

    # --- its operators ------------------------------------------------------------------------------------

    def reviews(self) -> str:
        """Bonds that wait for an operator."""
        return "\n".join(map(_review, self._reviews()))

    def rejects(self, friend: str) -> None:
        """Judges that a friend never counts."""
        (review,) = (one for one in self._reviews() if one.member_id == friend)
        verdict = pb.ResolveReviewRequest(
            request_id=self.named(), review_id=review.review_id, verdict=pb.REVIEW_STATUS_REJECTED
        )
        self.call(self.of_referral.ResolveReview, verdict)

    def _reviews(self) -> Sequence[pb.Review]:
        return self.call(self.of_referral.ListReviews, pb.ListReviewsRequest()).reviews

    def issues(self, expected: int) -> str:
        """Hands over the coupons that were granted, once there are as many as expected; tells how many."""
        self.patience.once(lambda: len(self._coupons()), expected)
        coupons = self._coupons()
        for reward in coupons:
            named = self.named()
            paid = pb.RecordRewardPaidRequest(
                request_id=named, reward_id=reward.reward_id, reference_id=named
            )
            self.call(self.of_referral.RecordRewardPaid, paid)
        return f"{len(coupons)} coupons"

    def _coupons(self) -> Sequence[pb.Reward]:
        found = self.call(self.of_referral.ListOpenRewards, pb.ListOpenRewardsRequest()).rewards
        return [reward for reward in found if reward.HasField("coupon")]

    # --- friends ------------------------------------------------------------------------------------------

    def eats(self, friend: str) -> None:
        """Has a friend pay a first meal, of 25.00."""
        self.stage.pays(friend, f"meal-{friend}", STORE, 2_500)

    def gives_back(self, friend: str, local: str) -> None:
        """Has the till tell late that a friend gave its first meal back."""
        refund = Refund(order_id=f"meal-{friend}", refund_id=f"back-{friend}", all=True)
        refund.refund_time.FromDatetime(local_time(local))
        told = ReportOrderRefundedRequest(member_id=friend, request_id=self.named(), refund=refund)
        self.call(self.stage.orders.ReportOrderRefunded, told)

    def opens_a_card(self, client: str) -> None:
        """Has the bank's own system tell that a client opened a card."""
        opened = pb.RecordQualificationRequest(
            member_id=client,
            request_id=self.named(),
            campaign_id=BRING,
            kind=QUALIFICATION_KIND_REGISTRATION,
            reference_id=f"card-{client}",
            occur_time=self.stage.now_stamp,
        )
        self.call(self.of_referral.RecordQualification, opened)


class _Inviter:
    """A member who brings others, in a campaign."""

    def __init__(self, story: _Story, member_id: str, campaign_id: str) -> None:
        self.member_id, self.code = member_id, ""
        self._in_campaign = {"member_id": member_id, "campaign_id": campaign_id}
        self._story, self._stage, self._call = story, story.stage, story.stage.call
        self._of_referral = story.of_referral

    def scene(self, what: str, besides: Callable[[], str], expected: Said) -> Scene:
        """How many friends count, the points, what the rungs for so many give, and more: once as expected."""

        def said() -> Said:
            return *self._climbed(), besides()

        return Scene(f"{self.member_id}: {what}", self._story.patience.once(said, expected), expected)

    # --- what it does -------------------------------------------------------------------------------------

    def invites(self, name: str) -> pb.Invite:
        """Asks for its invite."""
        asked = pb.CreateInviteRequest(**self._in_campaign, request_id=self._story.named(), display_name=name)
        invite = self._call(self._of_referral.CreateInvite, asked)
        self.code = invite.code
        return invite

    def brings(self, friend: str, phone: str = "") -> None:
        """Has a friend come by its code, with a phone of the friend's own unless it is another's."""
        request = pb.BindInviteeRequest(
            member_id=friend,
            request_id=self._story.named(),
            campaign_id=self._in_campaign["campaign_id"],
            code=self.code.lower(),  # as it was typed
            signals=pb.Signals(device=f"phone-of-{phone or friend}"),
            member_since=self._stage.now_stamp,
        )
        self._call(self._of_referral.BindInvitee, request)

    def tries(self, friend: str) -> str:
        """Brings somebody whom it may not bring; the reason that is given."""
        try:
            self.brings(friend)
        except grpc.RpcError as error:
            return refusal(error)[0].partition(":")[0]
        return "bound"

    def joins(self, scheme_id: str) -> None:
        """Is in the nearest group's chat."""
        named = {"member_id": self.member_id, "request_id": self._story.named()}
        place = groups_pb.AssignMemberRequest(**named, scheme_id=scheme_id, location=IN_LUJIAZUI)
        (seat,) = self._call(self._stage.groups.AssignMember, place).assignments
        joined = groups_pb.JoinGroupRequest(
            member_id=self.member_id,
            request_id=self._story.named(),
            group_id=seat.group.group_id,
            occur_time=self._stage.now_stamp,
        )
        self._call(self._stage.groups.JoinGroup, joined)

    # --- what it has --------------------------------------------------------------------------------------

    def _climbed(self) -> tuple[str, str, str]:
        progress = self._call(self._of_referral.GetProgress, pb.GetProgressRequest(**self._in_campaign))
        friends = f"{progress.qualified} of {progress.qualified + progress.pending + progress.rejected}"
        positions = {step.step_id: step.position for step in progress.steps}
        rungs: dict[pb.RewardStatus.ValueType, list[int]] = {}
        for reward in progress.rewards:
            rungs.setdefault(reward.status, []).append(positions[reward.step_id])
        told = [
            f"{', '.join(map(str, sorted(of)))} {_status(status)}" for status, of in sorted(rungs.items())
        ]
        return friends, str(self._stage.available(self.member_id)), "\n".join(told)

    def card_and_group(self) -> str:
        """The card that it holds, from when to when, and the group that it is in, as far as there are any."""
        asked = cards_pb.ListMemberCardsRequest(member_id=self.member_id)
        held = self._call(self._stage.cards.ListMemberCards, asked).cards
        active = (card for card in held if card.status == cards_pb.CARD_STATUS_ACTIVE)
        cards = [f"{card.family} {_day(card.start_time)} to {_day(card.end_time)}" for card in active]
        of_member = groups_pb.ListMemberGroupsRequest(member_id=self.member_id)
        seats = self._call(self._stage.groups.ListMemberGroups, of_member).groups
        return "\n".join([*cards, *(seat.group.name for seat in seats)])


def _status(status: pb.RewardStatus.ValueType) -> str:
    return pb.RewardStatus.Name(status).removeprefix("REWARD_STATUS_").replace("_", " ").lower()


def _review(review: pb.Review) -> str:
    signals = ", ".join(pb.Signal.Name(signal).removeprefix("SIGNAL_") for signal in review.signals)
    return f"{review.member_id}: {signals}"


def _day(at: Timestamp) -> str:
    return at.ToDatetime(tzinfo=UTC).astimezone(ZONE).strftime("%m-%d")
