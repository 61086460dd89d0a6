"""The gRPC edge: messages to commands, facts to messages, one transaction per call or gathered batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.message import Message
from loyalty.referral.v1 import referral_service_pb2 as pb
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceServicer

from services.chassis import pagination
from services.chassis.asked import by_call, by_caller
from services.chassis.auth import CALLER, Access, MemberAccess
from services.chassis.clock import Clock, from_micros, to_micros, wall
from services.chassis.database import Connection, Database, Row, shielded
from services.chassis.ids import own_request_id
from services.chassis.pagination import PageTokenInvalid
from services.chassis.requests import payload_hash
from services.chassis.timestamps import instant, timestamp
from services.referral import events, messages, putting, reviewing, rules, service, store
from services.referral.batches import Batches
from services.referral.commands import (
    BindInvitee,
    Command,
    CreateInvite,
    RecordQualification,
    RecordRewardPaid,
    ResolveReview,
    RetryReward,
    RevokeQualification,
    WriteOffReward,
)
from services.referral.domain import ladder
from services.referral.domain.campaigns import Campaign, Signal
from services.referral.domain.profile import InviteeState, Profile, Reward, Role, Verdict
from services.referral.errors import (
    CampaignUnknown,
    InviteUnknown,
    MemberUnknown,
    ReviewUnknown,
    RewardUnknown,
)
from services.referral.rules import CompiledCampaign
from services.referral.service import Lore

Context = grpc.aio.ServicerContext[Any, Any]

Answer = TypeVar("Answer", bound=Message)

AskFor = Callable[..., Command]
"""Makes a command, given what all commands have."""

EXPORTED = 1_000  # invitees and rewards in an export, and rewards and rungs in a member's progress
SHOWN = 10  # places of a leaderboard, unless asked for more

READ, WRITE, ADMIN = "referral.read", "referral.write", "referral.admin"
_REFERRAL = "/loyalty.referral.v1.ReferralService/"
_OWN, _ACT = MemberAccess.READ, MemberAccess.ACT

# Who may call what. A member token reads its own, and asks for its invite; by whom it was brought, since when
# it is a member and what it did is told by the brand alone.
METHODS = {
    f"{_REFERRAL}CreateInvite": Access(WRITE, _ACT),
    f"{_REFERRAL}GetInvite": Access(READ, _OWN),
    f"{_REFERRAL}BindInvitee": Access(WRITE),
    f"{_REFERRAL}RecordQualification": Access(WRITE),
    f"{_REFERRAL}RevokeQualification": Access(WRITE),
    f"{_REFERRAL}GetProgress": Access(READ, _OWN),
    f"{_REFERRAL}ListInvitees": Access(READ, _OWN),
    f"{_REFERRAL}ListRewards": Access(READ, _OWN),
    f"{_REFERRAL}GetLeaderboard": Access(READ, _OWN),
    f"{_REFERRAL}ListReviews": Access(ADMIN),
    f"{_REFERRAL}ResolveReview": Access(ADMIN),
    f"{_REFERRAL}ListOpenRewards": Access(ADMIN),
    f"{_REFERRAL}RetryReward": Access(ADMIN),
    f"{_REFERRAL}WriteOffReward": Access(ADMIN),
    f"{_REFERRAL}RecordRewardPaid": Access(WRITE),
    f"{_REFERRAL}PutCampaign": Access(ADMIN),
    f"{_REFERRAL}GetCampaign": Access(READ),
    f"{_REFERRAL}ListCampaigns": Access(READ),
    f"{_REFERRAL}CloseCampaign": Access(ADMIN),
    f"{_REFERRAL}GetBudget": Access(ADMIN),
    f"{_REFERRAL}BlockInviter": Access(ADMIN),
    f"{_REFERRAL}UnblockInviter": Access(ADMIN),
    f"{_REFERRAL}ExportMember": Access(ADMIN),
    f"{_REFERRAL}EraseMember": Access(ADMIN),
}

_SIGNALS = (Signal.DEVICE, Signal.IP_PREFIX, Signal.PAYMENT_ACCOUNT, Signal.ADDRESS)
_KINDS = {number: kind for kind, number in events.KINDS.items()}
_REASONS = {number: reason for reason, number in events.REVOKE_REASONS.items()}
_REWARD_STATUSES = {number: status for status, number in messages.REWARD_STATUSES.items()}
_VERDICTS = {number: verdict for verdict, number in messages.VERDICTS.items()}


class _Checked(Exception):
    """What was only to be checked is done, and taken back; carries what it would have been answered with."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


class ReferralApi(ReferralServiceServicer):
    """loyalty.referral.v1.ReferralService."""

    def __init__(self, database: Database, clock: Clock, lore: Lore, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self._batches = batches

    # --- inviting -------------------------------------------------------------------------------------

    async def CreateInvite(self, request: pb.CreateInviteRequest, context: Context) -> pb.Invite:
        """See the contract."""
        return await self._write(
            pb.Invite,
            CreateInvite(
                **_common("CreateInvite", request),
                campaign_id=request.campaign_id,
                display_name=request.display_name,
            ),
        )

    async def GetInvite(self, request: pb.GetInviteRequest, context: Context) -> pb.Invite:
        """See the contract."""
        async with self._database.read() as connection:
            kept = await store.invite(connection, request.member_id, request.campaign_id)
            if kept is None:
                raise InviteUnknown(campaign_id=request.campaign_id)
            compiled = await self._campaign(connection, request.campaign_id)
        return messages.invite(request.member_id, kept, compiled.campaign)

    async def BindInvitee(self, request: pb.BindInviteeRequest, context: Context) -> pb.BindInviteeResponse:
        """See the contract."""
        return await self._write(pb.BindInviteeResponse, _bind(request))

    # --- what members do ------------------------------------------------------------------------------

    async def RecordQualification(
        self, request: pb.RecordQualificationRequest, context: Context
    ) -> pb.RecordQualificationResponse:
        """See the contract."""
        return await self._write(
            pb.RecordQualificationResponse,
            RecordQualification(
                **_common("RecordQualification", request),
                campaign_id=request.campaign_id,
                kind=_KINDS[request.kind],
                reference_id=request.reference_id,
                amount_minor=request.amount_minor,
                currency_code=request.currency_code,
                occur_time=instant(request.occur_time),
                attributes=_attributes(request.details),
            ),
        )

    async def RevokeQualification(
        self, request: pb.RevokeQualificationRequest, context: Context
    ) -> pb.RevokeQualificationResponse:
        """See the contract."""
        return await self._write(
            pb.RevokeQualificationResponse,
            RevokeQualification(
                **_common("RevokeQualification", request),
                campaign_id=request.campaign_id,
                reference_id=request.reference_id,
                reason=_REASONS[request.reason],
                occur_time=instant(request.occur_time),
            ),
        )

    # --- what becomes of it ---------------------------------------------------------------------------

    async def GetProgress(self, request: pb.GetProgressRequest, context: Context) -> pb.Progress:
        """See the contract."""
        member_id = request.member_id
        async with self._database.read() as connection:
            compiled = await self._campaign(connection, request.campaign_id)
            found = await store.inviter(connection, member_id, request.campaign_id)
        profile = found or Profile(member_id)
        progress = _progress(profile, compiled.campaign, self._lore.terms.zone)
        progress.rewards.extend(_seen(messages.reward(member_id, one)) for one in _own_rewards(profile))
        return progress

    async def ListInvitees(
        self, request: pb.ListInviteesRequest, context: Context
    ) -> pb.ListInviteesResponse:
        """See the contract."""
        question = pagination.question(request)
        before = pagination.read_name(question, request.page_token)
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.invitee_page(
                connection,
                request.member_id,
                campaign_id=request.campaign_id,
                depth=request.depth or 1,
                before=before,
                most=size + 1,
            )
        invitees, token = pagination.fill(
            question,
            rows,
            size,
            "attribution_id",
            lambda row: _seen(messages.invitee(store.to_invitee(row))),
        )
        return pb.ListInviteesResponse(invitees=invitees, next_page_token=token)

    async def ListRewards(self, request: pb.ListRewardsRequest, context: Context) -> pb.ListRewardsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size = pagination.page_size(request.page_size)
        page = store.reached_page if request.side == pb.REWARD_SIDE_REACHED else store.received_page
        async with self._database.read() as connection:
            rows = await page(
                connection,
                request.member_id,
                campaign_id=request.campaign_id or None,
                status=_REWARD_STATUSES.get(request.status),
                after=after,
                most=size + 1,
            )
        rewards, token = pagination.fill(question, rows, size, "reward_id", lambda row: _seen(_reward(row)))
        return pb.ListRewardsResponse(rewards=rewards, next_page_token=token)

    async def GetLeaderboard(self, request: pb.GetLeaderboardRequest, context: Context) -> pb.Leaderboard:
        """See the contract."""
        campaign_id, member_id = request.campaign_id, request.member_id
        async with self._database.read() as connection:
            compiled = await self._campaign(connection, campaign_id)
            places = await store.leaderboard(connection, campaign_id, request.size or SHOWN)
            own = await store.place(connection, campaign_id, member_id) if member_id else None
        answer = pb.Leaderboard(
            entries=map(messages.place, places), final=compiled.campaign.close_time <= self._clock.now()
        )
        for entry in answer.entries:
            _seen(entry)
        if member_id:
            answer.own.CopyFrom(messages.place(own) if own else pb.LeaderboardEntry(member_id=member_id))
        return answer

    # --- the operator's desk --------------------------------------------------------------------------

    async def ListReviews(self, request: pb.ListReviewsRequest, context: Context) -> pb.ListReviewsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token) or ""
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.review_page(
                connection,
                request.campaign_id or None,
                after,
                size + 1,
                resolved=request.include_resolved,
            )
        reviews, token = pagination.fill(
            question, rows, size, "review_id", lambda row: messages.review(store.to_review(row))
        )
        return pb.ListReviewsResponse(reviews=reviews, next_page_token=token)

    async def ResolveReview(self, request: pb.ResolveReviewRequest, context: Context) -> pb.Review:
        """See the contract."""

        async def asked(connection: Connection) -> tuple[str, AskFor]:
            kept = await store.review(connection, request.review_id)
            if kept is None:
                raise ReviewUnknown(review_id=request.review_id)
            verdict = Verdict(_VERDICTS[request.verdict])
            return kept.member_id, partial(
                ResolveReview, review_id=request.review_id, verdict=verdict, note=request.note
            )

        return await self._operate("ResolveReview", request, pb.Review, asked)

    async def ListOpenRewards(
        self, request: pb.ListOpenRewardsRequest, context: Context
    ) -> pb.ListOpenRewardsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size = pagination.page_size(request.page_size)
        async with self._database.read() as connection:
            rows = await store.open_page(
                connection,
                request.campaign_id or None,
                store.FIRST if after is None else _granted(after),
                size + 1,
                troubled=request.troubled,
            )
        rewards, token = pagination.fill(question, rows, size, _granted_name, _reward)
        return pb.ListOpenRewardsResponse(rewards=rewards, next_page_token=token)

    async def RetryReward(self, request: pb.RetryRewardRequest, context: Context) -> pb.Reward:
        """See the contract."""
        return await self._about_reward("RetryReward", RetryReward, request)

    async def WriteOffReward(self, request: pb.WriteOffRewardRequest, context: Context) -> pb.Reward:
        """See the contract."""
        return await self._about_reward("WriteOffReward", WriteOffReward, request)

    async def RecordRewardPaid(self, request: pb.RecordRewardPaidRequest, context: Context) -> pb.Reward:
        """See the contract."""
        return await self._about_reward(
            "RecordRewardPaid", RecordRewardPaid, request, reference_id=request.reference_id
        )

    async def _about_reward(self, method: str, ask: AskFor, request: Any, **more: Any) -> pb.Reward:
        """Asks something about a reward of the inviter, with whom it is kept."""

        async def asked(connection: Connection) -> tuple[str, AskFor]:
            kept = await store.reward(connection, request.reward_id)
            if kept is None:
                raise RewardUnknown(reward_id=request.reward_id)
            return kept[0], partial(ask, reward_id=request.reward_id, **more)

        return await self._operate(method, request, pb.Reward, asked)

    # --- campaigns ------------------------------------------------------------------------------------

    async def PutCampaign(self, request: pb.PutCampaignRequest, context: Context) -> pb.Campaign:
        """See the contract."""
        put = rules.compile_campaign(request.campaign)

        async def work(connection: Connection, now: datetime) -> pb.Campaign:
            return await putting.put_campaign(
                connection, now, put, message=request.campaign, author=CALLER.get().subject
            )

        return await self._administer("PutCampaign", request, pb.Campaign, work, check=request.validate_only)

    async def GetCampaign(self, request: pb.GetCampaignRequest, context: Context) -> pb.Campaign:
        """See the contract."""
        async with self._database.read() as connection:
            row = await store.campaign(connection, request.campaign_id, request.version or None)
        if row is None:
            raise CampaignUnknown(campaign_id=request.campaign_id)
        return _shown_campaign(row)

    async def ListCampaigns(
        self, request: pb.ListCampaignsRequest, context: Context
    ) -> pb.ListCampaignsResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size = pagination.page_size(request.page_size)
        open_at = None if request.include_closed else self._clock.now()
        async with self._database.read() as connection:
            rows = await store.campaign_page(connection, open_at, after, size + 1)
        campaigns, token = pagination.fill(question, rows, size, "campaign_id", _shown_campaign)
        return pb.ListCampaignsResponse(campaigns=campaigns, next_page_token=token)

    async def CloseCampaign(self, request: pb.CloseCampaignRequest, context: Context) -> pb.Campaign:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Campaign:
            return await putting.close_campaign(
                connection, now, campaign_id=request.campaign_id, author=CALLER.get().subject
            )

        return await self._administer("CloseCampaign", request, pb.Campaign, work)

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Context) -> pb.Budget:
        """See the contract."""
        campaign_id = request.campaign_id
        async with self._database.read() as connection:
            compiled = await self._campaign(connection, campaign_id)
            kept = await store.budget(connection, campaign_id)
            waiting = await store.waiting_count(connection, campaign_id, self._clock.now())
        return pb.Budget(
            campaign_id=campaign_id,
            budget_minor=compiled.campaign.budget_minor,
            granted_minor=kept.granted_minor,
            currency_code=compiled.campaign.currency_code,
            exhausted=kept.exhausted,
            waiting_count=waiting,
        )

    async def BlockInviter(self, request: pb.BlockInviterRequest, context: Context) -> pb.Block:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Block:
            blocked = await reviewing.block(
                connection,
                now,
                member_id=request.member_id,
                campaign_id=request.campaign_id,
                reason=request.reason,
                author=CALLER.get().subject,
            )
            return messages.block(blocked)

        return await self._administer("BlockInviter", request, pb.Block, work)

    async def UnblockInviter(
        self, request: pb.UnblockInviterRequest, context: Context
    ) -> pb.UnblockInviterResponse:
        """See the contract."""

        async def work(connection: Connection, _now: datetime) -> pb.UnblockInviterResponse:
            await store.unblock(connection, request.member_id, request.campaign_id)
            left = await store.blocks_of(connection, request.member_id)
            return pb.UnblockInviterResponse(blocks=map(messages.block, left))

        return await self._administer("UnblockInviter", request, pb.UnblockInviterResponse, work)

    async def _campaign(self, connection: Connection, campaign_id: str) -> CompiledCampaign:
        """The latest version of a campaign. Raises CampaignUnknown."""
        row = await store.campaign(connection, campaign_id)
        if row is None:
            raise CampaignUnknown(campaign_id=campaign_id)
        campaigns = self._lore.campaigns
        return campaigns.get(campaign_id, row["version"]) or campaigns.keep(row["body"])

    # --- a member's data ------------------------------------------------------------------------------

    async def ExportMember(
        self, request: pb.ExportMemberRequest, context: Context
    ) -> pb.ExportMemberResponse:
        """See the contract."""
        question = pagination.question(request)
        after = pagination.read_name(question, request.page_token)
        size, member_id = pagination.page_size(request.page_size), request.member_id
        async with self._database.read() as connection:
            profile = await store.member(connection, member_id)
            if profile is None:
                raise MemberUnknown(member_id=member_id)
            kind, _, reference_id = (after or "").partition(" ")
            rows = await store.fact_page(connection, member_id, (kind, reference_id), size + 1)
            facts, token = pagination.fill(
                question,
                rows,
                size,
                lambda row: f"{row['kind']} {row['reference_id']}",
                lambda row: messages.fact(store.to_fact(row)),
            )
            answer = pb.ExportMemberResponse(facts=facts, next_page_token=token)
            if after is None:
                await self._export_first(connection, profile, answer)
        return answer

    async def _export_first(
        self, connection: Connection, profile: Profile, answer: pb.ExportMemberResponse
    ) -> None:
        """Adds what the first page has beside facts."""
        member_id = profile.member_id
        for kept in await store.invites(connection, member_id):
            compiled = await self._campaign(connection, kept.campaign_id)
            answer.invites.append(messages.invite(member_id, kept, compiled.campaign))
            answer.masked_name = kept.masked_name or answer.masked_name
        bonds = await store.attributions(connection, member_id)
        answer.attributions.extend(messages.attribution(member_id, bond) for bond in bonds)
        brought = await store.invitees_of(connection, member_id, EXPORTED)
        answer.invitees.extend(map(messages.invitee, brought))
        rows = await store.received_page(connection, member_id, after=None, most=EXPORTED)
        answer.rewards.extend(map(_reward, rows))
        answer.signals.extend(messages.signals(await store.signals_of(connection, member_id)))
        answer.blocks.extend(map(messages.block, await store.blocks_of(connection, member_id)))
        answer.told.update(profile.told)

    async def EraseMember(self, request: pb.EraseMemberRequest, context: Context) -> pb.EraseMemberResponse:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.EraseMemberResponse:
            erased = await service.erase(connection, request.member_id, now)
            return pb.EraseMemberResponse(
                erase_time=timestamp(now),
                signals=erased.signals,
                facts=erased.facts,
                told=erased.told,
                events=erased.events,
            )

        return await self._administer(
            "EraseMember", request, pb.EraseMemberResponse, work, scope=request.member_id
        )

    # --- writes ---------------------------------------------------------------------------------------

    async def _write(self, answer: type[Answer], command: Command) -> Answer:
        body = await self._batches.post(command)
        assert isinstance(body, bytes)  # noqa: S101 - only events and sweeps are answered with nothing
        return answer.FromString(body)

    async def _operate(
        self,
        method: str,
        request: Any,
        kind: type[Answer],
        asked: Callable[[Connection], Awaitable[tuple[str, AskFor]]],
    ) -> Answer:
        """Writes what an operator asks for; `asked` says of which member.

        The first answer is the member's, and is erased with it: for the operator is only kept what was asked.
        """
        payload, caller = payload_hash(_REFERRAL + method, request), CALLER.get().subject
        async with self._database.begin() as connection:
            known = await store.REQUESTS.find(connection, caller, request.request_id, payload)
            member_id, ask = await asked(connection)
        own = own_request_id("operator", caller, request.request_id)
        answer = await self._write(
            kind, ask(member_id=member_id, request_id=own, payload_hash=payload, **by_caller())
        )
        if known is None:
            async with self._database.begin() as connection:
                if await store.REQUESTS.find(connection, caller, request.request_id, payload) is None:
                    await store.REQUESTS.keep(
                        connection, caller, request.request_id, payload, answer=b"", at=wall()
                    )
        return answer

    async def _administer(
        self,
        method: str,
        request: Any,
        kind: type[Answer],
        work: Callable[[Connection, datetime], Awaitable[Answer]],
        *,
        scope: str = "",
        check: bool = False,
    ) -> Answer:
        """The first answer to a request of the caller, or of what `scope` names; `check` takes all back."""
        payload, scope = payload_hash(_REFERRAL + method, request), scope or CALLER.get().subject

        async def once() -> Answer:
            async with self._database.begin() as connection:
                first = await store.REQUESTS.find(connection, scope, request.request_id, payload)
                if first is not None:
                    return kind.FromString(first)
                answer = await work(connection, self._clock.now())
                if check:
                    raise _Checked(answer)
                body = answer.SerializeToString(deterministic=True)
                await store.REQUESTS.keep(
                    connection, scope, request.request_id, payload, answer=body, at=wall()
                )
            self._batches.wake()
            return answer

        try:
            return await shielded(once)
        except _Checked as checked:
            answer: Answer = checked.answer
            return answer


# --- messages to commands -----------------------------------------------------------------------------


def _common(method: str, request: Any) -> dict[str, Any]:
    return by_call(_REFERRAL + method, request)


def _bind(request: pb.BindInviteeRequest) -> BindInvitee:
    """The payload's hash has no signals: a repeat's are others, and a hash can be guessed."""
    hashed = pb.BindInviteeRequest()
    hashed.CopyFrom(request)
    hashed.ClearField("signals")
    common = _common("BindInvitee", hashed)
    told = {signal: getattr(request.signals, signal.lower()) for signal in _SIGNALS}
    return BindInvitee(
        **common,
        campaign_id=request.campaign_id,
        code=request.code,
        signals={signal: value for signal, value in told.items() if value},
        member_since=instant(request.member_since) if request.HasField("member_since") else None,
        # A token of the brand speaks for all its members: what one of them tries must not lock others out.
        caller=f"{common['actor']} {request.member_id}",
    )


def _attributes(details: pb.FactDetails) -> Mapping[str, str]:
    """What `when` reads, as far as it is told."""
    return {field.name: "true" if value is True else str(value) for field, value in details.ListFields()}


# --- facts to messages --------------------------------------------------------------------------------


def _seen(shown: Any) -> Any:
    """What the caller may see: who holds a member token, no other members' ids."""
    own = CALLER.get().member_id
    for name in ("member_id", "inviter_member_id", "receiver_member_id") if own is not None else ():
        if name in shown.DESCRIPTOR.fields_by_name and getattr(shown, name) != own:
            shown.ClearField(name)
    return shown


def _reward(row: Row) -> pb.Reward:
    return messages.reward(row["member_id"], store.to_reward(row))


def _granted_name(row: Row) -> str:
    return f"{to_micros(row['grant_time'])} {row['reward_id']}"


def _granted(name: str) -> tuple[datetime, str]:
    at, _, reward_id = name.partition(" ")
    try:
        return from_micros(int(at)), reward_id
    except (ValueError, OverflowError):
        raise PageTokenInvalid from None


def _shown_campaign(row: Row) -> pb.Campaign:
    return pb.Campaign.FromString(row["body"])


def _own_rewards(profile: Profile) -> list[Reward]:
    """What a member gets for its own rungs, newest first."""
    own = (reward for reward in profile.rewards.values() if reward.role is Role.INVITER)
    return sorted(own, key=lambda reward: (reward.reach_time, reward.reward_id), reverse=True)[:EXPORTED]


def _progress(profile: Profile, campaign: Campaign, zone: ZoneInfo) -> pb.Progress:
    """Where a member stands on a ladder, but for the rewards."""
    invitees = profile.invitees.values()
    counted = ladder.lines(invitees, campaign, zone)
    states = Counter(one.state for one in invitees if one.depth == 1)
    ahead = ladder.ahead(campaign, 1, len(counted[1]), profile.rungs)
    steps = sorted(profile.rungs.values(), key=lambda rung: (rung.step_id, rung.round))
    return pb.Progress(
        member_id=profile.member_id,
        campaign_id=campaign.campaign_id,
        qualified=len(counted[1]),
        pending=states[InviteeState.BOUND],
        rejected=states[InviteeState.REVOKED] + states[InviteeState.DROPPED],
        qualified_second=len(counted.get(2, ())),
        steps=map(messages.reached, steps[-EXPORTED:]),
        next=pb.NextStep(step_id=ahead.step_id, missing=ahead.missing) if ahead else None,
    )
