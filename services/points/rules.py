"""The programme as it is put, compiled; orders and activities as facts; conditions evaluated.

The only place that knows both CEL and the rules: it hands plain facts to `domain`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from loyalty.activities.v1.activities_pb2 import Activity
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.orders.v1.orders_pb2 import Refund as RefundMessage
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis import telemetry
from services.chassis.errors import MalformedRequest, Violation
from services.chassis.expressions import (
    TIMESTAMP,
    EvaluationFailed,
    Expression,
    ExpressionInvalid,
    Selection,
    Vocabulary,
)
from services.chassis.timestamps import instant
from services.points.domain.earning import Basis, Match, Rule, RuleBook, Scope, gains
from services.points.domain.ledger import Clawback, Expiry, Gain, Terms, Unit
from services.points.domain.refunds import Refund, Refunded
from services.points.domain.tiers import Ladder
from services.points.errors import ProgrammeInvalid, TotalMismatch

COMPILED = 8  # versions of the programme kept compiled
DEFAULT_GRACE_DAYS = 7

_ALWAYS = {"member": pb.Member.DESCRIPTOR.full_name, "now": TIMESTAMP}
_ORDER = {**_ALWAYS, "order": Order.DESCRIPTOR.full_name}
_LINE = {**_ORDER, "line": "loyalty.orders.v1.OrderLine"}
_VOCABULARIES = {
    Scope.ORDER: Vocabulary(_ORDER),
    Scope.LINE: Vocabulary(_LINE),
    Scope.ACTIVITY: Vocabulary({**_ALWAYS, "activity": Activity.DESCRIPTOR.full_name}),
}
_SCOPES = {
    pb.RULE_SCOPE_ORDER: Scope.ORDER,
    pb.RULE_SCOPE_LINE: Scope.LINE,
    pb.RULE_SCOPE_ACTIVITY: Scope.ACTIVITY,
}
_NONE: frozenset[int] = frozenset()
_CLAWBACKS = {
    pb.CLAWBACK_UNSPECIFIED: Clawback.DEBT,
    pb.CLAWBACK_DEBT: Clawback.DEBT,
    pb.CLAWBACK_CLAMP: Clawback.CLAMP,
    pb.CLAWBACK_BLOCK: Clawback.BLOCK,
}
_UNITS = {pb.UNIT_POINTS: Unit.POINTS, pb.UNIT_GROWTH: Unit.GROWTH}


@dataclass(frozen=True, slots=True)
class Source:
    """An order or an activity to earn on."""

    scope: Scope
    id: str
    body: bytes
    body_hash: bytes
    occur_time: datetime
    currency_code: str | None
    basis: Basis
    message: Order | Activity
    reference_id: str = ""
    """What an activity came from, if anything."""


def read_order(order: Order) -> Source:
    """An order as facts. Raises MalformedRequest where line ids repeat, and TotalMismatch."""
    if len({line.line_id for line in order.lines}) < len(order.lines):  # cheaper here than as a CEL rule
        raise MalformedRequest(
            violations=[Violation("order.lines", "line_id must be unique within the order")]
        )
    lines = tuple(line.amount_minor for line in order.lines)
    total = sum(lines) + order.delivery_fee_minor
    if total != order.total_minor:
        raise TotalMismatch(
            violations=[
                Violation("order.total_minor", f"is {order.total_minor}, the parts sum up to {total}")
            ]
        )
    body = order.SerializeToString(deterministic=True)
    return Source(
        Scope.ORDER,
        order.order_id,
        body,
        hashlib.sha256(body).digest(),
        instant(order.paid_time),
        order.currency_code,
        Basis(lines, total),
        order,
    )


def what_remains(source: Source, refunded: Refunded) -> Source | None:
    """An order as its refunds leave it; None if nothing is left.

    The arithmetic goes by exact fractions; conditions see amounts floored to minor units. Lines that were
    refunded down to nothing are gone.
    """
    order = source.message
    assert isinstance(order, Order)  # noqa: S101 - only orders are refunded
    total = order.total_minor
    if refunded.nothing_left(total):
        return None
    kept = [
        (line, refunded.remaining(line.amount_minor, refunded.lines.get(line.line_id, 0), total))
        for line in order.lines
    ]
    kept = [(line, left) for line, left in kept if left >= 1 or not line.amount_minor]
    remaining = Order()
    remaining.CopyFrom(order)
    del remaining.lines[:]
    for line, left in kept:
        remaining.lines.add().CopyFrom(line)
        remaining.lines[-1].amount_minor = int(left)
    remaining.delivery_fee_minor = int(refunded.remaining(order.delivery_fee_minor, 0, total))
    remaining.total_minor = total - refunded.total
    basis = Basis(tuple(left for _, left in kept), remaining.total_minor)
    return replace(source, basis=basis, message=remaining)


def read_refund(message: RefundMessage) -> dict[str, Any]:
    """What a command to refund an order says of the refund."""
    lines = {line.line_id: line.amount_minor for line in message.lines.lines}
    return {
        "order_id": message.order_id,
        "refund_id": message.refund_id,
        "refund": Refund(message.amount_minor, lines, everything=message.all),
        "body_hash": hashlib.sha256(message.SerializeToString(deterministic=True)).digest(),
        "occur_time": instant(message.refund_time),
    }


def read_activity(activity: Activity) -> Source:
    """An activity as facts."""
    body = activity.SerializeToString(deterministic=True)
    return Source(
        Scope.ACTIVITY,
        activity.activity_id,
        body,
        hashlib.sha256(body).digest(),
        instant(activity.occur_time),
        None,
        Basis((), activity.amount_minor),
        activity,
    )


@dataclass(frozen=True, slots=True)
class Programme:
    """A version of the programme, ready to be asked."""

    version: int
    book: RuleBook
    conditions: tuple[tuple[Rule, Expression | Selection | None], ...]

    @property
    def terms(self) -> Terms:
        """What holds whatever rule gives."""
        return self.book.terms

    @property
    def has_daily_caps(self) -> bool:
        """Whether any rule counts per day."""
        return any(rule.cap_per_day for rule in self.book.rules)

    def gains(
        self,
        source: Source,
        occur: datetime,
        tier: str,
        facts: Mapping[str, str],
        used_today: Mapping[str, int],
    ) -> list[Gain]:
        """What the rules give for an order or activity that occurred at `occur`."""
        kind = "activity" if source.scope is Scope.ACTIVITY else "order"
        known = _VOCABULARIES[source.scope].facts(
            {"member": pb.Member(tier=tier, facts=facts), "now": occur, kind: source.message}
        )
        matches: list[Match] = []
        for rule, condition in self.conditions:
            if not rule.holds_at(occur) or (rule.scope is Scope.ACTIVITY) is not (kind == "activity"):
                continue
            try:
                match condition:
                    case Expression():
                        lines = None if condition.holds(known) else _NONE
                    case Selection():
                        lines = condition.matching(known)
                    case _:
                        lines = (
                            frozenset(range(len(source.basis.lines))) if rule.scope is Scope.LINE else None
                        )
            except EvaluationFailed as error:
                telemetry.RULE_ERRORS.labels(rule.rule_id).inc()
                matches.append(Match(rule, error=str(error)[:200]))
                continue
            if lines is None:
                matches.append(Match(rule))
            elif lines:
                matches.append(Match(rule, lines))
        return gains(self.book, matches, source.basis, used_today)


def compile_programme(message: pb.Programme) -> Programme:
    """Compiles a programme. Raises ProgrammeInvalid with every fault and its place."""
    faults: list[Violation] = []
    rules = [_rule(rule, f"programme.earn_rules[{i}]", faults) for i, rule in enumerate(message.earn_rules)]
    conditions: list[tuple[Rule, Expression | Selection | None]] = []
    for index, (rule, source) in enumerate(zip(rules, message.earn_rules, strict=True)):
        expression: Expression | Selection | None = None
        if source.when:
            try:
                expression = _VOCABULARIES[rule.scope].compile(source.when)
                if rule.scope is Scope.LINE:
                    whole = _VOCABULARIES[Scope.ORDER]
                    expression = whole.compile_each(source.when, "line", "order.lines")
            except ExpressionInvalid as error:
                faults.append(Violation(f"programme.earn_rules[{index}].when", str(error)))
        conditions.append((rule, expression))
    try:
        zone = ZoneInfo(message.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        faults.append(Violation("programme.time_zone", f"{message.time_zone} is not an IANA time zone"))
        zone = ZoneInfo("UTC")
    faults += _ladder_faults(message.tier_ladder)
    if faults:
        raise ProgrammeInvalid(violations=faults)
    expiry = _expiry(message.expiry) if message.HasField("expiry") else None
    terms = Terms(
        message.version,
        zone,
        message.currency_code,
        expiry,
        message.pending_days,
        _CLAWBACKS[message.clawback],
        message.grace_days or DEFAULT_GRACE_DAYS,
        message.transfers_per_day,
        _ladder(message.tier_ladder, zone) if message.HasField("tier_ladder") else None,
    )
    return Programme(message.version, RuleBook.of(terms, rules), tuple(conditions))


def _rule(message: pb.EarnRule, place: str, faults: list[Violation]) -> Rule:
    give = message.WhichOneof("give")
    multiplier = Fraction(message.multiplier) if give == "multiplier" else None
    start = instant(message.valid_from_time) if message.HasField("valid_from_time") else None
    end = instant(message.valid_until_time) if message.HasField("valid_until_time") else None
    if multiplier is not None and multiplier < 1:
        faults.append(Violation(f"{place}.multiplier", "must be at least 1"))
    if start is not None and end is not None and start >= end:
        faults.append(Violation(f"{place}.valid_until_time", "must be after valid_from_time"))
    if message.unit == pb.UNIT_GROWTH and message.HasField("expiry"):
        faults.append(Violation(f"{place}.expiry", "growth does not expire"))
    return Rule(
        rule_id=message.rule_id,
        scope=_SCOPES[message.scope],
        unit=_UNITS[message.unit],
        best=message.stack == pb.RULE_STACK_BEST,
        per=Fraction(message.per.points, message.per.amount_minor) if give == "per" else None,
        multiplier=multiplier,
        fixed=message.fixed if give == "fixed" else None,
        valid_from=start,
        valid_until=end,
        cap_per_order=message.cap_per_order,
        cap_per_day=message.cap_per_day,
        expiry=_expiry(message.expiry) if message.HasField("expiry") else None,
    )


def _ladder(message: pb.TierLadder, zone: ZoneInfo) -> Ladder:
    rolling = message.rolling_days if message.HasField("rolling_days") else None
    tiers = tuple((tier.tier_id, tier.growth) for tier in message.tiers)
    return Ladder(tiers, rolling, message.grace_days, zone)


def _ladder_faults(message: pb.TierLadder) -> list[Violation]:
    """Tiers ascend, and each has a name of its own."""
    place = "programme.tier_ladder.tiers"
    faults = [
        Violation(f"{place}[{index}].growth", "must be more than the tier before takes")
        for index, (low, high) in enumerate(pairwise(message.tiers), 1)
        if high.growth <= low.growth
    ]
    if len({tier.tier_id for tier in message.tiers}) < len(message.tiers):
        faults.append(Violation(place, "tier_id must be unique within the ladder"))
    return faults


def _expiry(message: pb.Expiry) -> Expiry:
    if message.WhichOneof("end") == "rolling_months":
        return Expiry(rolling_months=message.rolling_months)
    return Expiry(calendar_years=message.calendar_years)


class Programmes:
    """Compiled versions. A version never changes, so a compiled one is as good as the row."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[int, Programme] = OrderedDict()

    def get(self, version: int) -> Programme | None:
        """A version compiled before."""
        return self._compiled.get(version)

    def keep(self, body: bytes) -> Programme:
        """Compiles a stored version."""
        programme = compile_programme(pb.Programme.FromString(body))
        self._compiled[programme.version] = programme
        while len(self._compiled) > COMPILED:
            self._compiled.popitem(last=False)
        return programme
