"""One command, done to a working copy of its member's profile: what it changes, takes and announces.

What can be done is functions over a `Step`, by command (`folding.HANDLERS`): `inviting`, `binding` and
`reviewing` for bonds, `qualifying` for what invitees do, `climbing` for what that brings their inviters,
`rewarding` for what becomes of rewards. What the clock will ask for, `qualifying` and `rewarding` say in
`upcoming`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from services.chassis import outbox
from services.chassis.answers import Named
from services.referral.commands import Command
from services.referral.domain.campaigns import Campaign
from services.referral.domain.profile import (
    Attribution,
    Fact,
    Invite,
    Invitee,
    Rank,
    Reward,
    Rung,
)
from services.referral.errors import CampaignUnknown, RewardUnknown
from services.referral.rules import CompiledCampaign
from services.referral.store import Budget, Pair, Review, Seen, SignalSeen

Kept = Attribution | Fact | Invite | Invitee | Rung | Reward | Rank


@dataclass(frozen=True, slots=True)
class Terms:
    """What a deployment goes by."""

    zone: ZoneInfo
    epoch: int
    code_tries_per_minute: int
    """Codes that nobody has, of one caller for one member."""


@dataclass(slots=True)
class Scene:
    """What the commands of a batch see: the locked state, the campaigns that it may need, and the time."""

    seen: Seen
    compiled: Mapping[tuple[str, int], CompiledCampaign]
    """By id and version."""
    latest: Mapping[str, int]
    """The latest version of every campaign, by id."""
    owners: Mapping[str, tuple[str, str]]
    """The campaign and the member that a code is of, for the codes that commands name and somebody has."""
    terms: Terms
    at: datetime
    minute: int = 0
    """Of wall time, in which codes are tried."""
    came: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Binds of this batch: by campaign and signal with its value, and by inviter and campaign."""

    def campaigns(self) -> Iterator[CompiledCampaign]:
        """The latest versions."""
        for name in self.latest.items():
            yield self.compiled[name]


class Step:
    """What one command does; all of it is dropped if the command is refused."""

    def __init__(self, scene: Scene, command: Command) -> None:
        self.scene = scene
        self.command = command
        self.at = scene.at
        self.zone = scene.terms.zone
        self.profile = scene.seen.profiles[command.member_id].copy()
        # What it adds to what members share.
        self.pairs: set[Pair] = set()
        self.signals: set[SignalSeen] = set()
        self.inviter: Named | None = None  # to whom the member was bound, and in which campaign
        self.moved: list[Invitee] = []  # who came to count for the member, or do so no more, or otherwise
        self.reviews: dict[str, Review] = {}
        self.budgets: dict[str, Budget] = {}
        self.events: list[outbox.Event] = []

    # --- what there is --------------------------------------------------------------------------------

    def compiled(self, campaign_id: str, version: int = 0) -> CompiledCampaign:
        """A version of a campaign; without one the latest. Raises CampaignUnknown."""
        found = self.scene.compiled.get((campaign_id, version or self.scene.latest.get(campaign_id, 0)))
        if found is None:
            raise CampaignUnknown(campaign_id=campaign_id)
        return found

    def campaign(self, campaign_id: str, version: int = 0) -> Campaign:
        """A version of a campaign; without one the latest. Raises CampaignUnknown."""
        return self.compiled(campaign_id, version).campaign

    def reward(self, reward_id: str) -> Reward:
        """A reward that is kept for the member. Raises RewardUnknown."""
        found = self.profile.rewards.get(reward_id)
        if found is None:
            raise RewardUnknown(reward_id=reward_id)
        return found

    def budget(self, campaign_id: str) -> Budget:
        """What a campaign may spend, and what it has."""
        return self.budgets.get(campaign_id) or self.scene.seen.budgets[campaign_id]

    # --- what is done ---------------------------------------------------------------------------------

    def keep(self, record: Kept) -> None:
        """Puts a record in the place of the one before it."""
        profile = self.profile
        match record:
            case Attribution():
                profile.attributions[record.campaign_id] = record
            case Fact():
                profile.facts[record.name] = record
            case Invite():
                profile.invites[record.campaign_id] = record
            case Invitee():
                profile.invitees[record.attribution_id, record.depth] = record
            case Rung():
                profile.rungs[record.name] = record
            case Reward():
                profile.rewards[record.reward_id] = record
            case Rank():
                profile.ranks[record.campaign_id] = record

    def announce(self, make: outbox.Make, what: Any) -> None:
        """Announces something about the member."""
        self.profile.version += 1
        self.events.append(make(self._about(self.profile.member_id, self.profile.version), what))

    def announce_bond(
        self, bond: Attribution, make: outbox.Make, *what: Any, occur: datetime | None = None
    ) -> Attribution:
        """Announces something about an attribution: to its inviter, and to who brought that one.

        `make` gets the attribution, whom it is for (1 or 2), and `what`; `occur` is when it happened, where
        that was before now. Keeps and returns the attribution counted.
        """
        for depth in (1, 2) if bond.grand_inviter_id else (1,):
            bond = replace(bond, version=bond.version + 1)
            about = self._about(self.profile.member_id, bond.version, occur)
            self.events.append(make(about, (bond, depth, *what)))
        self.keep(bond)
        return bond

    def announce_reward(self, reward: Reward, make: outbox.Make, *what: Any) -> Reward:
        """Announces something about a reward to who gets it; keeps and returns it counted.

        `make` gets the reward, with `what` if there is any.
        """
        counted = replace(reward, version=reward.version + 1)
        about = self._about(counted.receiver_id, counted.version)
        self.events.append(make(about, (counted, *what) if what else counted))
        self.keep(counted)
        return counted

    def _about(self, entity: str, version: int, occur: datetime | None = None) -> outbox.About:
        epoch, traceparent = self.scene.terms.epoch, self.command.traceparent
        return outbox.About(entity, occur or self.at, epoch, version, traceparent)
