"""One command, done to a working copy of its member: what it posts, announces and keeps beside the ledger.

What can be done is functions over a `Step`, by command (`folding.HANDLERS`): `crediting`, `spending`, and
`undoing` both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from services.chassis import outbox
from services.chassis.errors import ServiceError
from services.chassis.ids import numbered_id, own_request_id
from services.points import events
from services.points.commands import Command, Earn, EarnFixed, Learn, PlaceHold, Receive
from services.points.domain import ledger, verbs
from services.points.domain.ledger import (
    Account,
    Balances,
    Hold,
    Member,
    Posting,
    Terms,
    Transaction,
    TransactionKind,
)
from services.points.domain.reversal import Past
from services.points.domain.tiers import TierChange
from services.points.errors import NoProgramme
from services.points.rules import Programme, Source
from services.points.store import Entry, RefundRow, Seen, Sold


@dataclass(slots=True)
class Scene:
    """What the commands of a batch see: the locked state, the time, and the programme.

    `programmes` are the versions in force now and when what is refunded was earned.
    """

    seen: Seen
    programmes: Mapping[int, Programme]
    epoch: int
    at: datetime

    @property
    def programme(self) -> Programme | None:
        """The programme in force."""
        return None if self.seen.head is None else self.programmes[self.seen.head]

    def require_programme(self) -> Programme:
        """The programme in force. Raises NoProgramme."""
        if self.programme is None:
            raise NoProgramme
        return self.programme

    @property
    def terms(self) -> Terms:
        """The terms in force. Raises NoProgramme."""
        return self.require_programme().terms

    def occur_time(self, command: Command) -> datetime:
        """When what a command tells happened. Raises OccurTimeAhead, BackdatingNeedsAdmin."""
        stated = command.occur_time
        if stated is None:
            source = command.source if isinstance(command, Earn | Learn) else None
            stated = self.at if source is None else source.occur_time
        verbs.check_occur_time(stated, self.at, may_backdate=command.may_backdate)
        return stated


class Step:
    """What one command does; all of it is dropped if the command is refused."""

    def __init__(self, scene: Scene, member: Member, command: Command, occur: datetime) -> None:
        self.scene = scene
        self.seen = scene.seen
        self.command = command
        self.occur = occur
        self.member = member.copy()
        self.entries: list[Entry] = []
        self.events: list[outbox.Event] = []
        self.touched: set[tuple[int, int]] = set()
        self.holds: list[Hold] = []
        self.rows: list[RefundRow] = []
        self.refused: list[tuple[RefundRow, ServiceError]] = []
        self.caps: dict[tuple[str, date], int] = {}
        self.growth: dict[date, int] = {}
        self.told = False

    def settle(self) -> None:
        """Posts what has fallen due."""
        scene, member = self.scene, self.member
        terms = None if scene.programme is None else scene.programme.terms
        for moment, fallen in verbs.due(member, scene.at, terms):
            match fallen:
                case Posting():
                    self.post_own(fallen, moment)
                case TierChange():
                    self.announce(events.tier_changed, fallen, moment)
                case notice:
                    self.announce(events.points_expiring, notice, moment)

    def refuse(self, reason: str) -> bool:
        """Announces that the command was refused; False where its asker hears of it otherwise."""
        match self.command:
            case PlaceHold(reference_id=reference, amount=amount):
                self.announce(events.hold_refused, (reference, amount, reason), self.occur)
            case EarnFixed(reward_id=reward) if reward:
                self.announce(events.fulfilment_refused, (reward, reason), self.occur)
            case Receive(transfer_id=transfer, from_member_id=sender):
                self.announce(events.transfer_refused, (transfer, sender, reason), self.occur)
            case _:
                return False
        return True

    # --- posting --------------------------------------------------------------------------------------

    def post(
        self,
        posting: Posting,
        *,
        source: Source | None = None,
        sold: Sold | None = None,
        note: str = "",
        undoes: Past | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> Transaction:
        """Posts what the command itself does; what it does besides has a request_id of its own."""
        command = self.command
        own = request_id or command.request_id
        draft = self._draft(own, command.payload_hash, command.actor, self.occur, **fields)
        entry = Entry(draft, note=note, sold=sold)
        if source is not None:
            entry.source, entry.source_hash = source.body, source.body_hash
        self._complete(posting, entry, undoes)
        self.seen.requests[command.member_id, own] = draft
        self._promote()
        return draft

    def post_own(
        self,
        posting: Posting,
        moment: datetime,
        *,
        request_id: str = "",
        payload_hash: bytes = b"",
        undoes: Past | None = None,
        **fields: Any,
    ) -> Transaction:
        """Posts what nobody asked for: it fell due, or follows from what was asked."""
        names: Sequence[object] = sorted({*posting.uses, *(lot.name for lot in posting.matured)})
        if posting.hold is not None:
            fields["reference_id"], names = posting.hold.hold_id, [posting.hold.hold_id]
        own = request_id or own_request_id(posting.kind, moment.isoformat(), repr(names))
        draft = self._draft(own, payload_hash, "due", moment, **fields)
        self._complete(posting, Entry(draft), undoes)
        return draft

    def _draft(
        self, request_id: str, payload_hash: bytes, actor: str, occur: datetime, **fields: Any
    ) -> Transaction:
        draft = Transaction(
            transaction_id=numbered_id("txn", self.member.seq + 1),
            member_id=self.member.member_id,
            kind=TransactionKind.EARN,
            request_id=request_id,
            payload_hash=payload_hash,
            order_id="",
            activity_id="",
            reference_id="",
            reverses_transaction_id="",
            occur_time=occur,
            create_time=self.scene.at,
            programme_version=0,
            seq=0,
            transfers=(),
            contributions=(),
            balance=_NOTHING,
            actor=actor,
        )
        for name, value in fields.items():
            setattr(draft, name, value)
        return draft

    def _complete(self, posting: Posting, entry: Entry, undoes: Past | None = None) -> None:
        """Applies a posting, and keeps what later commands and the database need of it."""
        member, draft = self.member, entry.transaction
        if undoes is not None:
            draft.reverses_transaction_id = undoes.transaction.transaction_id
        if posting.kind is TransactionKind.HOLD and posting.hold is not None:
            posting.hold.hold_id = events.hold_id_of(draft.transaction_id)
        ledger.post(member, posting, draft)
        past = self.seen.pasts[member.member_id, draft.seq] = Past(draft, posting.uses)
        if undoes is not None:
            undoes.reversals.append(past)
        entry.uses = posting.uses
        self.entries.append(entry)
        self.touched.update(posting.uses, posting.pins, posting.expired)
        self.touched.update(lot.name for lot in (*posting.lots, *posting.matured))
        growth = sum(
            m.amount if m.credit is Account.GROWTH else -m.amount
            for m in posting.transfers
            if Account.GROWTH in (m.debit, m.credit)
        )
        if growth:
            self._count_growth(posting.growth_day or self.scene.terms.local_day(draft.occur_time), growth)
        self.events.append(
            events.points_posted(draft, self.scene.epoch, member.version, self.command.traceparent)
        )
        if posting.hold is not None:
            self.holds = [hold for hold in self.holds if hold.seq != posting.hold.seq] + [posting.hold]
            self.announce(events.HOLD_EVENTS[posting.kind], (posting.hold, draft), draft.occur_time)

    def _count_growth(self, day: date, amount: int) -> None:
        self.growth[day] = self.growth.get(day, 0) + amount
        if self.member.growth_days is not None:
            self.member.growth_days[day] = self.member.growth_days.get(day, 0) + amount

    def _promote(self) -> None:
        """Gives the member the tier that its growth has reached."""
        programme, member = self.scene.programme, self.member
        ladder = None if programme is None else programme.terms.ladder
        if ladder is None:
            return
        takes, growth = ladder.next_growth(member.tier), member.balances[Account.GROWTH]
        if takes is None or growth < takes:
            return
        assert member.growth_days is not None  # noqa: S101 - loaded below the highest rung
        change = ladder.promotion(
            member.tier, growth, member.growth_days, self.scene.terms.local_day(self.scene.at)
        )
        if change is not None:
            verbs.change_tier(member, change)
            self.announce(events.tier_changed, change, self.scene.at)

    def announce(self, make: outbox.Make, what: Any, occur: datetime) -> None:
        """Announces something besides a transaction; each event about the member has a version of its own."""
        self.member.version += 1
        about = outbox.About(
            self.member.member_id, occur, self.scene.epoch, self.member.version, self.command.traceparent
        )
        self.events.append(make(about, what))


_NOTHING = Balances()
