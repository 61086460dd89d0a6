"""Invites and bonds: who may, who was first, what looks suspicious, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from loyalty.referral.v1 import referral_events_pb2 as epb
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.chassis.errors import RequestIdReused, ServiceError
from services.referral import codes
from services.referral.commands import (
    BindInvitee,
    CreateInvite,
    Joined,
    Learned,
    RecordQualification,
    ResolveReview,
    RevokeQualification,
)
from services.referral.domain.campaigns import FactKind, Signal
from services.referral.domain.profile import (
    CARD,
    EVERYTHING,
    GROUP,
    AttributionStatus,
    Fact,
    InviteeState,
    RevokeReason,
    Verdict,
)
from services.referral.errors import (
    AlreadyBound,
    AlreadyMember,
    CampaignClosed,
    CampaignUnknown,
    CodeUnknown,
    Cycle,
    InviterBlocked,
    NotEligible,
    ReviewUnknown,
    SelfReferral,
    TooManyTries,
    WrongKind,
)
from tests.referral.circle import ANN, BEN, CEM, TERMS, Circle, campaign, order, step
from tests.referral.plain import DAY, HOUR, NOON

NEWCOMERS = [{"name": "new", "expression": "member_days < 1"}]
MILK = [{"name": "milk", "expression": "'milk' in cards && 'club' in groups"}]
DEVICE = {"signal": "SIGNAL_DEVICE", "limit": 1, "score": 4}
VELOCITY = {"signal": "SIGNAL_VELOCITY", "limit": 2, "score": 3}
FAST = {"signal": "SIGNAL_FAST", "limit": 60, "score": 4}


def wrong(code: str) -> str:
    """A code that nobody has, of the right form."""
    made = codes.make()
    return made if made != code else codes.make()


def states(circle: Circle) -> dict[str, InviteeState]:
    """Where Ann's invitees stand for her."""
    return {one.member_id: one.state for one in circle.profile().invitees.values()}


# --- invites ------------------------------------------------------------------------------------------


def test_a_member_has_one_invite_in_a_campaign_whenever_it_asks() -> None:
    circle = Circle(campaign(poster_fields={"text": "{name} 请你 {code}"}))
    first = circle.invite(display_name="张三丰")
    circle.wait(days=80)
    again = circle.invite()
    assert (first.code, again.code) == (again.scene, first.code)
    assert first.poster_fields == {"text": f"张** 请你 {first.code}"}
    assert circle.kinds() == ["InviteCreated"]
    circle.invite(display_name="李四")
    assert circle.profile().invites["king"].masked_name == "李**"


def test_who_may_not_invite_is_told_why() -> None:
    circle = Circle(campaign(inviter_eligible=MILK))
    with pytest.raises(CampaignUnknown):
        circle.invite(campaign_id="queen")
    with pytest.raises(NotEligible) as refused:
        circle.invite()
    assert refused.value.metadata == {"condition": "milk"}
    circle.tell(ANN, learned=Learned(f"{CARD}milk", "milk", (1, 2)))
    circle.tell(ANN, learned=Learned(f"{GROUP}club", "club", (1, 1)))
    circle.tell(ANN, learned=Learned(f"{CARD}milk", "", (1, 1)))  # older
    circle.seen.blocked.add((ANN, "king"))
    with pytest.raises(InviterBlocked):
        circle.invite()
    circle.seen.blocked.clear()
    circle.at = NOON + 60 * DAY
    with pytest.raises(CampaignClosed):
        circle.invite()
    circle.at = NOON
    assert circle.invite().code


def test_newcomers_of_a_task_group_get_their_invites_by_themselves() -> None:
    circle = Circle(
        campaign(auto_invite_scheme_id="task"),
        campaign(campaign_id="queen", auto_invite_scheme_id="task", inviter_eligible=MILK),
        campaign(campaign_id="other"),
    )
    circle.tell(ANN, joined=Joined("task", "group-1"))
    circle.tell(ANN, joined=Joined("task", "group-2"))
    circle.tell(BEN, joined=Joined("else", "group-3"))
    [created] = circle.heard(epb.InviteCreated)
    assert (created.member_id, created.campaign_id, created.group_id) == (ANN, "king", "group-1")


# --- refusals -----------------------------------------------------------------------------------------


def test_a_bind_is_refused_for_the_first_reason_of_their_order() -> None:
    circle = Circle(campaign(invitee_eligible=NEWCOMERS))
    hers, his = circle.invite(ANN).code, circle.invite(BEN).code
    circle.bind(ANN, BEN)
    asked: dict[str, Any] = {"campaign_id": "king", "caller": "brand"}

    def refused(member: str, code: str, **more: Any) -> type[Exception]:
        with pytest.raises(ServiceError) as info:
            circle.do(BindInvitee, member, **{**asked, "code": code, **more})
        return info.type

    circle.seen.blocked.add((BEN, "king"))
    old = {"member_since": NOON - 3 * DAY}
    assert refused(ANN, his, campaign_id="queen") is CampaignUnknown
    assert refused(ANN, wrong(his), **old) is CodeUnknown
    assert refused(BEN, his, **old) is SelfReferral
    assert refused(ANN, his, **old) is AlreadyBound
    assert refused(CEM, his, **old) is InviterBlocked
    circle.seen.blocked.clear()
    assert refused(CEM, his, **old) is AlreadyMember
    assert refused(BEN, hers, **old) is AlreadyMember
    assert refused(BEN, hers) is Cycle
    circle.at = NOON + 60 * DAY
    assert refused(ANN, wrong(his)) is CampaignClosed
    assert set(circle.kinds()) == {"InviteCreated", "InviteeBound"}


def test_a_code_is_read_however_it_was_typed_and_another_campaigns_is_nobodys() -> None:
    circle = Circle(campaign(), campaign(campaign_id="queen"))
    code = circle.invite().code
    typed = "-".join((code[:4].lower(), code[4:].replace("0", "O").replace("1", "l")))
    asked = {"caller": "brand", "code": typed}
    with pytest.raises(CodeUnknown):
        circle.do(BindInvitee, BEN, campaign_id="queen", **asked)
    circle.do(BindInvitee, BEN, campaign_id="king", **asked)
    assert circle.bond(BEN).code == code


def test_who_tries_codes_that_nobody_has_is_stopped_and_others_are_not() -> None:
    circle = Circle()
    code = circle.invite().code
    asked = {"campaign_id": "king", "caller": "brand"}
    for _ in range(TERMS.code_tries_per_minute):
        with pytest.raises(CodeUnknown):
            circle.do(BindInvitee, BEN, code="nonsense", **asked)
    with pytest.raises(TooManyTries):
        circle.do(BindInvitee, BEN, code=code, **asked)
    circle.do(BindInvitee, CEM, code=code, campaign_id="king", caller="another")


def test_a_repeat_gets_the_first_answer_and_another_code_under_its_id_is_refused() -> None:
    circle = Circle()
    asked = {"campaign_id": "king", "code": circle.invite().code, "caller": "brand", "request_id": "r"}
    first = circle.do(BindInvitee, BEN, **asked)
    circle.tell(BEN, order("o", NOON))
    circle.at += 70 * DAY
    assert circle.do(BindInvitee, BEN, **asked) == first
    with pytest.raises(RequestIdReused):
        circle.do(BindInvitee, BEN, **{**asked, "code": "other"})


# --- two levels ---------------------------------------------------------------------------------------


def test_whom_an_invitee_brings_counts_for_the_inviter_at_two_levels_and_at_no_third() -> None:
    two = campaign(step("one", at=1), step("below", at=1, depth=2), max_depth=2)
    circle = Circle(two, campaign(campaign_id="flat"))
    for campaign_id in ("king", "flat"):
        circle.bind(BEN, ANN, campaign_id)
        circle.bind(CEM, BEN, campaign_id)
        circle.bind("dan", CEM, campaign_id)
    assert [circle.bond(name).grand_inviter_id for name in (BEN, CEM, "dan")] == ["", ANN, BEN]
    assert circle.bond(CEM, "flat").grand_inviter_id == ""
    circle.tell(CEM, order("o", NOON))
    circle.deliver()
    reached = [(one.member_id, one.step_id) for one in circle.heard(epb.StepReached)]
    assert sorted(reached) == [(ANN, "below"), (BEN, "one"), (BEN, "one")]
    qualified = [one for one in circle.heard(epb.InviteeQualified) if one.campaign_id == "king"]
    assert [(one.inviter_member_id, one.depth, one.version) for one in qualified] == [
        (BEN, 1, 3),
        (ANN, 2, 4),
    ]


# --- what looks suspicious ----------------------------------------------------------------------------


def test_what_looks_suspicious_waits_for_an_operator_and_then_counts_as_if_it_had_not() -> None:
    circle = Circle(campaign(signal_limits=[DEVICE, VELOCITY], review_score=4, hold_period_hours=24))
    device = {Signal.DEVICE: "ab12"}
    first = circle.bind("b1", ANN, signals=device)
    second = circle.bind("b2", ANN, signals=device)
    third = circle.bind("b3", ANN, signals={Signal.DEVICE: "other"})
    assert first.status == second.status == third.status
    assert [circle.bond(name).verdict for name in ("b1", "b2", "b3")] == ["PASS", "REVIEW", "PASS"]
    circle.tell("b2", order("o2", NOON))
    circle.deliver()
    assert circle.bond("b2").status is AttributionStatus.BOUND
    assert not circle.rewards()
    circle.wait(days=40)  # its time to qualify is over, and it is not lapsed
    assert circle.bond("b2").status is AttributionStatus.BOUND
    shown = circle.resolve("b2", Verdict.PASS)
    assert (shown.score, shown.resolved_by) == (4, "test")
    circle.deliver()
    [reward] = circle.rewards()
    assert reward.grant_after == NOON + DAY
    assert circle.grant() == [reward]


def test_who_is_rejected_never_counts_until_an_operator_judges_anew() -> None:
    circle = Circle(
        campaign(signal_limits=[FAST], review_score=4, on_drop="ON_DROP_KEEP", hold_period_hours=0)
    )
    circle.bind(BEN)
    circle.at += timedelta(seconds=59)
    circle.tell(BEN, order("fast", circle.at))
    assert circle.bond(BEN).status is AttributionStatus.BOUND
    circle.resolve(BEN, Verdict.PASS)
    circle.deliver()
    circle.at += HOUR
    circle.grant()
    circle.resolve(BEN, Verdict.REJECT)
    circle.deliver()
    [told] = circle.heard(epb.InviteeRevoked)
    assert told.reason == epb.REVOKE_REASON_FRAUD
    [back] = circle.heard(epb.RewardClawedBack)  # though the campaign lets members keep what they have
    assert back.reason == epb.REVOKE_REASON_FRAUD
    circle.resolve(BEN, Verdict.PASS)
    circle.deliver()
    circle.grant()
    assert [one.attempt for one in circle.heard(epb.RewardGranted)] == [1, 2]
    with pytest.raises(ReviewUnknown):
        circle.do(ResolveReview, CEM, review_id=circle.reviews()[0].review_id, verdict=Verdict.PASS)


def test_what_a_member_kept_after_a_refund_is_taken_back_once_it_was_fraud() -> None:
    circle = Circle(
        campaign(signal_limits=[DEVICE], review_score=4, on_drop="ON_DROP_KEEP", hold_period_hours=0)
    )
    for name in ("b1", "b2"):
        circle.bind(name, ANN, signals={Signal.DEVICE: "x"})
    circle.resolve("b2", Verdict.PASS)
    circle.tell("b2", order("o2", NOON))
    circle.deliver()
    circle.grant()
    circle.tell("b2", Fact(kind=FactKind.ORDER, reference_id="o2", refunds={"r": (EVERYTHING, NOON)}))
    circle.deliver()
    assert not circle.heard(epb.RewardClawedBack)
    circle.resolve("b2", Verdict.REJECT)
    circle.deliver()
    assert [one.reason for one in circle.heard(epb.RewardClawedBack)] == [epb.REVOKE_REASON_FRAUD]


def test_who_is_rejected_at_once_is_dropped_and_whoever_binds_is_not_told() -> None:
    circle = Circle(campaign(signal_limits=[DEVICE], review_score=2, reject_score=4))
    circle.bind("b1", ANN, signals={Signal.DEVICE: "x"})
    answer = circle.bind("b2", ANN, signals={Signal.DEVICE: "x"})
    circle.deliver()
    assert answer.status == pb.ATTRIBUTION_STATUS_BOUND
    assert circle.bond("b2").status is AttributionStatus.REJECTED
    assert states(circle) == {"b1": InviteeState.BOUND, "b2": InviteeState.DROPPED}


def test_who_is_rejected_by_mistake_is_bound_again_as_of_when_it_was() -> None:
    circle = Circle(campaign(signal_limits=[DEVICE], review_score=4))
    for name in ("b1", "b2"):
        circle.bind(name, ANN, signals={Signal.DEVICE: "x"})
    circle.at += HOUR
    circle.resolve("b2", Verdict.REJECT)
    circle.deliver()
    assert states(circle)["b2"] is InviteeState.DROPPED
    circle.resolve("b2", Verdict.PASS)
    circle.deliver()
    assert states(circle)["b2"] is InviteeState.BOUND
    assert [one.bind_time for one in circle.profile().invitees.values()] == [NOON, NOON]
    assert circle.profile("b2").next_due_time == NOON + 30 * DAY


# --- what they do -------------------------------------------------------------------------------------


def test_what_was_done_before_the_bind_counts_and_what_another_campaign_asks_for_does_not() -> None:
    circle = Circle(campaign(), campaign(campaign_id="queen", qualify={"kind": "QUALIFICATION_KIND_GROUP"}))
    circle.tell(BEN, order("o", NOON - HOUR), Fact(kind=FactKind.GROUP, reference_id="g", occur_time=NOON))
    circle.bind(BEN)
    assert circle.bond(BEN).qualify_time == NOON - HOUR
    assert circle.kinds() == ["InviteCreated", "InviteeBound", "InviteeQualified"]
    told = {"kind": FactKind.ORDER, "reference_id": "g", "occur_time": NOON}
    with pytest.raises(WrongKind) as refused:
        circle.do(RecordQualification, BEN, campaign_id="queen", **told)
    assert refused.value.metadata == {"kind": "GROUP"}


def test_a_call_tells_of_a_registration_and_another_undoes_it() -> None:
    circle = Circle(campaign(qualify={"kind": "QUALIFICATION_KIND_REGISTRATION"}))
    circle.bind(BEN)
    told = {"campaign_id": "king", "reference_id": "app"}
    ahead = NOON + 3 * DAY
    circle.do(RecordQualification, BEN, kind=FactKind.REGISTRATION, occur_time=ahead, **told)
    assert circle.bond(BEN).qualify_time == NOON
    circle.do(RevokeQualification, BEN, occur_time=NOON, reason=RevokeReason.REQUESTED, **told)
    assert circle.bond(BEN).status is AttributionStatus.REVOKED
    circle.do(RecordQualification, BEN, kind=FactKind.REGISTRATION, occur_time=NOON, **told)
    assert circle.bond(BEN).status is AttributionStatus.REVOKED
    assert [one.reason for one in circle.heard(epb.InviteeRevoked)] == [epb.REVOKE_REASON_REQUESTED]


def _by_clock(circle: Circle) -> None:
    circle.wait(days=31)


def _by_a_write(circle: Circle) -> None:
    circle.at += 31 * DAY
    circle.tell(BEN, learned=Learned(f"{CARD}milk", "milk", (1, 1)))


@pytest.mark.parametrize("look", [_by_clock, _by_a_write])
def test_who_does_nothing_in_time_lapses_and_counts_again_once_an_early_deed_is_told(
    look: Callable[[Circle], None],
) -> None:
    circle = Circle()
    circle.bind(BEN)
    circle.deliver()
    assert circle.profile(BEN).next_due_time == NOON + 30 * DAY
    look(circle)
    assert circle.profile(BEN).next_due_time is None
    [dropped] = circle.heard(epb.InviteeDropped)
    assert dropped.occur_time.ToDatetime(NOON.tzinfo) == NOON + 30 * DAY
    circle.tell(BEN, order("late", NOON + 30 * DAY))
    circle.deliver()
    assert circle.bond(BEN).status is AttributionStatus.LAPSED
    circle.tell(BEN, order("early", NOON + 29 * DAY))
    circle.deliver()
    [invitee] = circle.profile().invitees.values()
    assert (invitee.state, invitee.bind_time) == (InviteeState.QUALIFIED, NOON)


def test_a_refund_that_leaves_enough_is_told_as_less_and_one_that_does_not_makes_another_deed_count() -> None:
    circle = Circle(campaign(qualify={"kind": "QUALIFICATION_KIND_ORDER", "when": "amount_minor >= 500"}))
    circle.bind(BEN)
    circle.at += HOUR
    circle.tell(BEN, order("a", NOON, 1000), order("b", NOON + HOUR, 800))
    back = {"r1": (300, NOON + HOUR)}
    circle.tell(BEN, Fact(kind=FactKind.ORDER, reference_id="a", refunds=back))
    circle.tell(BEN, Fact(kind=FactKind.ORDER, reference_id="a", refunds={"r2": (EVERYTHING, NOON + HOUR)}))
    told = [(one.reference_id, one.amount_minor) for one in circle.heard(epb.InviteeQualified)]
    assert told == [("a", 1000), ("a", 700), ("b", 800)]
    assert not circle.heard(epb.InviteeRevoked)


def test_an_invite_is_masked_by_its_first_character_alone() -> None:
    circle = Circle()
    circle.do(CreateInvite, ANN, campaign_id="king", display_name="A")
    assert circle.profile().invites["king"].masked_name == "A**"
