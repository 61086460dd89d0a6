"""A member's data: handed out whole, and erased everywhere, while bonds and rewards stay."""

from __future__ import annotations

import asyncio

import nats
from grpc import StatusCode
from loyalty.points.v1.points_events_pb2 import TierChanged
from loyalty.referral.v1 import referral_service_pb2 as pb
from nats.js.errors import NotFoundError

from services.cli.house import House
from tests.database import ask
from tests.referral.calls import (
    bind,
    bring,
    instant,
    invite,
    invitees,
    made,
    points,
    progress,
    qualify,
    reviews,
    rewards,
    stamp,
    tell,
    until_granted,
)
from tests.support import Referral, eventually, fresh, refused

LADDER = [{"step_id": "one", "at": 1, "reward": points(10), "invitee_reward": points(5)}]
NAME = "司徒**"


def export(referral: Referral, member: str, page_size: int = 0) -> list[pb.ExportMemberResponse]:
    """Everything kept, page by page."""
    pages: list[pb.ExportMemberResponse] = []
    token = ""
    while True:
        request = pb.ExportMemberRequest(member_id=member, page_size=page_size, page_token=token)
        pages.append(referral.call(referral.referral.ExportMember, request))
        token = pages[-1].next_page_token
        if not token:
            return pages


def erase(referral: Referral, member: str, request_id: str = "") -> pb.EraseMemberResponse:
    request = pb.EraseMemberRequest(member_id=member, request_id=request_id or fresh("erase"))
    return referral.call(referral.referral.EraseMember, request)


def promote(referral: Referral, member: str) -> None:
    """The points service tells of a tier."""
    at = stamp(referral.now)
    tell(
        referral,
        TierChanged(member_id=member, occur_time=at, epoch=1, version=1, from_tier="", to_tier="gold"),
    )


def live(referral: Referral, member: str, marker: str) -> pb.Campaign:
    """A member who was brought, did things, and brought somebody, with a marker wherever text can be."""
    velocity = [{"signal": "SIGNAL_VELOCITY", "limit": 0, "score": 1}]  # so that each bond is looked at
    campaign = made(referral, ladder=LADDER, signal_limits=velocity, review_score=1)
    code = invite(referral, campaign, fresh("inviter")).code
    signals = pb.Signals(device=marker, ip_prefix=marker, payment_account=marker, address=marker)
    bind(referral, campaign, member, code, signals=signals)
    details = pb.FactDetails(store_id=marker, city=marker, channel=marker, product=marker)
    for number in range(3):
        qualify(referral, campaign, member, reference_id=f"{member}-{number}", details=details)
    [review] = reviews(referral, campaign)
    judged = pb.ResolveReviewRequest(
        request_id=fresh("judge"), review_id=review.review_id, verdict=pb.REVIEW_STATUS_PASSED, note=marker
    )
    referral.call(referral.referral.ResolveReview, judged)
    until_granted(referral, member)
    invite(referral, campaign, member, display_name=f"司徒{marker}")
    bring(referral, campaign, member)
    eventually(lambda: bool(invitees(referral, campaign, member)))
    promote(referral, member)
    eventually(lambda: dict(export(referral, member)[0].told) == {"tier": "gold"})
    return campaign


def in_tables(house: House, marker: str) -> list[str]:
    """Tables with a row that holds the marker, as text or within bytes."""
    names = ask(house, "referral", "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    held = "t::text LIKE '%' || $1 || '%' OR t::text LIKE '%' || $2 || '%'"
    return [
        name
        for (name,) in names
        if ask(house, "referral", f"SELECT FROM {name} t WHERE {held}", marker, marker.encode().hex())
    ]


def in_stream(house: House, member: str) -> set[str]:
    """What the service's stream holds about a member, by subject."""

    async def look() -> set[str]:
        client = await nats.connect(house.nats.url)
        try:
            jetstream = client.jetstream()
            state = (await jetstream.stream_info("REFERRAL")).state
            found = set()
            for sequence in range(max(1, state.first_seq), state.last_seq + 1):
                try:
                    message = await jetstream.get_msg("REFERRAL", sequence)
                except NotFoundError:
                    continue
                if (message.headers or {}).get("ce-subject") == member:
                    found.add(str(message.subject).rpartition(".")[2])
            return found
        finally:
            await client.close()

    return asyncio.run(look())


def test_an_export_has_everything_in_pages_of_any_size(referral: Referral) -> None:
    member, marker = fresh("member"), fresh("marker")
    live(referral, member, marker)
    [whole] = export(referral, member)
    assert [one.member_id for one in whole.invites] == [member]
    assert [one.status for one in whole.attributions] == [pb.ATTRIBUTION_STATUS_QUALIFIED]
    assert [one.state for one in whole.invitees] == [pb.INVITEE_STATE_BOUND]
    assert [one.points.amount for one in whole.rewards] == [5]
    assert {(one.signal, one.value) for one in whole.signals} == {
        (signal, marker)
        for signal in (
            *(pb.SIGNAL_DEVICE, pb.SIGNAL_IP_PREFIX, pb.SIGNAL_PAYMENT_ACCOUNT, pb.SIGNAL_ADDRESS),
        )
    }
    assert (whole.masked_name, dict(whole.told)) == ("司**", {"tier": "gold"})
    assert [one.reference_id for one in whole.facts] == [f"{member}-{number}" for number in range(3)]
    assert whole.facts[0].attributes["store_id"] == marker
    for size in (1, 2):
        first, *others = export(referral, member, size)
        assert [fact for page in (first, *others) for fact in page.facts] == list(whole.facts)
        assert first.signals == whole.signals
        assert not any(page.signals or page.rewards or page.told for page in others)
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        export(referral, fresh("nobody"))


def test_what_is_erased_is_found_nowhere_and_bonds_and_rewards_stay(referral: Referral) -> None:
    member, marker, house = fresh("member"), fresh("marker"), referral.house
    campaign = live(referral, member, marker)
    assert in_tables(house, marker) == ["answers", "facts", "reviews", "signals"]
    before = progress(referral, campaign, member)
    eventually(lambda: "RewardGranted" in in_stream(house, member))
    answer = erase(referral, member, request_id := fresh("erase"))
    assert (answer.signals, answer.facts, answer.told) == (4, 3, 1)
    assert instant(answer.erase_time) == referral.now
    assert erase(referral, member, request_id) == answer
    assert in_tables(house, marker) == []
    assert in_stream(house, member)  # until it is done
    # Whoever has not heard yet who counts, or what is taken back, must not miss it; those age out.
    eventually(lambda: in_stream(house, member) <= {"InviteeBound", "InviteeQualified"})
    assert progress(referral, campaign, member) == before
    assert [reward.points.amount for reward in rewards(referral, member)] == [5]
    [left] = export(referral, member)
    assert (list(left.signals), dict(left.told), left.masked_name) == ([], {}, "")
    assert [fact.attributes for fact in left.facts] == [{}] * 3
    assert erase(referral, member).signals == 0
    with refused(StatusCode.NOT_FOUND, "MEMBER_UNKNOWN"):
        erase(referral, fresh("nobody"))


def test_repeats_of_an_erased_member_are_known_though_their_answer_is_not(referral: Referral) -> None:
    campaign, member, request_id = made(referral), fresh("member"), fresh("invite")
    first = invite(referral, campaign, member, request_id)
    erase(referral, member)
    with refused(StatusCode.FAILED_PRECONDITION, "ANSWER_ERASED"):
        invite(referral, campaign, member, request_id)
    assert invite(referral, campaign, member).code == first.code
