"""The gRPC edge: who may call what, and one transaction per call or gathered batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from loyalty.referral.v1 import referral_service_pb2 as pb
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceServicer

from services.chassis import pagination
from services.chassis.asked import by_caller
from services.chassis.auth import CALLER, Access, MemberAccess
from services.chassis.clock import Clock, from_micros, to_micros, wall
from services.chassis.database import Connection, Database, Row
from services.chassis.ids import own_request_id
from services.chassis.pagination import PageTokenInvalid
from services.chassis.requests import Operators, payload_hash
from services.chassis.timestamps import instant, timestamp
from services.referral import events, messages, putting, reviewing, rules, service, store
from services.referral.batches import Batches
from services.referral.commands import (
    Command,
    CreateInvite,
    RecordQualification,
    RecordRewardPaid,
    ResolveReview,
    RetryReward,
    RevokeQualification,
    WriteOffReward,
)
from services.referral.domain.profile import Profile, Verdict
from services.referral.errors import (
    CampaignUnknown,
    InviteUnknown,
    MemberUnknown,
    ReviewUnknown,
    RewardUnknown,
)
from services.referral.messages import SERVICE
from services.referral.rules import CompiledCampaign
from services.referral.service import Lore

Context = grpc.aio.ServicerContext[Any, Any]

Answer = TypeVar("Answer", bound=Message)

AskFor = Callable[..., Command]
"""Makes a command, given what all commands have."""

EXPORTED = 1_000  # invitees and rewards in an export
SHOWN = 10  # places of a leaderboard, unless asked for more

READ, WRITE, ADMIN = "referral.read", "referral.write", "referral.admin"
_OWN, _ACT = MemberAccess.READ, MemberAccess.ACT

# Who may call what. A member token reads its own, and asks for its invite; by whom it was brought, since when
# it is a member and what it did is told by the brand alone.
METHODS = {
    f"{SERVICE}CreateInvite": Access(WRITE, _ACT),
    f"{SERVICE}GetInvite": Access(READ, _OWN),
    f"{SERVICE}BindInvitee": Access(WRITE),
    f"{SERVICE}RecordQualification": Access(WRITE),
    f"{SERVICE}RevokeQualification": Access(WRITE),
    f"{SERVICE}GetProgress": Access(READ, _OWN),
    f"{SERVICE}ListInvitees": Access(READ, _OWN),
    f"{SERVICE}ListRewards": Access(READ, _OWN),
    f"{SERVICE}GetLeaderboard": Access(READ, _OWN),
    f"{SERVICE}ListReviews": Access(ADMIN),
    f"{SERVICE}ResolveReview": Access(ADMIN),
    f"{SERVICE}ListOpenRewards": Access(ADMIN),
    f"{SERVICE}RetryReward": Access(ADMIN),
    f"{SERVICE}WriteOffReward": Access(ADMIN),
    f"{SERVICE}RecordRewardPaid": Access(WRITE),
    f"{SERVICE}PutCampaign": Access(ADMIN),
    f"{SERVICE}GetCampaign": Access(READ),
    f"{SERVICE}ListCampaigns": Access(READ),
    f"{SERVICE}CloseCampaign": Access(ADMIN),
    f"{SERVICE}GetBudget": Access(ADMIN),
    f"{SERVICE}BlockInviter": Access(ADMIN),
    f"{SERVICE}UnblockInviter": Access(ADMIN),
    f"{SERVICE}ExportMember": Access(ADMIN),
    f"{SERVICE}EraseMember": Access(ADMIN),
}

_KINDS = {number: kind for kind, number in events.KINDS.items()}
_REASONS = {number: reason for reason, number in events.REVOKE_REASONS.items()}
_REWARD_STATUSES = {number: status for status, number in messages.REWARD_STATUSES.items()}
_VERDICTS = {number: verdict for verdict, number in messages.VERDICTS.items()}


class ReferralApi(ReferralServiceServicer):
    """loyalty.referral.v1.ReferralService."""

    def __init__(self, database: Database, clock: Clock, lore: Lore, batches: Batches) -> None:
        self._database = database
        self._clock = clock
        self._lore = lore
        self._batches = batches
        self._operators = Operators(database, clock, store.REQUESTS, SERVICE, batches.wake)

    # --- inviting -------------------------------------------------------------------------------------

    async def CreateInvite(self, request: pb.CreateInviteRequest, context: Context) -> pb.Invite:
        """See the contract."""
        return await self._write(
            pb.Invite,
            CreateInvite(
                **messages.asked("CreateInvite", request),
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
        return await self._write(pb.BindInviteeResponse, messages.binding(request))

    # --- what members do ------------------------------------------------------------------------------

    async def RecordQualification(
        self, request: pb.RecordQualificationRequest, context: Context
    ) -> pb.RecordQualificationResponse:
        """See the contract."""
        return await self._write(
            pb.RecordQualificationResponse,
            RecordQualification(
                **messages.asked("RecordQualification", request),
                campaign_id=request.campaign_id,
                kind=_KINDS[request.kind],
                reference_id=request.reference_id,
                amount_minor=request.amount_minor,
                currency_code=request.currency_code,
                occur_time=instant(request.occur_time),
                attributes=messages.fact_attributes(request.details),
            ),
        )

    async def RevokeQualification(
        self, request: pb.RevokeQualificationRequest, context: Context
    ) -> pb.RevokeQualificationResponse:
        """See the contract."""
        return await self._write(
            pb.RevokeQualificationResponse,
            RevokeQualification(
                **messages.asked("RevokeQualification", request),
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
        return messages.progress(profile, compiled.campaign, self._lore.terms.zone)

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
            lambda row: messages.seen(messages.invitee(store.to_invitee(row))),
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
        rewards, token = pagination.fill(
            question, rows, size, "reward_id", lambda row: messages.seen(_reward(row))
        )
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
            messages.seen(entry)
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

        return await self._operators.answer(
            "PutCampaign", request, pb.Campaign, work, check=request.validate_only
        )

    async def GetCampaign(self, request: pb.GetCampaignRequest, context: Context) -> pb.Campaign:
        """See the contract."""
        async with self._database.read() as connection:
            row = await store.campaign(connection, request.campaign_id, request.version or None)
        if row is None:
            raise CampaignUnknown(campaign_id=request.campaign_id)
        return messages.campaign(row)

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
        campaigns, token = pagination.fill(question, rows, size, "campaign_id", messages.campaign)
        return pb.ListCampaignsResponse(campaigns=campaigns, next_page_token=token)

    async def CloseCampaign(self, request: pb.CloseCampaignRequest, context: Context) -> pb.Campaign:
        """See the contract."""

        async def work(connection: Connection, now: datetime) -> pb.Campaign:
            return await putting.close_campaign(
                connection, now, campaign_id=request.campaign_id, author=CALLER.get().subject
            )

        return await self._operators.answer("CloseCampaign", request, pb.Campaign, work)

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

        return await self._operators.answer("BlockInviter", request, pb.Block, work)

    async def UnblockInviter(
        self, request: pb.UnblockInviterRequest, context: Context
    ) -> pb.UnblockInviterResponse:
        """See the contract."""

        async def work(connection: Connection, _now: datetime) -> pb.UnblockInviterResponse:
            await store.unblock(connection, request.member_id, request.campaign_id)
            left = await store.blocks_of(connection, request.member_id)
            return pb.UnblockInviterResponse(blocks=map(messages.block, left))

        return await self._operators.answer("UnblockInviter", request, pb.UnblockInviterResponse, work)

    async def _campaign(self, connection: Connection, campaign_id: str) -> CompiledCampaign:
        """The latest version of a campaign. Raises CampaignUnknown."""
        row = await store.campaign(connection, campaign_id)
        if row is None:
            raise CampaignUnknown(campaign_id=campaign_id)
        campaigns = self._lore.campaigns
        return campaigns.get(campaign_id, row["version"]) or campaigns.keep(
            row["body"], row["ladder_version"]
        )

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

        return await self._operators.answer(
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
        payload, caller = payload_hash(SERVICE + method, request), CALLER.get().subject
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


# --- pages of rewards ---------------------------------------------------------------------------------


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
