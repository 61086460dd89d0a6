"""A circle of friends: the service's fold over members who bring one another, in a time of its own.

Commands go the way they go in the service, from due work to the events; only the locking, the loading and the
saving are left out. What the service announces to itself is `mail`, which arrives when a test has it arrive.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.asked import by_clock
from services.chassis.consumer import Delivery
from services.chassis.errors import ServiceError
from services.chassis.inbox import InboxKey
from services.chassis.interceptors import validate
from services.referral.commands import (
    BindInvitee,
    Command,
    CreateInvite,
    GrantReward,
    InviteeTold,
    Recount,
    ResolveReview,
    ReturnReward,
    Settle,
    Tell,
)
from services.referral.domain import rewards
from services.referral.domain.campaigns import FactKind
from services.referral.domain.profile import Attribution, Fact, Profile, Reward, RewardStatus, Verdict
from services.referral.folding import Answer, Fold
from services.referral.rules import CompiledCampaign, compile_campaign
from services.referral.service import LATELY
from services.referral.steps import Scene, Terms
from services.referral.store import Budget, Seen, SignalSeen
from services.referral.subscriptions import read
from tests.referral.plain import DAY, NOON, ZONE

Announced = TypeVar("Announced", bound=Message)

ANN, BEN, CEM = "ann", "ben", "cem"
TERMS = Terms(ZONE, 1, 10)
OWN = (epb.InviteeBound, epb.InviteeQualified, epb.InviteeRevoked, epb.InviteeDropped)


def campaign(*ladder: dict[str, Any], **said: Any) -> pb.Campaign:
    """A campaign of orders: bound for a month, held for a week and undone in two, unless said otherwise."""
    whole: dict[str, Any] = {
        "campaign_id": "king",
        "version": 1,
        "name": "邀请好友",
        "open_time": (NOON - 10 * DAY).isoformat(),
        "close_time": (NOON + 60 * DAY).isoformat(),
        "settle_time": (NOON + 90 * DAY).isoformat(),
        "qualify": {"kind": "QUALIFICATION_KIND_ORDER"},
        "ladder": list(ladder) or [step("one", at=1)],
        "attribution_window_hours": 30 * 24,
        "hold_period_hours": 7 * 24,
        "clawback_window_hours": 14 * 24,
        "currency_code": "CNY",
    }
    made = ParseDict({**whole, **said}, pb.Campaign())
    validate(made)
    return made


def step(step_id: str, gives: dict[str, Any] | None = None, **said: Any) -> dict[str, Any]:
    """A step of a ladder: for the inviter 1,000 points, unless said otherwise."""
    return {"step_id": step_id, "reward": gives or points(1000), **said}


def points(amount: int, cost_minor: int = 0) -> dict[str, Any]:
    """So many points."""
    return {"points": {"amount": amount}, "cost_minor": cost_minor}


def order(reference_id: str, at: datetime, amount_minor: int = 1000, **more: Any) -> Fact:
    """A paid order."""
    told = {"occur_time": at, "amount_minor": amount_minor, "currency_code": "CNY", **more}
    return Fact(kind=FactKind.ORDER, reference_id=reference_id, **told)


def delivery(subject: str, body: bytes, name: str) -> Delivery:
    """An event of ours as a consumer gets it."""
    return Delivery(subject, body, "referral", name, "", "REFERRAL", 1)


def read_event(subject: str, body: bytes) -> Message:
    """An event as it was announced."""
    kind = getattr(epb, subject.rpartition(".")[2])
    message: Message = kind.FromString(body)
    return message


class Circle:
    """Members, and everything that happened to them. Time stands at `at` until it is moved."""

    def __init__(self, *campaigns: pb.Campaign) -> None:
        self.at = NOON
        self.seen = Seen()
        self.campaigns: dict[tuple[str, int], CompiledCampaign] = {}
        self.latest: dict[str, int] = {}
        self.owners: dict[str, tuple[str, str]] = {}
        self.told: list[Message] = []
        self.mail: list[InviteeTold] = []
        self._signals: set[SignalSeen] = set()
        self._versions: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        for made in campaigns or (campaign(),):
            self.put(made)

    def put(self, made: pb.Campaign) -> None:
        """Puts a version of a campaign."""
        compiled = compile_campaign(made)
        counted = replace(compiled.campaign, ladder_version=made.version)
        self.campaigns[compiled.name] = replace(compiled, campaign=counted)
        self.latest[made.campaign_id] = made.version
        known = self.seen.budgets.get(made.campaign_id) or Budget(campaign_id=made.campaign_id)
        spent = known.granted_minor
        self.seen.budgets[made.campaign_id] = Budget(
            campaign_id=made.campaign_id, budget_minor=made.budget_minor, granted_minor=spent
        )

    # --- commands -------------------------------------------------------------------------------------

    def answer(self, kind: type[Command], member: str = ANN, /, **fields: Any) -> Answer:
        """Does a command, and gives what the fold gives."""
        request_id = fields.pop("request_id", None) or f"request-{next(self._numbers)}"
        said = repr((kind, sorted((name, value) for name, value in fields.items() if name != "event")))
        return self.apply(
            kind(
                member_id=member,
                request_id=request_id,
                payload_hash=hashlib.sha256(said.encode()).digest(),
                actor="test",
                **fields,
            )
        )

    def apply(self, command: Command) -> Answer:
        """Folds a command over what there is, and hears what was announced."""
        [answer] = self.together(command)
        return answer

    def together(self, *commands: Command) -> list[Answer]:
        """Folds commands in one batch."""
        for command in commands:
            self.seen.profiles.setdefault(command.member_id, Profile(command.member_id))
            self._look_around(command)
        fold = Fold(Scene(self.seen, self.campaigns, self.latest, self.owners, TERMS, self.at))
        before = dict(self.seen.profiles)
        answers = [fold.answer(command) for command in commands]
        fold.finish()
        self._signals |= fold.changes.signals
        if all(isinstance(answer, ServiceError) for answer in answers):
            assert self.seen.profiles == before
            assert not fold.announcements
        for event in fold.announcements:
            self.hear(event.subject, event.body)
        self._learn_codes()
        return answers

    def do(self, kind: type[Command], member: str = ANN, /, **fields: Any) -> bytes:
        """Does a command; raises its refusal."""
        answer = self.answer(kind, member, **fields)
        if isinstance(answer, ServiceError):
            raise answer
        return answer or b""

    def _look_around(self, command: Command) -> None:
        """What a command sees of others."""
        seen = self.seen
        seen.attributions = {
            (name, one.campaign_id): one
            for name, profile in seen.profiles.items()
            for one in profile.attributions.values()
        }
        if isinstance(command, BindInvitee):
            campaign_id, member_id = command.campaign_id, command.member_id
            for signal, value in command.signals.items():
                others = [one for one in self._signals if one[:3] == (campaign_id, signal, value)]
                seen.signals[SignalSeen(campaign_id, signal, value, member_id)] = len(others)
            late = [one for one in seen.attributions.values() if one.bind_time >= self.at - LATELY]
            seen.binds = dict(Counter((one.inviter_id, one.campaign_id) for one in late))

    def _learn_codes(self) -> None:
        for name, profile in self.seen.profiles.items():
            for invite in profile.invites.values():
                self.owners[invite.code] = (invite.campaign_id, name)

    # --- what members do ------------------------------------------------------------------------------

    def invite(self, member: str = ANN, campaign_id: str = "king", **fields: Any) -> pb.Invite:
        """A member's invite."""
        return pb.Invite.FromString(self.do(CreateInvite, member, campaign_id=campaign_id, **fields))

    def bind(
        self, member: str, inviter: str = ANN, campaign_id: str = "king", **fields: Any
    ) -> pb.Attribution:
        """Binds a member to who invited it."""
        code = self.invite(inviter, campaign_id).code
        asked = {"campaign_id": campaign_id, "code": code, "caller": f"brand {member}", **fields}
        return pb.BindInviteeResponse.FromString(self.do(BindInvitee, member, **asked)).attribution

    def tell(self, member: str, *facts: Fact, **told: Any) -> None:
        """Another service tells something of a member."""
        name = f"event-{next(self._numbers)}"
        key = InboxKey(member, "referral", "elsewhere", name, "ELSEWHERE", 1)
        self.do(Tell, member, facts=facts, event=key, **told)

    def resolve(self, member: str, verdict: Verdict) -> pb.Review:
        """An operator judges a member's bond."""
        reviews = [one for one in self.reviews() if one.member_id == member]
        body = self.do(ResolveReview, member, review_id=reviews[-1].review_id, verdict=verdict)
        return pb.Review.FromString(body)

    def deliver(self, *mail: InviteeTold) -> None:
        """Our own events arrive: those that are named, else all that are under way."""
        for told in mail or tuple(self.mail):
            if told in self.mail:
                self.mail.remove(told)
            assert not isinstance(self.apply(told), ServiceError)

    def wait(self, **duration: float) -> None:
        """Lets time pass, and what falls due be posted."""
        self.at += timedelta(**duration)
        for member in list(self.seen.profiles):
            self.apply(Settle(**by_clock(member)))

    def recount(self, campaign_id: str = "king") -> None:
        """Counts again for whom an older version was counted by, as the job does."""
        for name, profile in list(self.seen.profiles.items()):
            invite = profile.invites.get(campaign_id)
            if invite is not None and 0 < invite.ladder_version < self.latest[campaign_id]:
                self.apply(Recount(**by_clock(name), campaign_id=campaign_id))

    def grant(self, campaign_id: str = "king") -> list[Reward]:
        """Grants what waited long enough, as the job does."""
        budget = self.seen.budgets[campaign_id]
        kept = [
            (name, one) for name, profile in self.seen.profiles.items() for one in profile.rewards.values()
        ]
        whose = {one.reward_id: name for name, one in kept}
        for name, one in kept:
            if one.status is RewardStatus.CLAWED_BACK and not one.returned:
                self.apply(ReturnReward(**by_clock(name), reward_id=one.reward_id))
        due = [one for _, one in kept if one.status is RewardStatus.PENDING and one.grant_after <= self.at]
        budget = self.seen.budgets[campaign_id]
        left = budget.budget_minor - budget.granted_minor
        fitting = list(rewards.fitting(due, left)) if budget.budget_minor else due
        for one in fitting:
            self.apply(GrantReward(**by_clock(whose[one.reward_id]), reward_id=one.reward_id))
        return fitting

    # --- what came of it ------------------------------------------------------------------------------

    def profile(self, member: str = ANN) -> Profile:
        """What is kept of a member."""
        return self.seen.profiles.get(member) or Profile(member)

    def bond(self, member: str, campaign_id: str = "king") -> Attribution:
        """By whom a member was brought."""
        return self.profile(member).attributions[campaign_id]

    def rewards(self, member: str = ANN) -> list[Reward]:
        """The rewards of an inviter's rungs."""
        return list(self.profile(member).rewards.values())

    def reviews(self) -> list[Any]:
        """All reviews, by age."""
        return list(self.seen.reviews.values())

    def heard(self, kind: type[Announced]) -> list[Announced]:
        """What was announced of a kind, in order."""
        return [event for event in self.told if isinstance(event, kind)]

    def kinds(self) -> list[str]:
        """What was announced, by name, in order."""
        return [event.DESCRIPTOR.name for event in self.told]

    def hear(self, subject: str, body: bytes) -> None:
        """Events are well-formed, and those about one thing are numbered without a gap."""
        message: Any = read_event(subject, body)
        validate(message)
        about = _about(message)
        self._versions[about] += 1
        assert message.version == self._versions[about], message
        assert message.occur_time.ToMicroseconds() <= self.at.timestamp() * 1_000_000
        self.told.append(message)
        if isinstance(message, OWN):
            told = read(delivery(subject, body, f"{about} {message.version}"))
            assert isinstance(told, InviteeTold)
            self.mail.append(told)


def _about(message: Any) -> str:
    """What an event counts in its version."""
    if isinstance(message, OWN):
        return str(message.attribution_id)
    if isinstance(message, epb.InviteCreated | epb.StepReached):
        return f"member {message.member_id}"
    if isinstance(message, epb.BudgetExhausted):
        return f"campaign {message.campaign_id}"
    return str(message.reward_id)


def standing(given: Sequence[Reward]) -> list[Reward]:
    """Those that somebody has, or may get."""
    return [one for one in given if rewards.stands(one)]
