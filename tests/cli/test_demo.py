"""The stories of `loyalty demo`, without its month, in a house of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from services.chassis.audit import Report
from services.cli import demo
from services.cli.demo import Played, Proof
from services.cli.house import SERVICES
from services.cli.replay import Outcome
from services.cli.stories import Scene, Stage, cards, groups, points, referral, stage
from tests.conftest import OpenHouse
from tests.support import defects, delivered

MONTH_END = datetime(2017, 1, 31, 23, 59, 59, tzinfo=ZoneInfo("Asia/Shanghai"))
TOLD = Scene("as it should", ("1", "2"), ("1", "2"))
NOTHING = Played(Outcome(), Outcome(), 0, [TOLD], [TOLD], [TOLD], [TOLD])


@pytest.fixture
def on(data: Path, open_house: OpenHouse) -> Iterator[Stage]:
    """A house at the end of the month, with what is delivered in force and on sale."""
    said = delivered("burger-king")
    with (
        open_house(data, SERVICES, test_clock=MONTH_END) as house,
        stage(house) as on,
    ):
        demo.put_programme(on, demo.with_stories(said["points"]))
        demo.put_products(on, said["cards"]["products"])
        yield on


def test_the_stories_come_out_as_they_are_told_and_are_proved_and_heard(on: Stage) -> None:
    ann = list(points.checkout(on))
    ben = list(cards.play(on))
    chain, bank = (delivered(name) for name in ("burger-king", "china-merchants-bank"))
    cleo_and_dora = list(groups.play(on, chain["groups"], bank["groups"]))
    emma_and_felix = list(referral.play(on, chain, bank))
    ann += points.a_year_later(on)
    played = Played(Outcome(), Outcome(), 0, ann, ben, cleo_and_dora, emma_and_felix)
    assert [str(scene) for scene in played.scenes if not scene.right] == []
    proofs = demo.prove(Console(quiet=True), on.house)
    assert demo.faults(played, proofs) == []
    assert min(proof.written for proof in proofs.values()) > 0
    heard = {type(event).__name__ for event in proofs["cards"].heard}
    assert heard >= {
        "CardOrdered",
        "CardActivated",
        "BenefitUsed",
        "CardExpired",
        "CardRefunded",
        "RefundDue",
    }
    heard = {type(event).__name__ for event in proofs["groups"].heard}
    assert heard >= {
        "MemberAssigned",
        "MemberJoined",
        "MemberLeft",
        "MemberMoved",
        "SeatLapsed",
        "GroupFull",
        "GroupDissolved",
        "BenefitDue",
        "TagsChanged",
        "EntryOffered",
    }
    heard = {type(event).__name__ for event in proofs["referral"].heard}
    assert heard >= {
        "InviteCreated",
        "InviteeBound",
        "InviteeQualified",
        "InviteeRevoked",
        "InviteeDropped",
        "StepReached",
        "RewardGranted",
        "RewardFulfilled",
        "RewardClawedBack",
    }
    assert not defects(on.house)


def test_whatever_is_not_as_it_should_be_is_told() -> None:
    clean = Proof(Report([("books close", 3, [])]), [], 1, ["event"])
    assert demo.faults(NOTHING, {"cards": clean}) == []
    wrong = Scene("otherwise", ("1", "2"), ("1", "3"))
    played = Played(
        Outcome(differences=["a difference"]), Outcome(new_transactions=2), 0, [TOLD], [TOLD], [TOLD], [wrong]
    )
    proof = Proof(Report([("books close", 3, ["an offender"])]), ["dead_1"], 2, ["event"])
    assert demo.faults(played, {"cards": proof}) == [
        "a difference",
        "the second replay made 2 new transactions",
        "otherwise: 1 | 2, expected 1 | 3",
        "cards: an offender",
        "cards: dead letter dead_1",
        "cards: 1 events arrived of 2",
    ]
