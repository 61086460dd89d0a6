"""One command, done to a working copy of its member: what it posts, announces and keeps beside the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from loyalty.orders.v1.orders_pb2 import Order

from services.chassis import outbox
from services.chassis.errors import ServiceError
from services.chassis.ids import number_of, numbered_id, own_request_id
from services.points import events
from services.points.commands import (
    Adjust,
    CloseHold,
    Command,
    Earn,
    EarnFixed,
    Learn,
    PlaceHold,
    Receive,
    Redeem,
    RefundOrder,
    Returned,
    Reverse,
    Send,
    TakeBack,
)
from services.points.domain import ledger, reversal, verbs
from services.points.domain.earning import Scope
from services.points.domain.ledger import (
    Account,
    Balances,
    Fact,
    Gain,
    Hold,
    HoldState,
    Member,
    Posting,
    Terms,
    Transaction,
    TransactionKind,
    Unit,
)
from services.points.domain.refunds import Refunded
from services.points.domain.reversal import Past
from services.points.domain.tiers import TierChange
from services.points.errors import (
    CurrencyMismatch,
    HoldUnknown,
    NoProgramme,
    NotReversible,
    OrderUnknown,
    ReversalExceedsTransaction,
    RewardTakenBack,
    TransactionUnknown,
    TransferLimit,
    TransfersNotAllowed,
    TransferToSelf,
)
from services.points.rules import Programme, Source, read_order, what_remains
from services.points.store import Entry, RefundRow, Seen, Sold

FIXED = "~fixed"  # names the contribution of an amount that no rule gave
SENT = "~sent"  # counts what a member sent on a day, beside the rules' daily caps


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


def check_currency(source: Source, terms: Terms) -> None:
    """An order earns in the programme's currency only. Raises CurrencyMismatch."""
    if source.currency_code is not None and source.currency_code != terms.currency_code:
        raise CurrencyMismatch(order=source.currency_code, programme=terms.currency_code)


class Step:
    """What one command does; all of it is dropped if the command is refused."""

    def __init__(self, scene: Scene, member: Member, command: Command, occur: datetime) -> None:
        self._scene = scene
        self._seen = scene.seen
        self._command = command
        self._occur = occur
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
        scene, member = self._scene, self.member
        terms = None if scene.programme is None else scene.programme.terms
        for moment, fallen in verbs.due(member, scene.at, terms):
            match fallen:
                case Posting():
                    self._post_own(fallen, moment)
                case TierChange():
                    self._announce(events.tier_changed, fallen, moment)
                case notice:
                    self._announce(events.points_expiring, notice, moment)

    def run(self) -> Transaction | None:
        """Does what the command asks. Raises its refusal."""
        command, member, at = self._command, self.member, self._scene.at
        match command:
            case Earn(source=source):
                return self._earn(source)
            case EarnFixed():
                return self._earn_fixed(command)
            case Redeem():
                return self._post(verbs.redeem(member, command.amount), reference_id=command.reference_id)
            case Adjust():
                posting = verbs.adjust(member, command.unit, command.amount, self._scene.terms, self._occur)
                return self._post(posting, note=command.reason)
            case PlaceHold():
                posting = verbs.hold(member, command.amount, command.reference_id, command.expire_time, at)
                return self._post(posting, reference_id=command.reference_id)
            case CloseHold():
                return self._close_hold(command)
            case RefundOrder():
                return self._refund(command)
            case Reverse():
                return self._reverse(command)
            case Send():
                return self._send(command)
            case Receive():
                return self._post(verbs.receive(member, command.parts, at), reference_id=command.transfer_id)
            case TakeBack():
                return self._take_back(command)
            case Learn():
                return self._learn(command)
        return self.entries[-1].transaction if self.entries else None

    def refuse(self, reason: str) -> bool:
        """Announces that the command was refused; False where its asker hears of it otherwise."""
        match self._command:
            case PlaceHold(reference_id=reference, amount=amount):
                self._announce(events.hold_refused, (reference, amount, reason), self._occur)
            case EarnFixed(reward_id=reward) if reward:
                self._announce(events.fulfilment_refused, (reward, reason), self._occur)
            case Receive(transfer_id=transfer, from_member_id=sender):
                self._announce(events.transfer_refused, (transfer, sender, reason), self._occur)
            case _:
                return False
        return True

    # --- earning --------------------------------------------------------------------------------------

    def _earn(self, source: Source) -> Transaction:
        programme, member = self._scene.require_programme(), self.member
        terms = programme.terms
        check_currency(source, terms)
        day = terms.local_day(self._occur)
        used = self._seen.caps.get((member.member_id, day), {})
        facts = member.told(self._occur, self._scene.at)
        gains = programme.gains(source, self._occur, member.tier, facts, used)
        posting = verbs.earn(member, gains, terms, self._occur)
        for gain in gains:
            if gain.counts_against_day and gain.amount:
                self.caps[gain.rule_id, day] = gain.amount
        if source.scope is Scope.ACTIVITY:
            transaction = self._post(
                posting, source=source, activity_id=source.id, reference_id=source.reference_id
            )
            self._seen.activities[member.member_id, source.id] = (transaction, source.body_hash)
            return transaction
        sold = Sold(source.body, member.tier, facts, dict(used), source.basis.total)
        transaction = self._post(posting, source=source, sold=sold, order_id=source.id)
        self._seen.orders[member.member_id, source.id] = (transaction, source.body_hash)
        self._seen.sold[member.member_id, transaction.seq] = sold
        if member.waiting:
            self.settle()  # what an order from long ago earned may be due, or gone
            self._apply_waiting(source.id)
        return transaction

    def _earn_fixed(self, command: EarnFixed) -> Transaction:
        remembered = self.member.remembered(self._scene.at)
        if command.reward_id and _never_given(command.request_id) in remembered:
            raise RewardTakenBack
        gain = Gain(FIXED, command.unit, command.amount)
        posting = verbs.earn(self.member, [gain], self._scene.terms, self._occur)
        transaction = self._post(posting, note=command.reason, reference_id=command.reward_id)
        if command.reward_id:
            done = (command.reward_id, transaction.transaction_id)
            self._announce(events.reward_fulfilled, done, self._occur)
        return transaction

    # --- holds ----------------------------------------------------------------------------------------

    def _close_hold(self, command: CloseHold) -> Transaction | None:
        seq = number_of(command.hold_id) if command.hold_id else 0
        if command.placed_by:
            placed = self._seen.requests.get((command.member_id, command.placed_by))
            seq = placed.seq if placed is not None else 0
        held = next((hold for hold in self.member.holds if hold.seq == seq), None)
        if command.placed_by and command.capture is None and (held is None or held.state in _LET_GO):
            return None  # who releases by event cannot know that it was refused, or that it lapsed
        if held is None or command.hold_id not in ("", held.hold_id):
            raise HoldUnknown(hold_id=command.hold_id)
        if command.capture is None:
            return self._post(verbs.release(self.member, held, self._scene.at), reference_id=held.hold_id)
        postings = verbs.capture(self.member, held, command.capture, self._scene.at)
        captured = self._post(next(postings), reference_id=held.hold_id)
        for rest in postings:
            self._post_own(rest, self._occur)
        return captured

    # --- refunds --------------------------------------------------------------------------------------

    def _refund(self, command: RefundOrder) -> Transaction | None:
        key = (command.member_id, command.order_id)
        row = RefundRow(
            command.member_id,
            command.order_id,
            command.refund_id,
            command.body_hash,
            command.refund,
            self._occur,
        )
        rows = self._seen.refunds.setdefault(key, [])
        if key in self._seen.orders:
            posting = self._refund_posting(row)
            transaction = self._post(
                posting, order_id=command.order_id, reference_id=command.refund_id, undoes=self._earn_of(row)
            )
            row.seq = transaction.seq
        elif command.event is None:
            raise OrderUnknown(order_id=command.order_id)
        elif any(known.refund_id == command.refund_id for known in rows):
            return None  # it waits already
        else:
            row.event, row.body, transaction = command.event, command.body, None
            self.member.waiting += 1
        rows.append(row)
        self.rows.append(row)
        return transaction

    def _apply_waiting(self, order_id: str) -> None:
        """Applies the refunds that came before their order; one that it cannot bear becomes a dead letter."""
        rows = self._seen.refunds.get((self.member.member_id, order_id), [])
        for row in sorted(rows, key=lambda row: (row.refund_time, row.refund_id)):
            if row.seq is not None:
                continue
            self.member.waiting -= 1
            try:
                posting = self._refund_posting(row)
            except ServiceError as refusal:
                rows.remove(row)
                self.refused.append((row, refusal))
                continue
            request_id = own_request_id(events.ORDER_REFUNDED, order_id, row.refund_id)
            transaction = self._post_own(
                posting,
                row.refund_time,
                request_id=request_id,
                payload_hash=row.body_hash,
                order_id=order_id,
                reference_id=row.refund_id,
                undoes=self._earn_of(row),
            )
            self._seen.requests[row.member_id, request_id] = transaction
            row.seq, row.body = transaction.seq, None
            self.rows.append(row)

    def _earn_of(self, row: RefundRow) -> Past:
        return self._seen.pasts[row.member_id, self._seen.orders[row.member_id, row.order_id][0].seq]

    def _refund_posting(self, row: RefundRow) -> Posting:
        past = self._earn_of(row)
        sold = self._seen.sold[row.member_id, past.transaction.seq]
        order = None if sold.body is None else Order.FromString(sold.body)
        state = Refunded()
        lines = None if order is None else {line.line_id: line.amount_minor for line in order.lines}
        known = self._seen.refunds.get((row.member_id, row.order_id), ())
        applied = [(each.seq, each.refund) for each in known if each.seq is not None]
        # In the order in which they came: one may have been of all that was left.
        for _, refund in sorted(applied, key=lambda each: each[0]):
            state = state.plus(refund, dict.fromkeys(refund.lines, sold.total), sold.total)
        state = state.plus(row.refund, lines, sold.total)
        targets = self._worth(past.transaction, sold, order, state)
        posting = reversal.refund(self.member, past, targets, self._scene.terms, self._scene.at)
        posting.programme_version = self._scene.terms.version
        return posting

    def _worth(
        self, earn: Transaction, sold: Sold, order: Order | None, refunded: Refunded
    ) -> dict[Unit, int]:
        """What all refunds together take back: what was earned less what the rest of the order would earn."""
        earned = dict.fromkeys(Unit, 0)
        for gain in earn.contributions:
            earned[gain.unit] += gain.amount
        kept = dict.fromkeys(Unit, 0)
        if order is None:  # erased: its lines are not known any more, so in proportion
            unpaid = 0 if refunded.nothing_left(sold.total) else sold.total - refunded.total
            kept = {unit: amount * unpaid // max(sold.total, 1) for unit, amount in earned.items()}
        else:
            rest = what_remains(read_order(order), refunded)
            if rest is not None:
                programme = self._scene.programmes[earn.programme_version]
                for left in programme.gains(rest, earn.occur_time, sold.tier, sold.facts, sold.used):
                    kept[left.unit] += left.amount
        return {unit: amount - min(amount, kept[unit]) for unit, amount in earned.items()}

    # --- reversals ------------------------------------------------------------------------------------

    def _reverse(self, command: Reverse) -> Transaction | None:
        if command.made_by and (command.member_id, command.made_by) not in self._seen.requests:
            # What an event takes back was not given yet: two replicas may hear of it the other way round.
            at = self._scene.at
            self.member.facts = self.member.remembered(at) | {
                _never_given(command.made_by): Fact("", "", at, at, 0, 0)
            }
            self.told = True
            return None
        past = self._past(command.transaction_id, command.made_by)
        if past.transaction.kind is TransactionKind.SEND:  # its receiver may have it already
            raise NotReversible(
                transaction_id=past.transaction.transaction_id, kind=past.transaction.kind.value
            )
        return self._undo(past, command.amounts)

    def _give_back(self, returned: Returned) -> Transaction:
        """Gives points back to the lots that what is returned had spent; the answer is its first part.

        What pays it is known by what was earned on it. It may have cost more: the worth of what it took the
        place of, which had spent its points before. So what is missing comes of the captures before, or of
        any other, newest first: all that comes back was spent by such.
        """
        left, parts = returned.amount, list[Transaction]()
        for past in self._captures(returned):
            amount = min(left, past.left(Unit.POINTS))
            if not amount:
                continue
            # The first part has the command's own request_id, by which a repeat is known.
            own = own_request_id(self._command.request_id, past.transaction.transaction_id) if parts else ""
            amounts = {Unit.POINTS: amount}
            parts.append(self._undo(past, amounts, request_id=own, reference_id=returned.for_id))
            left -= amount
        if left:
            there = returned.amount - left
            raise ReversalExceedsTransaction(unit=Unit.POINTS.value, left=there, requested=returned.amount)
        return parts[0]

    def _captures(self, returned: Returned) -> list[Past]:
        """What events had spent: first for what is returned, then for all else, newest first each."""
        member_id = self.member.member_id
        earned = (self._seen.activities.get((member_id, activity)) for activity in returned.activities)
        bought = {bonus.reference_id for bonus, _ in filter(None, earned)} - {""}
        holds = {hold.hold_id for hold in self.member.holds if hold.reference_id in bought}
        captures = [
            past
            for (whose, _), past in self._seen.pasts.items()
            if whose == member_id and past.transaction.kind is TransactionKind.CAPTURE
        ]
        return sorted(
            (past for past in captures if past.transaction.request_id.startswith("~")),
            key=lambda past: (past.transaction.reference_id in holds, past.transaction.seq),
            reverse=True,
        )

    def _past(self, transaction_id: str, made_by: str = "") -> Past:
        key = (self.member.member_id, number_of(transaction_id) if transaction_id else 0)
        if made_by:
            made = self._seen.requests.get((self.member.member_id, made_by))
            key = (self.member.member_id, made.seq if made is not None else 0)
        past = self._seen.pasts.get(key)
        if past is None or transaction_id not in ("", past.transaction.transaction_id):
            raise TransactionUnknown(transaction_id=transaction_id)
        return past

    def _undo(self, past: Past, amounts: Mapping[Unit, int], **fields: Any) -> Transaction:
        posting = reversal.reverse(self.member, past, amounts, self._scene.terms, self._scene.at)
        posting.programme_version = self._scene.terms.version
        return self._post(posting, undoes=past, **fields)

    # --- between members ------------------------------------------------------------------------------

    def _send(self, command: Send) -> Transaction:
        terms = self._scene.terms
        if command.to_member_id == command.member_id:
            raise TransferToSelf
        if not terms.transfers_per_day:
            raise TransfersNotAllowed
        day = terms.local_day(self._scene.at)
        sent = self._seen.caps.get((command.member_id, day), {}).get(SENT, 0)
        if sent + command.amount > terms.transfers_per_day:
            raise TransferLimit(left=max(0, terms.transfers_per_day - sent), requested=command.amount)
        posting = verbs.send(self.member, command.amount)
        posting.programme_version = terms.version
        parts = [(amount, self.member.lot(name).expires_at) for name, amount in posting.uses.items()]
        transaction = self._post(posting, reference_id=command.to_member_id)
        self.caps[SENT, day] = command.amount
        departure = (transaction.transaction_id, command.to_member_id, parts)
        self._announce(events.transfer_sent, departure, self._occur)
        return transaction

    def _take_back(self, command: TakeBack) -> Transaction:
        transaction = self._undo(self._past(command.transfer_id), {})
        returned = (command.transfer_id, command.to_member_id, transaction.transaction_id)
        self._announce(events.transfer_returned, returned, self._occur)
        return transaction

    # --- what other services tell ---------------------------------------------------------------------

    def _learn(self, command: Learn) -> Transaction | None:
        member = self.member
        remembered = member.remembered(self._scene.at)
        newer: dict[str, Fact] = {}
        for about, fact in command.facts.items():
            known = remembered.get(about)
            state = fact if known is None else known.with_(fact)
            if state != known:
                newer[about] = state
        if newer:
            member.facts = remembered | newer
            self.told = True
        if command.returned is not None:
            return self._give_back(command.returned)
        source = command.source
        if source is None or self._scene.programme is None:
            return None
        earned = self._seen.activities.get((member.member_id, source.id))
        return self._earn(source) if earned is None else None

    # --- posting --------------------------------------------------------------------------------------

    def _post(
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
        command = self._command
        own = request_id or command.request_id
        draft = self._draft(own, command.payload_hash, command.actor, self._occur, **fields)
        entry = Entry(draft, note=note, sold=sold)
        if source is not None:
            entry.source, entry.source_hash = source.body, source.body_hash
        self._complete(posting, entry, undoes)
        self._seen.requests[command.member_id, own] = draft
        self._promote()
        return draft

    def _post_own(
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
            create_time=self._scene.at,
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
        past = self._seen.pasts[member.member_id, draft.seq] = Past(draft, posting.uses)
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
            self._count_growth(posting.growth_day or self._scene.terms.local_day(draft.occur_time), growth)
        self.events.append(
            events.points_posted(draft, self._scene.epoch, member.version, self._command.traceparent)
        )
        if posting.hold is not None:
            self.holds = [hold for hold in self.holds if hold.seq != posting.hold.seq] + [posting.hold]
            self._announce(events.HOLD_EVENTS[posting.kind], (posting.hold, draft), draft.occur_time)

    def _count_growth(self, day: date, amount: int) -> None:
        self.growth[day] = self.growth.get(day, 0) + amount
        if self.member.growth_days is not None:
            self.member.growth_days[day] = self.member.growth_days.get(day, 0) + amount

    def _promote(self) -> None:
        """Gives the member the tier that its growth has reached."""
        programme, member = self._scene.programme, self.member
        ladder = None if programme is None else programme.terms.ladder
        if ladder is None:
            return
        takes, growth = ladder.next_growth(member.tier), member.balances[Account.GROWTH]
        if takes is None or growth < takes:
            return
        assert member.growth_days is not None  # noqa: S101 - loaded below the highest rung
        change = ladder.promotion(
            member.tier, growth, member.growth_days, self._scene.terms.local_day(self._scene.at)
        )
        if change is not None:
            verbs.change_tier(member, change)
            self._announce(events.tier_changed, change, self._scene.at)

    def _announce(self, make: events.Make, what: Any, occur: datetime) -> None:
        """Announces something besides a transaction; each event about the member has a version of its own."""
        self.member.version += 1
        about = events.About(
            self.member.member_id, occur, self._scene.epoch, self.member.version, self._command.traceparent
        )
        self.events.append(make(about, what))


_NOTHING = Balances()
_LET_GO = (HoldState.RELEASED, HoldState.EXPIRED)


def _never_given(request_id: str) -> str:
    """Among a member's facts: what was asked for with this request is not to be given any more."""
    return f"never/{request_id}"
