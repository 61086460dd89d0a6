"""Products as they are put, compiled; orders as facts; conditions evaluated.

The only place that knows both CEL and the benefits: it hands plain facts to `domain`.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import time
from functools import partial

from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order

from services.cards.domain.basket import Line, Offer
from services.cards.domain.entitlements import Entitlement
from services.cards.domain.periods import Period
from services.cards.domain.products import (
    Benefit,
    BenefitKind,
    BundlePart,
    Daypart,
    FreezePolicy,
    Product,
    RefundPolicy,
    SalesWindow,
)
from services.cards.domain.quotas import Quota, Window
from services.cards.errors import ProductInvalid, TotalMismatch
from services.chassis import telemetry
from services.chassis.errors import MalformedRequest, Violation
from services.chassis.expressions import (
    STRING,
    EvaluationFailed,
    Expression,
    ExpressionInvalid,
    Facts,
    Selections,
    Vocabulary,
)
from services.chassis.timestamps import instant

COMPILED = 512  # versions of products kept compiled
MULTIPLIER_LIMIT = 10**12  # millionths; events write at most six digits before the point

_ORDER = {"order": Order.DESCRIPTOR.full_name}
_LINE = {**_ORDER, "line": "loyalty.orders.v1.OrderLine"}
_ORDERS = Vocabulary(_ORDER)
_LINES = Vocabulary(_LINE)
_MEMBERS = Vocabulary({"member": pb.Member.DESCRIPTOR.full_name})
# The two names of an order that are known before there is one are names of their own here, and `order` and
# `line` stay without a value. So what depends on them has none, unless `&&` or `||` is decided without it:
# a condition that is false all the same is false for every line of every order there.
_PLACES = Vocabulary({**_LINE, "order.store_id": STRING, "order.channel": STRING})
_NAMES_A_PLACE = re.compile(r"\b(store_id|channel)\b")
_ASKS_FOR_FIELDS = re.compile(r"\bhas\b")  # of which a name of its own is none: nothing can be said
_ALWAYS = "true"  # an empty condition
_DELIVERY = frozenset({""})  # stands for the delivery where lines are named
_NONE: frozenset[str] = frozenset()
_LIMITS = ("scope", "dayparts", "quota", "max_per_order")

_KINDS = {pb.BenefitKind.Value(f"BENEFIT_KIND_{kind}"): kind for kind in BenefitKind}
_WINDOWS = {pb.QuotaWindow.Value(f"QUOTA_WINDOW_{window}"): window for window in Window}
_SALES_WINDOWS = {pb.SalesWindow.Value(f"SALES_WINDOW_{window}"): window for window in SalesWindow}


@dataclass(frozen=True, slots=True)
class Bill:
    """An order before any benefit."""

    order_id: str
    body: bytes
    body_hash: bytes
    currency_code: str
    lines: tuple[Line, ...]
    delivery_fee: int
    message: Order


def read_order(order: Order) -> Bill:
    """An order as facts. Raises MalformedRequest where line ids repeat, and TotalMismatch."""
    instant(order.paid_time)  # nothing goes by it, but what is none is refused
    if len({line.line_id for line in order.lines}) < len(order.lines):  # cheaper here than as a CEL rule
        raise MalformedRequest(
            violations=[Violation("order.lines", "line_id must be unique within the order")]
        )
    lines = tuple(Line(line.line_id, line.quantity, line.amount_minor) for line in order.lines)
    total = sum(line.amount_minor for line in lines) + order.delivery_fee_minor
    if total != order.total_minor:
        raise TotalMismatch(
            violations=[
                Violation("order.total_minor", f"is {order.total_minor}, the parts sum up to {total}")
            ]
        )
    body = order.SerializeToString(deterministic=True)
    return Bill(
        order.order_id,
        body,
        hashlib.sha256(body).digest(),
        order.currency_code,
        lines,
        order.delivery_fee_minor,
        order,
    )


@dataclass(frozen=True, slots=True)
class Compiled:
    """A version of a product, ready to be asked."""

    product: Product
    eligible: Expression
    texts: tuple[str, ...]
    """The scopes that see lines, once each."""
    scopes: Selections
    """These, in the same order."""
    deliveries: Mapping[str, Expression]
    """The scopes that see no line, by text."""
    places: Mapping[str, Expression]
    """The scopes that store and channel may decide, by text."""

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from others."""
        return (self.product.code, self.product.version)

    def sold_to(self, tier: str, facts: Mapping[str, str]) -> bool:
        """Whether a member may buy it. Where the condition has no value: no."""
        try:
            return self.eligible.holds(_MEMBERS.facts({"member": pb.Member(tier=tier, facts=facts)}))
        except EvaluationFailed:
            telemetry.RULE_ERRORS.labels(f"{self.product.code} eligible").inc()
            return False


def offers(
    entitlements: Sequence[Entitlement], bill: Bill, compiled: Mapping[tuple[str, int], Compiled]
) -> list[Offer]:
    """What a member's benefits are for in an order, one offer each.

    `compiled` has the products of all of them, by code and version.
    """
    facts = _ORDERS.facts({"order": bill.message})
    asked: dict[tuple[str, int], _Asked] = {}
    for entitlement in entitlements:
        if entitlement.product not in asked:
            asked[entitlement.product] = _Asked(compiled[entitlement.product], bill, facts)
    return [asked[entitlement.product].offer(entitlement) for entitlement in entitlements]


class _Asked:
    """A product's conditions, evaluated for one order: all that see lines at once."""

    def __init__(self, compiled: Compiled, bill: Bill, facts: Facts) -> None:
        self._compiled = compiled
        self._facts = facts
        self._lines = bill.lines
        self._in_currency = bill.currency_code == compiled.product.currency_code
        self._matching = dict(zip(compiled.texts, compiled.scopes.matching(facts), strict=True))

    def offer(self, entitlement: Entitlement) -> Offer:
        """What one of its benefits is for: in another currency, and where a condition fails, for nothing."""
        benefit = entitlement.benefit
        parts = [_NONE] * len(benefit.parts)
        if not self._in_currency:
            return entitlement.offer(_NONE, parts)
        try:
            if benefit.kind is BenefitKind.FREE_DELIVERY:
                holds = self._compiled.deliveries[benefit.scope].holds(self._facts)
                return entitlement.offer(_DELIVERY if holds else _NONE, parts)
            lines = self._fitting(benefit.scope)
            return entitlement.offer(lines, [lines & self._fitting(part.scope) for part in benefit.parts])
        except EvaluationFailed:
            telemetry.RULE_ERRORS.labels(f"{self._compiled.product.code} {benefit.code}").inc()
            return entitlement.offer(_NONE, parts, failed=True)

    def _fitting(self, scope: str) -> frozenset[str]:
        matching = self._matching[scope]
        if isinstance(matching, EvaluationFailed):
            raise matching
        return frozenset(self._lines[index].line_id for index in matching)


def usable_at(
    store_id: str,
    channel: str,
    entitlements: Iterable[Entitlement],
    compiled: Mapping[tuple[str, int], Compiled],
) -> list[Entitlement]:
    """What may be used in a store and channel, before there is an order; an empty name means any.

    Left out is only what is for no line of any order there: where `order.store_id` and `order.channel` alone
    make a scope false, whatever else it asks for.
    """
    known = {"order.store_id": store_id, "order.channel": channel}
    facts = _PLACES.facts({name: value for name, value in known.items() if value})
    return [e for e in entitlements if _may_hold(compiled[e.product].places, e.benefit, facts)]


def _may_hold(places: Mapping[str, Expression], benefit: Benefit, facts: Facts) -> bool:
    for scope in _scopes(benefit):
        if scope not in places:
            continue
        try:
            if not places[scope].holds(facts):
                return False
        except EvaluationFailed:  # the order decides, or a line
            continue
    return True


def _scopes(benefit: Benefit) -> Iterator[str]:
    """Its conditions: a piece of a bundle must satisfy the benefit's and that of its part."""
    yield benefit.scope
    for part in benefit.parts:
        yield part.scope


# --- products -----------------------------------------------------------------------------------------


def compile_product(message: pb.Product) -> Compiled:
    """Compiles a product. Raises ProductInvalid with every fault and its place."""
    faults = list(_multiplier_faults(message))
    for place, attempt in _attempts(message):
        try:
            attempt()
        except ValueError as error:
            faults.append(Violation(place, str(error)))
    if faults:
        raise ProductInvalid(violations=faults)
    product = _product(message)
    on_lines = [b for b in product.benefits if b.kind is not BenefitKind.FREE_DELIVERY]
    texts = tuple(dict.fromkeys(scope for benefit in on_lines for scope in _scopes(benefit)))
    delivery = [b.scope for b in product.benefits if b.kind is BenefitKind.FREE_DELIVERY]
    try:
        scopes = _of_lines(*texts)
    except ExpressionInvalid as error:
        raise ProductInvalid(violations=[Violation("product.benefits", f"together: {error}")]) from None
    return Compiled(
        product,
        _MEMBERS.compile(product.eligible or _ALWAYS),
        texts,
        scopes,
        {scope: _ORDERS.compile(scope or _ALWAYS) for scope in delivery},
        dict(_places([*texts, *delivery])),
    )


def _attempts(message: pb.Product) -> Iterator[tuple[str, Callable[[], object]]]:
    """What must succeed, by its place in the request."""
    yield "product.period", partial(Period.parse, message.period)
    yield "product.eligible", partial(_MEMBERS.compile, message.eligible or _ALWAYS)
    for index, benefit in enumerate(message.benefits):
        place = f"product.benefits[{index}]"
        to_delivery = benefit.kind == pb.BENEFIT_KIND_FREE_DELIVERY
        yield f"{place}.scope", partial(_check, benefit.scope, _ORDERS if to_delivery else _LINES)
        for number, part in enumerate(benefit.parts):
            yield f"{place}.parts[{number}].scope", partial(_check, part.scope, _LINES)


def _check(scope: str, vocabulary: Vocabulary) -> None:
    vocabulary.compile(scope or _ALWAYS)
    if vocabulary is _LINES:
        _of_lines(scope)


def _of_lines(*scopes: str) -> Selections:
    return _ORDERS.compile_all([scope or _ALWAYS for scope in scopes], "line", "order.lines")


def _places(scopes: Iterable[str]) -> Iterator[tuple[str, Expression]]:
    for scope in scopes:
        if _NAMES_A_PLACE.search(scope) and not _ASKS_FOR_FIELDS.search(scope):
            yield scope, _PLACES.compile(scope)


def _multiplier_faults(message: pb.Product) -> Iterator[Violation]:
    """The points service multiplies all that is earned while a period runs, by one factor."""
    multipliers = [
        (index, benefit)
        for index, benefit in enumerate(message.benefits)
        if benefit.kind == pb.BENEFIT_KIND_POINTS_MULTIPLIER
    ]
    for number, (index, benefit) in enumerate(multipliers):
        place = f"product.benefits[{index}]"
        if number:
            yield Violation(f"{place}.kind", "a product has one POINTS_MULTIPLIER at most")
        if benefit.value >= MULTIPLIER_LIMIT:
            yield Violation(f"{place}.value", "must be below a million times, in millionths")
        for field, _ in benefit.ListFields():
            if field.name in _LIMITS:
                yield Violation(f"{place}.{field.name}", "a POINTS_MULTIPLIER holds for all that is earned")


def _product(message: pb.Product) -> Product:
    refund, freeze, cap = message.refund_policy, message.freeze_policy, message.sales_cap
    return Product(
        code=message.code,
        version=message.version,
        family=message.family,
        names=dict(message.names),
        price_minor=message.price_minor,
        currency_code=message.currency_code,
        points_price=message.points_price,
        period=Period.parse(message.period),
        benefits=tuple(_benefit(benefit) for benefit in message.benefits),
        upgrade_now=message.upgrade_policy == pb.UPGRADE_POLICY_NOW,
        refund=RefundPolicy(refund.cooling_off_days, refund.otherwise == pb.REFUND_RULE_PRO_RATA),
        freeze=FreezePolicy(freeze.shortest_days, freeze.longest_days, freeze.count)
        if message.HasField("freeze_policy")
        else None,
        grace_days=message.grace_days,
        purchase_limit=message.purchase_limit,
        sales_cap=(cap.limit, _SALES_WINDOWS[cap.window]) if message.HasField("sales_cap") else None,
        eligible=message.eligible,
        gift_claim_days=message.gift_claim_days,
        withdrawn=message.withdrawn,
    )


def _benefit(message: pb.Benefit) -> Benefit:
    quota = message.quota
    return Benefit(
        code=message.benefit_code,
        kind=_KINDS[message.kind],
        value=message.value,
        scope=message.scope,
        dayparts=tuple(
            Daypart(time.fromisoformat(part.start), time.fromisoformat(part.end), frozenset(part.weekdays))
            for part in message.dayparts
        ),
        quota=Quota(quota.limit, _WINDOWS[quota.window]) if message.HasField("quota") else None,
        max_per_order=message.max_per_order,
        after_other=message.after_other,
        parts=tuple(BundlePart(part.scope, part.quantity) for part in message.parts),
    )


class Products:
    """Compiled versions. A version never changes, so a compiled one is as good as the row."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[str, int], Compiled] = OrderedDict()

    def get(self, code: str, version: int) -> Compiled | None:
        """A version compiled before."""
        return self._compiled.get((code, version))

    def keep(self, body: bytes) -> Compiled:
        """Compiles a stored version."""
        compiled = compile_product(pb.Product.FromString(body))
        self._compiled[compiled.name] = compiled
        while len(self._compiled) > COMPILED:
            self._compiled.popitem(last=False)
        return compiled
