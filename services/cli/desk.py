"""`loyalty referral`: the operator's desk: bonds to judge, and rewards that were not handed over."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from loyalty.referral.v1 import referral_service_pb2 as pb
from rich.console import Console
from rich.table import Table

from services.cli.place import HouseOption, JsonOption, Referral, referral

PAGE = 1_000  # reviews or rewards a call
WIDE = 1_000  # columns of text: no id is cut

app = typer.Typer(help="Bonds to judge, and rewards that were not handed over.", no_args_is_help=True)

CampaignOption = Annotated[str, typer.Option("--campaign", help="Only of this one.")]
ReviewArgument = Annotated[str, typer.Argument(metavar="REVIEW", help="Its id, as `reviews` shows it.")]
RewardArgument = Annotated[str, typer.Argument(metavar="REWARD", help="Its id, as `rewards` shows it.")]


# --- bonds --------------------------------------------------------------------------------------------


@app.command()
def reviews(
    *,
    campaign: CampaignOption = "",
    resolved: Annotated[bool, typer.Option("--all", help="Also those that were judged.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the bonds that wait for a verdict, oldest first."""
    with referral(house) as service:
        request = pb.ListReviewsRequest(page_size=PAGE, campaign_id=campaign, include_resolved=resolved)
        found = _pages(service, service.stub.ListReviews, request, "reviews")
        columns = ("review", "campaign", "invitee", "inviter", "score", "signals", "status")
        _show(columns, found, _review, as_json)


def _review(review: pb.Review) -> Sequence[str]:
    signals = (pb.Signal.Name(signal).removeprefix("SIGNAL_") for signal in review.signals)
    status = pb.ReviewStatus.Name(review.status).removeprefix("REVIEW_STATUS_")
    members = review.member_id, review.inviter_member_id
    return review.review_id, review.campaign_id, *members, str(review.score), ", ".join(signals), status


@app.command()
def resolve(
    review: ReviewArgument,
    verdict: Annotated[bool, typer.Option("--pass/--reject", help="Whether the bond counts.")],
    *,
    note: Annotated[str, typer.Option(help="What to note with it.")] = "",
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a bond: it counts, or it never will and what was given for it is taken back."""
    request = pb.ResolveReviewRequest(
        request_id=_request_id("resolve"),
        review_id=review,
        verdict=pb.REVIEW_STATUS_PASSED if verdict else pb.REVIEW_STATUS_REJECTED,
        note=note,
    )
    with referral(house) as service:
        judged = service.call(service.stub.ResolveReview, request)
    _tell(judged, f"{judged.member_id} by {judged.inviter_member_id}: {_review(judged)[-1]}", as_json)


# --- rewards ------------------------------------------------------------------------------------------


@app.command()
def rewards(
    *,
    campaign: CampaignOption = "",
    troubled: Annotated[bool, typer.Option("--troubled", help="Only what failed or is overdue.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the rewards that are granted and not handed over, longest first."""
    with referral(house) as service:
        request = pb.ListOpenRewardsRequest(page_size=PAGE, campaign_id=campaign, troubled=troubled)
        found = _pages(service, service.stub.ListOpenRewards, request, "rewards")
        _show(("reward", "campaign", "receiver", "what", "granted", "status"), found, _reward, as_json)


def _reward(reward: pb.Reward) -> Sequence[str]:
    what = reward.WhichOneof("reward") or ""
    said = MessageToDict(getattr(reward, what), preserving_proto_field_name=True) if what else {}
    gift = " ".join([what.replace("_", " "), *map(str, said.values())])
    ids = reward.reward_id, reward.campaign_id, reward.receiver_member_id
    return *ids, gift, reward.grant_time.ToJsonString(), _status(reward)


def _status(reward: pb.Reward) -> str:
    status = pb.RewardStatus.Name(reward.status).removeprefix("REWARD_STATUS_")
    return " ".join(filter(None, [status, reward.reason, "OVERDUE" if reward.overdue else ""]))


@app.command()
def retry(reward: RewardArgument, *, house: HouseOption = None, as_json: JsonOption = False) -> None:
    """Have a reward that failed or is overdue handed over once more."""
    request = pb.RetryRewardRequest(request_id=_request_id("retry"), reward_id=reward)
    with referral(house) as service:
        _tell_reward(service.call(service.stub.RetryReward, request), as_json)


@app.command("write-off")
def write_off(reward: RewardArgument, *, house: HouseOption = None, as_json: JsonOption = False) -> None:
    """Give up a reward that failed or is overdue."""
    request = pb.WriteOffRewardRequest(request_id=_request_id("write-off"), reward_id=reward)
    with referral(house) as service:
        _tell_reward(service.call(service.stub.WriteOffReward, request), as_json)


@app.command()
def paid(
    reward: RewardArgument,
    reference: Annotated[str, typer.Argument(help="What proves it: the payment, or the coupon.")],
    *,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell that cash was paid, or coupons were issued."""
    request = pb.RecordRewardPaidRequest(
        request_id=_request_id("paid"), reward_id=reward, reference_id=reference
    )
    with referral(house) as service:
        _tell_reward(service.call(service.stub.RecordRewardPaid, request), as_json)


def _tell_reward(reward: pb.Reward, as_json: bool) -> None:
    _tell(reward, f"{reward.reward_id} of {reward.receiver_member_id}: {_status(reward)}", as_json)


# --- common -------------------------------------------------------------------------------------------


def _request_id(verb: str) -> str:
    return f"{verb}-{uuid.uuid4().hex}"


def _pages(service: Referral, method: Callable[..., Any], request: Any, field: str) -> Iterator[Any]:
    while True:
        page = service.call(method, request)
        yield from getattr(page, field)
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _show(
    columns: Sequence[str], found: Iterable[Any], row: Callable[[Any], Sequence[str]], as_json: bool
) -> None:
    if as_json:
        typer.echo(json.dumps([_said(one) for one in found], ensure_ascii=False))
        return
    table = Table(*columns)
    for one in found:
        table.add_row(*row(one))
    Console(width=WIDE).print(table)


def _tell(message: Message, line: str, as_json: bool) -> None:
    typer.echo(json.dumps(_said(message), ensure_ascii=False) if as_json else line)


def _said(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return said
