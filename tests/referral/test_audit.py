"""The audit closes on sound books, and finds and places each fault planted in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as groups
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as epb

from services.chassis import streams
from services.chassis.audit import STREAM_CHECK, Report
from services.chassis.clock import wall
from services.chassis.database import Database
from services.chassis.jobs import Jobs
from services.chassis.relay import Relay
from services.chassis.retention import OUTBOX_KEPT
from services.cli.servers import Nats, Postgres
from services.referral import events, store, tables
from services.referral.audit import CHECKS, FULFILLED_CHECK, audit
from services.referral.commands import RecordRewardPaid
from services.referral.domain.campaigns import Signal
from tests.referral.calls import points as some_points
from tests.referral.clockwork import Clockwork, make_database
from tests.support import TIMEOUT, fresh

SPRING: dict[str, Any] = {
    "campaign_id": "spring",
    "max_depth": 2,
    "currency_code": "CNY",
    "budget_minor": 100_000,
    "ladder": [
        {
            "step_id": "one",
            "at": 1,
            "reward": some_points(1_000, 100),
            "invitee_reward": {"card": {"plan_id": "king"}, "cost_minor": 50},
        },
        {"step_id": "three", "at": 3, "reward": {"group_entry": {"scheme_id": "vip"}, "cost_minor": 10}},
        {"step_id": "share", "each_from": 2, "reward": {"cash": {"share_basis_points": 500}}},
        {"step_id": "far", "depth": 2, "at": 1, "reward": some_points(50, 5)},
    ],
    "signal_limits": [{"signal": "SIGNAL_DEVICE", "limit": 1, "score": 50}],
    "review_score": 50,
    "auto_invite_scheme_id": "fans",
}
TIGHT: dict[str, Any] = {
    "campaign_id": "tight",
    "currency_code": "CNY",
    "budget_minor": 100,
    "ladder": [{"step_id": "each", "each_from": 1, "reward": some_points(10, 60)}],
}
MEMBERS = ("ann", "ben", "cem", "dan", "eve", "fay", "gus", "hal", "ivy", "jan", "kim", "leo")


class Books(NamedTuple):
    """Where the books are, for their service and for a superuser, and where their events went."""

    url: str
    server: Postgres
    nats: Nats

    @property
    def name(self) -> str:
        """Of the database."""
        return urlsplit(self.url).path.removeprefix("/")


@pytest.fixture(scope="module")
def books(referral_server: Postgres, data: Path) -> Iterator[Books]:
    """A club with some history, of all kinds."""
    with Nats.start(data / "nats") as nats:
        books = Books(make_database(referral_server), referral_server, nats)
        asyncio.run(_live(books))
        yield books


async def _live(books: Books) -> None:
    database = await Database.open(books.url, size=4, name="test")
    try:
        club = Clockwork(database)
        await club.put(**SPRING)
        await club.put(**TIGHT)
        await _bring(club)
        told = await _hand_over(club)
        await _undo(club)
        await _suspect(club)
        await _spend(club)
        await _extend(club)
        club.wait(days=31)  # somebody lapses, and what was not handed over is told again
        await club.work("settle")
        await club.hear()
        await _send(books, database, told)
    finally:
        await database.close()


async def _pay(club: Clockwork, *members: str) -> None:
    """Members pay, one after the other, and that brings what it brings."""
    for member in members:
        assert await club.tell(club.paid(member, f"order-{member}")) == [None]
        club.wait(seconds=1)
    await club.hear()
    await club.work("grant")


async def _bring(club: Clockwork) -> None:
    """Ann brings three and, by way of Ben, a fourth; somebody never pays."""
    spring = await club.put(**SPRING)
    await club.bring(spring, "ann", "ben", "cem", "dan")
    await club.bring(spring, "ben", "eve")
    await club.bring(spring, "eve", "fay")
    await _pay(club, "ben", "cem", "dan", "eve")
    where: dict[str, Any] = {"membership_id": "mbr_1", "group_id": "grp_1", "scheme_id": "fans"}
    joined = groups.MemberJoined(**club.head("ivy"), **where, membership_number=1)
    assert await club.tell(joined) == [None]


async def _hand_over(club: Clockwork) -> list[Message]:
    """Points and cards are handed over, a seat is not yet, a share is paid outside; one is refused."""
    told: list[Message] = []
    for member in ("ann", "ben", "eve"):
        for one in await club.granted(member):
            about: dict[str, Any] = {**club.head(member, 9), "reward_id": one.reward_id}
            match one.WhichOneof("reward"):
                case "points" if member == "ben":
                    refusal = points.FulfilmentRefused(**about, reason="BALANCE_LIMIT")
                    assert await club.tell(refusal) == [None]
                case "points":
                    told.append(points.RewardFulfilled(**about, transaction_id="txn_1"))
                case "card":
                    about |= {"card_id": "card_1", "plan_id": "king", "segment_id": "seg_1"}
                    told.append(cards.RewardFulfilled(**about))
                case "cash":
                    paid = {"reward_id": one.reward_id, "reference_id": "transfer-1"}
                    await club.do(RecordRewardPaid, member, **paid)
    assert await club.tell(*told) == [None] * len(told)
    return told


async def _undo(club: Clockwork) -> None:
    """An order is refunded: a rung is lost, and what it gave is taken back and returned."""
    assert await club.tell(club.refunded("dan", "order-dan")) == [None]
    await club.hear()
    await club.work("grant")
    assert await club.heard("ann", epb.RewardClawedBack)


async def _suspect(club: Clockwork) -> None:
    """Two came with the same device: of the second an operator has to judge."""
    invite = await club.invite(await club.put(**SPRING), "ann")
    for member in ("gus", "hal"):
        await club.club.bind(member, invite, signals={Signal.DEVICE: "d" * 64})
    await _pay(club, "gus", "hal")


async def _spend(club: Clockwork) -> None:
    """A budget that is enough for the first alone."""
    await club.bring(await club.put(**TIGHT), "jan", "kim", "leo")
    await _pay(club, "kim", "leo")
    assert await club.heard("tight", epb.BudgetExhausted)


async def _extend(club: Clockwork) -> None:
    """A rung more, that was reached before it was there."""
    rung = {"step_id": "two", "at": 2, "reward": some_points(10)}
    await club.put(**{**TIGHT, "ladder": [*TIGHT["ladder"], rung]})
    await club.work("recount")


async def _send(books: Books, database: Database, told: list[Message]) -> None:
    """Has a relay send what was announced; what others told is in their streams."""
    client = await streams.connect(books.nats.url, "test")
    relay = Relay(
        source="referral",
        database=database,
        jobs=Jobs(tables.jobs, "test"),
        client=client,
        tables=(tables.outbox, tables.stream_erasures),
        outbox=store.OUTBOX,
        owned={events.STREAM: events.SUBJECTS},
        replicas=1,
    )
    running = asyncio.create_task(relay.run())
    try:
        async with asyncio.timeout(3 * TIMEOUT), database.read() as connection:
            for service in ("points", "cards", "groups"):
                subjects = [f"loyalty.{service}.v1.>"]
                await streams.ensure_stream(client.jetstream(), service.upper(), subjects, 1)
            for message in told:
                await client.jetstream().publish(message.DESCRIPTOR.full_name, message.SerializeToString())
            while await connection.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await client.close()


# --- sound and unsound --------------------------------------------------------------------------------


async def test_sound_books_close(books: Books) -> None:
    report = await audit(books.url, stream_url=books.nats.url)
    assert report.clean, report.lines
    assert report.totals["members"] == len(MEMBERS)
    assert all(seen for _, seen, _ in report.lines)  # there was something to look at, of each kind


FAULTS = {
    "members: nobody's rows": "DELETE FROM members WHERE member_id = 'ann'",
    "members: a row that cannot be read": """ALTER TABLE attributions
        DROP CONSTRAINT attributions_verdict; UPDATE attributions SET verdict = 'FORGED'
        WHERE member_id = 'fay'""",
    "bonds: revoked by nothing": "UPDATE attributions SET status = 'REVOKED' WHERE member_id = 'ben'",
    "bonds: by no fact": "DELETE FROM facts WHERE member_id = 'cem'",
    "bonds: it was refunded": "UPDATE facts SET refunds = '{}' WHERE member_id = 'dan'",
    "bonds: of another length": """UPDATE attributions SET lapse_time = lapse_time + interval '1 hour'
        WHERE member_id = 'eve'""",
    "invitees: one that is revoked": "UPDATE invitees SET state = 'REVOKED' WHERE invitee_id = 'ben'",
    "invitees: worth something else": """UPDATE invitees SET amount_minor = 3001
        WHERE invitee_id = 'cem'""",
    "invitees: long unheard": """DELETE FROM invitees WHERE invitee_id = 'ben';
        UPDATE outbox SET create_time = create_time - interval '2 hours' WHERE entity_key = 'ben'""",
    "invitees: long behind": """UPDATE invitees SET told_version = 1 WHERE invitee_id = 'ben';
        UPDATE outbox SET create_time = create_time - interval '2 hours' WHERE entity_key = 'ben'""",
    "invitees: never told": "UPDATE invitees SET told_version = 9 WHERE invitee_id = 'eve'",
    "invitees: who counts twice": """INSERT INTO invitees SELECT (jsonb_populate_record(i,
        '{"attribution_id": "atr_0", "invitee_id": "nobody"}')).* FROM invitees i WHERE invitee_id = 'ben'""",
    "ladder: a new rung is not reached": "DELETE FROM steps WHERE step_id = 'two'",
    "ladder: never counted": "UPDATE invites SET ladder_version = 0 WHERE member_id = 'jan'",
    "ladder: a rung is gone": "DELETE FROM steps WHERE member_id = 'ann' AND step_id = 'one'",
    "ladder: a rung is lost": "UPDATE steps SET lost = true WHERE step_id = 'far'",
    "ladder: a lost rung stands": "UPDATE steps SET lost = false WHERE lost",
    "ladder: by somebody else": "UPDATE steps SET attribution_id = 'atr_0' WHERE step_id = 'one'",
    "rewards: one is gone": "DELETE FROM rewards WHERE role = 'INVITEE' AND member_id = 'ann'",
    "rewards: more than was said": "UPDATE rewards SET quantity = 1001 WHERE quantity = 1000",
    "rewards: another's": """UPDATE rewards SET reward_id = 'rwd_0' WHERE member_id = 'ann'
        AND step_id = 'far'""",
    "rewards: one stands on a lost rung": """UPDATE rewards SET status = 'FULFILLED', returned = false
        WHERE status = 'CLAWED_BACK' AND step_id = 'share'""",
    "ranks": "UPDATE ranks SET count = count + 1 WHERE member_id = 'ann'",
    "ranks: not ranked": "DELETE FROM ranks WHERE member_id = 'jan'",
    "budgets: more was granted": "UPDATE budgets SET granted_minor = granted_minor - 1",
    "budgets: never put": "UPDATE budgets SET budget_minor = 120 WHERE campaign_id = 'tight'",
    "budgets: beyond": """UPDATE rewards SET cost_minor = 101 WHERE campaign_id = 'tight'
        AND status = 'GRANTED'""",
    "budgets: none": "DELETE FROM budgets WHERE campaign_id = 'tight'",
    "claims: a code of nobody": "DELETE FROM codes WHERE member_id = 'jan'",
    "claims: another's code": "UPDATE codes SET member_id = 'kim' WHERE member_id = 'jan'",
    "claims: no pair": "DELETE FROM pairs WHERE greater_id = 'ben'",
    "claims: a pair of nobody": "INSERT INTO pairs VALUES ('spring', 'ann', 'zoe')",
    "reviews": "DELETE FROM reviews",
    "due: never": "UPDATE members SET next_due_time = NULL WHERE member_id = 'ann'",
    "due: at another time": """UPDATE members SET next_due_time = next_due_time + interval '1 second'
        WHERE member_id = 'ann'""",
    "events: the last is gone": """DELETE FROM outbox WHERE position =
        (SELECT max(position) FROM outbox WHERE entity_key = 'ben')""",
    "events: the first is gone": """DELETE FROM outbox WHERE position =
        (SELECT min(position) FROM outbox WHERE entity_key = 'ben')""",
    "events: of a reward": "UPDATE rewards SET version = version + 1 WHERE step_id = 'far'",
    "events: of a campaign": "UPDATE budgets SET version = version + 1 WHERE campaign_id = 'tight'",
    "events: of nothing": "DELETE FROM attributions WHERE member_id = 'cem'",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_planted_fault_is_found_and_placed(books: Books, fault: str) -> None:
    report = await _with_fault(books, FAULTS[fault])
    check = CHECKS[fault.partition(":")[0]]
    found = {meaning: offenders for meaning, _, offenders in report.lines if offenders}
    assert check in found, found
    whose = {offender.partition(":")[0].partition(" ")[0] for offender in found[check]}
    assert whose <= {*MEMBERS, "spring", "tight"}


async def test_events_that_are_not_in_the_stream_as_they_were_written_are_found(books: Books) -> None:
    forged = """UPDATE outbox SET body = body || '\\x7801'::bytea WHERE entity_key = 'cem'
        AND subject LIKE '%InviteeBound'; UPDATE outbox SET event_id = 'evt_0' WHERE entity_key = 'ivy'"""
    report = await _with_fault(books, forged, stream=True)
    (offenders,) = [found for meaning, _, found in report.lines if meaning == STREAM_CHECK]
    assert sorted(offender.partition(":")[0] for offender in offenders) == ["cem", "ivy"]


async def test_rewards_that_others_handed_over_are_fulfilled_and_no_others_are(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = """UPDATE rewards SET status = 'GRANTED', reference_id = '', end_time = NULL, fulfil_by = now()
        WHERE status = 'FULFILLED' AND role = 'INVITEE' AND receiver_id = 'ben'"""
    monkeypatch.setattr("services.referral.audit.LATE", timedelta())
    assert await _unfulfilled(books, forged) == ["ben"]

    async def nothing(*_: object) -> dict[str, datetime]:
        return {}

    monkeypatch.setattr("services.referral.audit._reported", nothing)
    assert await _unfulfilled(books, "SELECT") == ["ann", "ann", "ben", "eve"]


async def _unfulfilled(books: Books, sql: str) -> list[str]:
    """Whose rewards are said to be wrong."""
    report = await _with_fault(books, sql, stream=True)
    return sorted(
        offender.partition(":")[0]
        for meaning, _, offenders in report.lines
        if meaning == FULFILLED_CHECK
        for offender in offenders
    )


async def test_what_is_on_its_way_or_erased_is_no_fault(books: Books) -> None:
    erased = """DELETE FROM invitees WHERE invitee_id = 'hal'; UPDATE invitees SET told_version = 1,
        state = 'BOUND' WHERE invitee_id = 'fay'; UPDATE outbox SET erased = true, body = ''
        WHERE entity_key = 'ann' AND subject NOT LIKE '%Invitee%'"""
    report = await _with_fault(books, erased)
    assert report.clean, report.lines


async def test_what_is_kept_no_longer_is_no_fault(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.chassis.audit.wall", lambda: wall() + OUTBOX_KEPT)
    report = await _with_fault(books, "DELETE FROM outbox WHERE position % 2 = 0")
    assert report.clean, report.lines


async def _with_fault(books: Books, sql: str, *, stream: bool = False) -> Report:
    """Plants a fault in a copy of the database, as its superuser, and audits the copy."""
    copy = fresh("copy").replace("-", "_")
    admin = await asyncpg.connect(books.server.url())
    try:
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {books.name} STRATEGY file_copy")
        connection = await asyncpg.connect(books.server.url(copy))
        await connection.execute(sql)
        await connection.close()
        return await audit(books.server.url(copy), stream_url=books.nats.url if stream else None)
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        await admin.close()
