"""Campaigns: put in versions, each validated whole, and closed. Their budgets go with them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.database import Connection
from services.chassis.timestamps import timestamp
from services.referral import rules, store
from services.referral.domain.campaigns import Campaign
from services.referral.errors import BudgetSpent, CampaignNotOpen, CampaignUnknown, CapsLowered, CurrencyFixed
from services.referral.rules import CompiledCampaign


async def put_campaign(
    connection: Connection,
    at: datetime,
    put: CompiledCampaign,
    *,
    message: pb.Campaign,
    author: str,
) -> pb.Campaign:
    """Keeps the next version of a campaign, `message`, which `put` is compiled.

    Raises BudgetSpent, CapsLowered, CurrencyFixed.
    """
    campaign = put.campaign
    row = await store.lock_last_campaign(connection, campaign.campaign_id)
    last = None if row is None else rules.stored(row["body"], row["ladder_version"]).campaign
    if last is not None:
        _check_change(last, campaign)
    await _set_budget(connection, campaign)
    return await _add(connection, at, campaign, message, last=last, author=author)


def _check_change(last: Campaign, campaign: Campaign) -> None:
    if last.currency_code not in ("", campaign.currency_code):
        raise CurrencyFixed(currency_code=last.currency_code)
    lowered = campaign.caps.below(last.caps)
    if lowered:
        raise CapsLowered(caps=",".join(lowered))


async def close_campaign(
    connection: Connection, at: datetime, *, campaign_id: str, author: str
) -> pb.Campaign:
    """Closes a campaign by its next version; one that is closed is as it is.

    Raises CampaignUnknown, CampaignNotOpen.
    """
    row = await store.lock_last_campaign(connection, campaign_id)
    if row is None:
        raise CampaignUnknown(campaign_id=campaign_id)
    closed = pb.Campaign.FromString(row["body"])
    last = rules.stored(row["body"], row["ladder_version"]).campaign
    if last.close_time <= at:
        return closed
    if at <= last.open_time:
        raise CampaignNotOpen(open_time=last.open_time.isoformat())
    closed.close_time.CopyFrom(timestamp(at))
    return await _add(connection, at, replace(last, close_time=at), closed, last=last, author=author)


async def _set_budget(connection: Connection, campaign: Campaign) -> None:
    """Sets what may be spent from now on, and lets what waited for it go on."""
    name = campaign.campaign_id
    before = await store.lock_budgets(connection, [name])
    budget = before[name]
    if 0 < campaign.budget_minor < budget.granted_minor:
        raise BudgetSpent(granted_minor=budget.granted_minor)
    if campaign.budget_minor != budget.budget_minor:
        now = replace(budget, budget_minor=campaign.budget_minor, exhausted=False)
        await store.save_budgets(connection, before, {name: now})


async def _add(
    connection: Connection,
    at: datetime,
    campaign: Campaign,
    message: pb.Campaign,
    *,
    last: Campaign | None,
    author: str,
) -> pb.Campaign:
    made = pb.Campaign()
    made.CopyFrom(message)
    made.version = 1 if last is None else last.version + 1
    ladder_version = made.version
    if last is not None and campaign.counts_as(last):
        ladder_version = last.ladder_version
    made.create_time.CopyFrom(timestamp(at))
    await store.add_campaign(
        connection,
        replace(campaign, version=made.version, ladder_version=ladder_version),
        author=author,
        create_time=at,
        body=made.SerializeToString(deterministic=True),
    )
    return made
