"""Use cases inside the caller's transaction; none commits.

A batch of commands is *lock, fold, save*: everything it may depend on is locked and read at once, each
command folds over that state in the order of arrival, and what changed is written with a statement per
table. A command that is refused leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from services.chassis.clock import wall
from services.chassis.database import Connection
from services.chassis.ids import number_of
from services.points import store
from services.points.commands import (
    Adjust,
    CloseHold,
    Command,
    Earn,
    EarnFixed,
    Learn,
    Receive,
    RefundOrder,
    Returned,
    Reverse,
    Send,
    TakeBack,
)
from services.points.crediting import check_currency
from services.points.domain import verbs
from services.points.domain.earning import Scope
from services.points.domain.ledger import Gain, Member, Posting, new_member
from services.points.errors import (
    MemberUnknown,
    NoProgramme,
)
from services.points.folding import Answer, Fold
from services.points.rules import Programme, Programmes, Source
from services.points.steps import Scene
from services.points.store import Seen, Wanted


async def post(
    connection: Connection, commands: Sequence[Command], programmes: Programmes, epoch: int, at: datetime
) -> tuple[list[Answer], int]:
    """Applies commands of any members in order of arrival, at business time `at`.

    Answers each with its transaction, its error, or None (nothing to post: the event was applied before,
    waits for its cause, or was refused and that announced; or nothing was due), and says how many events
    went to the outbox.
    """
    seen = await store.lock(connection, _wanted(commands), at)
    scene = Scene(seen, await _versions(connection, programmes, seen), epoch, at)
    days = _days(commands, scene.programme, at)
    if days:
        seen.caps = await store.caps(connection, days)
    await _load_growth(connection, scene)
    fold = Fold(scene)
    answers = [fold.answer(command) for command in commands]
    received = wall()
    await store.save(connection, fold.changes(), received)
    await store.OUTBOX.add(connection, fold.announcements, received)
    return answers, len(fold.announcements)


async def _versions(connection: Connection, programmes: Programmes, seen: Seen) -> dict[int, Programme]:
    """The programme in force, and those under which what is refunded was earned."""
    earned = {seen.pasts[key].transaction.programme_version for key in seen.sold}
    versions = {seen.head, *earned} - {None}
    found = {version: await _programme(connection, programmes, version) for version in versions}
    return {version: programme for version, programme in found.items() if version and programme}


async def _load_growth(connection: Connection, scene: Scene) -> None:
    """Loads the growth that may change a tier: per day where one ends, else in all of today's window."""
    ladder = None if scene.programme is None else scene.programme.terms.ladder
    if ladder is None:
        return
    window = since = ladder.window(scene.terms.local_day(scene.at))
    ending: list[Member] = []
    climbing: list[Member] = []
    for member in scene.seen.members.values():
        if member.tier_until is not None and member.tier_until <= scene.at:
            ending.append(member)
            since = min(since, ladder.judged_since(member.tier_until))
        elif ladder.next_growth(member.tier) is not None:
            climbing.append(member)
    await store.load_growth(connection, ending, since)
    await store.sum_growth(connection, climbing, window)


async def programme_in_force(
    connection: Connection, programmes: Programmes, at: datetime
) -> Programme | None:
    """The version in force at `at`, read in this transaction, compiled at most once."""
    return await _programme(connection, programmes, await store.head_version(connection, at))


async def _programme(connection: Connection, programmes: Programmes, version: int | None) -> Programme | None:
    if version is None:
        return None
    programme = programmes.get(version)
    if programme is None:
        row = await store.programme(connection, version)
        assert row is not None  # noqa: S101 - versions are never deleted
        programme = programmes.keep(row["body"])
    return programme


def _days(commands: Sequence[Command], programme: Programme | None, at: datetime) -> set[tuple[str, date]]:
    """The members' local days on which something may count against a limit."""
    if programme is None:
        return set()
    day, capped = programme.terms.local_day, programme.has_daily_caps
    days: set[tuple[str, date]] = set()
    for command in commands:
        match command:
            case Earn(source=source) | Learn(source=Source() as source) if capped:
                days.add((command.member_id, day(command.occur_time or source.occur_time)))
            case Send():
                days.add((command.member_id, day(at)))
    return days


def _wanted(commands: Sequence[Command]) -> Wanted:
    wanted = Wanted()
    for command in commands:
        member = command.member_id
        wanted.requests.add((member, command.request_id))
        if command.event is not None:
            wanted.events.append(command.event)
        _want(wanted, command, member)
    return wanted


def _want(wanted: Wanted, command: Command, member: str) -> None:
    """What one command needs besides its own request: a credit makes its member, a debit loads the lots."""
    match command:
        case Learn(returned=Returned(activities=activities)):
            wanted.activities.update((member, activity) for activity in activities)
            wanted.captures.add(member)
        case Earn(source=source) | Learn(source=Source() as source):
            wanted.credits.add(member)
            kind = wanted.activities if source.scope is Scope.ACTIVITY else wanted.orders
            kind.add((member, source.id))
            return
        case EarnFixed() | Receive() | Learn():
            wanted.credits.add(member)
            return
        case Adjust(amount=amount) if amount > 0:
            wanted.credits.add(member)
            return
        case RefundOrder(order_id=order):
            wanted.orders.add((member, order))
            wanted.refunded.add((member, order))
        case CloseHold(hold_id=hold, placed_by=request, captured_by=captured):
            _want_by_id_or_request(wanted.holds, wanted, member, hold, request)
            if captured:
                _want_by_id_or_request(wanted.pasts, wanted, member, "", captured)
        case Reverse(transaction_id=transaction, made_by=request):
            _want_by_id_or_request(wanted.pasts, wanted, member, transaction, request)
        case TakeBack(transfer_id=transfer):
            wanted.pasts.add((member, number_of(transfer)))
    wanted.debits.add(member)
    if command.event is not None:
        wanted.credits.add(member)  # who asks by event is told by event, also of a member unknown till now


def _want_by_id_or_request(
    numbers: set[tuple[str, int]], wanted: Wanted, member: str, numbered: str, request: str
) -> None:
    if numbered:
        numbers.add((member, number_of(numbered)))
    else:
        wanted.requests.add((member, request))
        wanted.pasts_by_request.add((member, request))


async def quote(
    connection: Connection,
    member_id: str,
    source: Source,
    programmes: Programmes,
    *,
    occur_time: datetime | None,
    may_backdate: bool,
    at: datetime,
) -> tuple[Programme, list[Gain]]:
    """What an earn would give now; nothing is written."""
    occur = occur_time or source.occur_time
    verbs.check_occur_time(occur, at, may_backdate=may_backdate)
    programme = await programme_in_force(connection, programmes, at)
    if programme is None:
        raise NoProgramme
    check_currency(source, programme.terms)
    found = await store.read_members(connection, [member_id], at)
    member = found.get(member_id) or new_member(member_id)
    _fold_due(member, at, programme)
    today = (member_id, programme.terms.local_day(occur))
    used = (await store.caps(connection, [today])).get(today, {})
    gains = programme.gains(source, occur, member.tier, member.told(occur, at), used)
    verbs.earn(member, gains, programme.terms, occur)  # refuses what EarnPoints would refuse
    return programme, gains


async def balances(
    connection: Connection, member_ids: Sequence[str], programmes: Programmes, at: datetime
) -> list[Member | None]:
    """Members with transactions, as `known` sees them."""
    found = await known(connection, member_ids, programmes, at)
    posted = {member_id: member for member_id, member in found.items() if member.seq}
    return [posted.get(member_id) for member_id in member_ids]


async def known(
    connection: Connection, member_ids: Sequence[str], programmes: Programmes, at: datetime
) -> dict[str, Member]:
    """Members as of `at`: what is due is folded in, and nothing is written."""
    found = await store.read_members(connection, set(member_ids), at)
    programme = None
    if any(m.tier_until is not None and m.tier_until <= at for m in found.values()):
        programme = await programme_in_force(connection, programmes, at)
    for member in found.values():
        _fold_due(member, at, programme)
    return found


def _fold_due(member: Member, at: datetime, programme: Programme | None) -> None:
    terms = None if programme is None else programme.terms
    for _moment, fallen in verbs.due(member, at, terms):
        if isinstance(fallen, Posting):
            member.apply(fallen)


async def erase(connection: Connection, member_id: str, at: datetime) -> tuple[int, int, int]:
    """Removes a member's free text, sources and events. Raises MemberUnknown."""
    seen = await store.lock(connection, Wanted(debits={member_id}), at)
    notes, sources, announced, refused = await store.erase(connection, member_id)
    if member_id not in seen.members and not (announced or refused):
        raise MemberUnknown(member_id=member_id)
    return notes, sources, announced
