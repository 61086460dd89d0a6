"""What gives points: orders, activities, amounts that somebody decided, transfers; and what others tell."""

from __future__ import annotations

from services.points import events, undoing
from services.points.commands import Adjust, EarnFixed, Learn, Receive
from services.points.domain import verbs
from services.points.domain.earning import Scope
from services.points.domain.ledger import Fact, Gain, Terms, Transaction
from services.points.errors import CurrencyMismatch, RewardTakenBack
from services.points.rules import Source
from services.points.steps import Step
from services.points.store import Sold

FIXED = "~fixed"  # names the contribution of an amount that no rule gave


def check_currency(source: Source, terms: Terms) -> None:
    """An order earns in the programme's currency only. Raises CurrencyMismatch."""
    if source.currency_code is not None and source.currency_code != terms.currency_code:
        raise CurrencyMismatch(order=source.currency_code, programme=terms.currency_code)


def earn(step: Step, source: Source) -> Transaction:
    """Credits what the rules give. Raises NoProgramme, CurrencyMismatch, BalanceLimit."""
    programme, member = step.scene.require_programme(), step.member
    terms = programme.terms
    check_currency(source, terms)
    day = terms.local_day(step.occur)
    used = step.seen.caps.get((member.member_id, day), {})
    facts = member.told(step.occur, step.scene.at)
    gains = programme.gains(source, step.occur, member.tier, facts, used)
    posting = verbs.earn(member, gains, terms, step.occur)
    for gain in gains:
        if gain.counts_against_day and gain.amount:
            step.caps[gain.rule_id, day] = gain.amount
    if source.scope is Scope.ACTIVITY:
        transaction = step.post(
            posting, source=source, activity_id=source.id, reference_id=source.reference_id
        )
        step.seen.activities[member.member_id, source.id] = (transaction, source.body_hash)
        return transaction
    sold = Sold(source.body, member.tier, facts, dict(used), source.basis.total)
    transaction = step.post(posting, source=source, sold=sold, order_id=source.id)
    step.seen.orders[member.member_id, source.id] = (transaction, source.body_hash)
    step.seen.sold[member.member_id, transaction.seq] = sold
    if member.waiting:
        step.settle()  # what an order from long ago earned may be due, or gone
        undoing.apply_waiting(step, source.id)
    return transaction


def earn_fixed(step: Step, command: EarnFixed) -> Transaction:
    """Credits an amount. Raises RewardTakenBack, NoProgramme, BalanceLimit."""
    remembered = step.member.remembered(step.scene.at)
    if command.reward_id and undoing.never_given(command.request_id) in remembered:
        raise RewardTakenBack
    gain = Gain(FIXED, command.unit, command.amount)
    posting = verbs.earn(step.member, [gain], step.scene.terms, step.occur)
    transaction = step.post(posting, note=command.reason, reference_id=command.reward_id)
    if command.reward_id:
        done = (command.reward_id, transaction.transaction_id)
        step.announce(events.reward_fulfilled, done, step.occur)
    return transaction


def adjust(step: Step, command: Adjust) -> Transaction:
    """Corrects a balance, up or down. Raises NoProgramme, and what `verbs.adjust` raises."""
    posting = verbs.adjust(step.member, command.unit, command.amount, step.scene.terms, step.occur)
    return step.post(posting, note=command.reason)


def receive(step: Step, command: Receive) -> Transaction:
    """Credits points that another member sent. Raises BalanceLimit."""
    posting = verbs.receive(step.member, command.parts, step.scene.at)
    return step.post(posting, reference_id=command.transfer_id)


def learn(step: Step, command: Learn) -> Transaction | None:
    """Notes what another service told, unless newer is known, and does what follows from it.

    Raises what `earn` and `undoing.give_back` raise.
    """
    member = step.member
    remembered = member.remembered(step.scene.at)
    newer: dict[str, Fact] = {}
    for about, fact in command.facts.items():
        known = remembered.get(about)
        state = fact if known is None else known.with_(fact)
        if state != known:
            newer[about] = state
    if newer:
        member.facts = remembered | newer
        step.told = True
    if command.returned is not None:
        return undoing.give_back(step, command.returned)
    source = command.source
    if source is None or step.scene.programme is None:
        return None
    earned = step.seen.activities.get((member.member_id, source.id))
    return earn(step, source) if earned is None else None
