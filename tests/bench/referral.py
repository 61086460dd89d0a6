"""The referral service: invites made, members bound by them, what they do, and how far they brought it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from google.protobuf.json_format import ParseDict
from loyalty.referral.v1 import referral_service_pb2 as pb
from loyalty.referral.v1.referral_events_pb2 import QUALIFICATION_KIND_ORDER

from tests.bench.goals import Goal, Memory, Rate
from tests.bench.messages import CHANCE, fresh, names
from tests.bench.paths import TPCB, Figures, Plan, WrongRows, call, memory, path, some
from tests.bench.site import PATIENCE, PROGRAMME, Site

INVITE, BIND = "CreateInvite, 256 in flight", "BindInvitee, 256 in flight"
RECORD, PROGRESS = "RecordQualification, 256 in flight", "GetProgress, 256 in flight"
MEMORY = "memory of referral"
PATHS = (INVITE, BIND, RECORD, PROGRESS, MEMORY)
GOALS: Sequence[Goal] = (
    Rate(INVITE, 0.5, TPCB),
    Rate(BIND, 0.5, TPCB),
    Rate(RECORD, 0.5, TPCB),
    Memory(MEMORY),
)

CAMPAIGN = "friends"  # of the programme: a ladder for orders of some size, with signals and a budget
RUNS = timedelta(days=300)  # before and after now
NETS = 5_000  # that members come from
BEFORE = 2_000  # members who were brought before anything is measured
WORTH = 2_500  # minor units of an order; it counts from 1,500 on

INVITES = "SELECT count(*) FROM invites"
BONDS = "SELECT count(*) FROM attributions"
FACTS = "SELECT count(*) FROM facts"
CODES = "SELECT array_agg(code) FROM codes WHERE member_id LIKE 'i-%'"
# Who was bound and has done nothing since.
IDLE = """
    SELECT array_agg(member_id) FROM attributions a
    WHERE NOT EXISTS (SELECT FROM facts f WHERE (f.bucket, f.member_id) = (a.bucket, a.member_id))"""


# --- what it is called with ---------------------------------------------------------------------------


def invites(members: Iterator[str]) -> Iterator[bytes]:
    """A first invite of each member."""
    for member in members:
        request = pb.CreateInviteRequest(
            member_id=member, request_id=fresh("i"), campaign_id=CAMPAIGN, display_name="bench"
        )
        yield request.SerializeToString()


def binds(codes: Sequence[str]) -> Iterator[bytes]:
    """Members whom nobody knows yet, each with a phone of its own, brought by any of the inviters."""
    now = int(time.time())
    while True:
        member = fresh("f")
        request = pb.BindInviteeRequest(
            member_id=member, request_id=fresh("b"), campaign_id=CAMPAIGN, code=CHANCE.choice(codes)
        )
        request.signals.device, request.signals.ip_prefix = f"phone-{member}", f"ip-{CHANCE.randrange(NETS)}"
        request.member_since.FromSeconds(now)
        yield request.SerializeToString()


def records(members: Sequence[str]) -> Iterator[bytes]:
    """The order by which each of these qualifies."""
    now = int(time.time())
    for member in members:
        request = pb.RecordQualificationRequest(
            member_id=member,
            request_id=fresh("q"),
            campaign_id=CAMPAIGN,
            kind=QUALIFICATION_KIND_ORDER,
            reference_id=fresh("o"),
            amount_minor=WORTH,
            currency_code="CNY",
            details=pb.FactDetails(store_id="store-1", city="杭州", channel="app"),
        )
        request.occur_time.FromSeconds(now)
        yield request.SerializeToString()


def questions(plan: Plan) -> Iterator[bytes]:
    """Where any of the inviters stands."""
    asked = [
        pb.GetProgressRequest(member_id=member, campaign_id=CAMPAIGN).SerializeToString()
        for member in names("i", plan.holders)
    ]
    CHANCE.shuffle(asked)
    return itertools.cycle(asked)


def opening() -> pb.PutCampaignRequest:
    """The programme's campaign, open now, whenever it runs there."""
    said: dict[str, Any] = yaml.safe_load(PROGRAMME.read_text(encoding="utf-8"))
    campaigns = {one["campaign_id"]: one for one in said["referral"]["campaigns"]}
    campaign, now = ParseDict(campaigns[CAMPAIGN], pb.Campaign()), datetime.now(UTC)
    campaign.open_time.FromDatetime(now - RUNS)
    campaign.close_time.FromDatetime(now + RUNS)
    campaign.settle_time.FromDatetime(now + RUNS)
    return pb.PutCampaignRequest(request_id=fresh("p"), campaign=campaign)


# --- what is measured ---------------------------------------------------------------------------------


def prepare(site: Site, plan: Plan) -> None:
    """Puts the campaign, gives every inviter an invite, and has some bring somebody already.

    A statement whose plan was made when its table was empty would read all of it ever after.
    """
    with site.serving("referral", "native") as served:
        call(served, "PutCampaign", [opening().SerializeToString()], PATIENCE, 1)
        call(served, "CreateInvite", invites(iter(names("i", plan.holders))), PATIENCE)
        call(served, "BindInvitee", itertools.islice(binds(served.sql(CODES)), BEFORE), PATIENCE)
        call(served, "RecordQualification", records(served.sql(IDLE)), PATIENCE)
        served.quiet()
        if (found := served.sql(INVITES)) != plan.holders:
            raise WrongRows(f"{plan.holders} invites were acknowledged, {found} are there")
    site.sql("referral", "VACUUM ANALYZE")


def measure(site: Site, front: str, plan: Plan) -> Figures:
    """Measures every path on one front."""
    found: Figures = {}
    seconds = plan.seconds
    with site.serving("referral", front) as served:
        bound = binds(served.sql(CODES))
        call(served, "BindInvitee", bound, 1.0)  # warms everything up
        made = some(invites(fresh("n") for _ in itertools.count()), seconds)
        found[INVITE] = path(served, "CreateInvite", made, seconds, gather="posts", committed=INVITES)
        made = some(bound, seconds)
        found[BIND] = path(served, "BindInvitee", made, seconds, gather="posts", committed=BONDS)
        made = list(records(served.sql(IDLE)))
        found[RECORD] = path(served, "RecordQualification", made, seconds, gather="posts", committed=FACTS)
        found[PROGRESS] = path(served, "GetProgress", questions(plan), seconds / 2)
        found[MEMORY] = memory(served)
    return found
