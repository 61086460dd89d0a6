"""Schemes and the programme as they are put, compiled; members as facts; conditions evaluated.

The only place that knows both CEL and how groups are formed: it hands plain facts to `domain`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cached_property, partial
from typing import TypeVar
from zoneinfo import ZoneInfo

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis import telemetry
from services.chassis.errors import Violation
from services.chassis.expressions import (
    STRING,
    STRINGS,
    TEXTS_BY_KEY,
    EvaluationFailed,
    Expression,
    Text,
    Vocabulary,
)
from services.chassis.expressions import Facts as Values
from services.chassis.timestamps import instant
from services.groups.domain import facts
from services.groups.domain.calendar import Occasion, Recurrence
from services.groups.domain.facts import Facts
from services.groups.domain.profile import CARD, RULE, TIER, Profile, Tag
from services.groups.domain.schemes import (
    Condition,
    Overflow,
    Programme,
    Scheme,
    SchemeKind,
    Segment,
    TagRule,
    ThresholdLost,
)
from services.groups.errors import ProgrammeInvalid, SchemeInvalid

COMPILED = 256  # versions of schemes kept compiled, and as many of the programme
LONGEST_VALUE = 256  # characters of a tag's value
NO_SEGMENT = "segment"  # the condition that a member does not meet who is in none of a scheme's segments
FLASH_LIFETIME = timedelta(minutes=240)

Version = TypeVar("Version")
Compiled = TypeVar("Compiled")

_MEMBERS = Vocabulary(
    {
        "facts": pb.Facts.DESCRIPTOR.full_name,
        "tags": TEXTS_BY_KEY,
        "tier": STRING,
        "cards": STRINGS,
        "city": STRING,
    }
)
_BRACED = re.compile(r"\{([^{}]*)\}|[{}]")
_IN_TEXTS = re.compile(r"\{([a-z_]+)\}")  # other braces are the text's own
_KINDS = {pb.SchemeKind.Value(f"SCHEME_KIND_{kind}"): kind for kind in SchemeKind}
_OVERFLOWS = {pb.Overflow.Value(f"OVERFLOW_{overflow}"): overflow for overflow in Overflow}
_POLICIES = {pb.ThresholdLostPolicy.Value(f"THRESHOLD_LOST_POLICY_{lost}"): lost for lost in ThresholdLost}
_RECURRENCES = {pb.Recurrence.Value(f"RECURRENCE_{recurrence}"): recurrence for recurrence in Recurrence}

# --- members ------------------------------------------------------------------------------------------


class Known:
    """What conditions read of a member. It counts those that failed, each of which does not hold."""

    def __init__(
        self, member_facts: Facts, tags: Mapping[str, str], tier: str, cards: Sequence[str], city: str
    ) -> None:
        self.facts = member_facts
        self.tags = tags
        self.tier = tier
        self.cards = cards
        self.city = city
        self.failed = 0

    @cached_property
    def _values(self) -> Values:
        """As CEL takes it; of many who are looked at, nothing is asked."""
        return _MEMBERS.facts(
            {
                "facts": facts_message(self.facts),
                "tags": dict(self.tags),
                "tier": self.tier,
                "cards": list(self.cards),
                "city": self.city,
            }
        )

    def with_tags(self, tags: Mapping[str, str]) -> Known:
        """The same member with other tags."""
        if tags == self.tags:
            return self
        return Known(self.facts, tags, self.tier, self.cards, self.city)

    def meets(self, condition: Expression, name: str) -> bool:
        """Whether a condition holds; one that has no value does not, and is counted by its `name`."""
        try:
            return condition.holds(self._values)
        except EvaluationFailed:
            self._count(name)
            return False

    def text(self, of: Text, name: str) -> str:
        """What a rule says, as far as a tag can hold it; empty where it has no value."""
        try:
            return of.value(self._values).replace("\0", "")[:LONGEST_VALUE]
        except EvaluationFailed:
            self._count(name)
            return ""

    def _count(self, name: str) -> None:
        self.failed += 1
        telemetry.RULE_ERRORS.labels(name).inc()


def facts_of(profile: Profile, programme: Programme, at: datetime, zone: ZoneInfo) -> Facts:
    """What follows from a member's orders."""
    return facts.facts_of(profile.recent(), at, zone, programme.horizon_days, profile.past)


def facts_message(found: Facts) -> pb.Facts:
    """What follows from orders, as conditions read it and answers show it."""
    return pb.Facts(
        recency_days=found.recency_days,
        first_days=found.first_days,
        orders_30d=found.orders_30d,
        orders_90d=found.orders_90d,
        orders_total=found.orders_total,
        spend_30d_minor=found.spend_30d_minor,
        spend_90d_minor=found.spend_90d_minor,
        home_site=found.home_site,
    )


def known(profile: Profile, programme: Programme, at: datetime, zone: ZoneInfo) -> Known:
    """What conditions read of a member at an instant."""
    recent = profile.recent()
    return Known(
        facts.facts_of(recent, at, zone, programme.horizon_days, profile.past),
        {tag.key: tag.value for tag in profile.tags.values() if tag.holds(at)},
        profile.facts.get(TIER, ""),
        cards_of(profile),
        facts.city_of(recent, profile.past),
    )


def cards_of(profile: Profile) -> list[str]:
    """The families of the cards that run."""
    return sorted(name.removeprefix(CARD) for name in profile.facts if name.startswith(CARD))


def city_of(profile: Profile) -> str:
    """The city of the latest order that names one."""
    return facts.city_of(profile.recent(), profile.past)


# --- schemes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompiledScheme:
    """A version of a scheme, ready to be asked."""

    scheme: Scheme
    audience: Sequence[tuple[str, Expression]]
    threshold: Sequence[tuple[str, Expression]]
    segments: Sequence[tuple[Segment, Expression]]

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from others."""
        return (self.scheme.scheme_id, self.scheme.version)

    def is_for(self, member: Known) -> bool:
        """Whether it is for a member where nobody names it."""
        return self._failing(member, self.audience) is None

    def failing(self, member: Known) -> str | None:
        """The first condition of the threshold that a member does not meet; None if there is none."""
        return self._failing(member, self.threshold)

    def segment(self, member: Known) -> Segment | None:
        """The first segment that a member is in."""
        found = (one for one, condition in self.segments if self._holds(member, condition, one.segment_id))
        return next(found, None)

    def _failing(self, member: Known, conditions: Iterable[tuple[str, Expression]]) -> str | None:
        failing = (name for name, condition in conditions if not self._holds(member, condition, name))
        return next(failing, None)

    def _holds(self, member: Known, condition: Expression, name: str) -> bool:
        return member.meets(condition, f"{self.scheme.scheme_id} {name}")


def compile_scheme(message: pb.Scheme) -> CompiledScheme:
    """Compiles a scheme. Raises SchemeInvalid with every fault and its place."""
    faults = [*_faults(_scheme_attempts(message)), *_name_faults(message), *_text_faults(message)]
    if faults:
        raise SchemeInvalid(violations=faults)
    scheme = _scheme(message)
    return CompiledScheme(
        scheme,
        [(one.name, _MEMBERS.compile(one.expression)) for one in scheme.audience],
        [(one.name, _MEMBERS.compile(one.expression)) for one in scheme.threshold],
        [(one, _MEMBERS.compile(one.expression)) for one in scheme.segments],
    )


def _faults(attempts: Iterable[tuple[str, Callable[[], object]]]) -> Iterator[Violation]:
    """What does not succeed, by its place in the request."""
    for place, attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            yield Violation(place, str(error))


def _scheme_attempts(message: pb.Scheme) -> Iterator[tuple[str, Callable[[], object]]]:
    expressions = {
        "threshold": [one.expression for one in message.threshold],
        "audience": [one.expression for one in message.audience],
        "segments": [one.expression for one in message.segments],
    }
    for name, texts in expressions.items():
        for index, text in enumerate(texts):
            yield f"scheme.{name}[{index}].expression", partial(_MEMBERS.compile, text)
    for index, entry in enumerate(message.calendar):
        for number, day in enumerate(entry.dates):
            yield f"scheme.calendar[{index}].dates[{number}]", partial(date.fromisoformat, day)


def _names(kind: SchemeKind) -> set[str]:
    """What stands for a name in the texts of a scheme: the place of its groups, if they have one."""
    places = {SchemeKind.BY_LOCATION: {"site"}, SchemeKind.BY_TAG: {"segment"}}
    return places.get(kind, set())


def _name_faults(message: pb.Scheme) -> Iterator[Violation]:
    allowed = {"seq", *_names(_KINDS[message.kind])}
    unknown = [found[0] for found in _BRACED.finditer(message.name_pattern) if found[1] not in allowed]
    if unknown:
        listed = ", ".join(f"{{{name}}}" for name in sorted(allowed))
        yield Violation("scheme.name_pattern", f"{unknown[0]} is not one of {listed}")


def _text_faults(message: pb.Scheme) -> Iterator[Violation]:
    allowed = {"group", *_names(_KINDS[message.kind])}
    for name, text in (("welcome", message.welcome), ("notice", message.notice)):
        unknown = [found[0] for found in _IN_TEXTS.finditer(text) if found[1] not in allowed]
        if unknown:
            listed = ", ".join(f"{{{name}}}" for name in sorted(allowed))
            yield Violation(f"scheme.{name}", f"{unknown[0]} is not one of {listed}")


def _scheme(message: pb.Scheme) -> Scheme:
    kind = _KINDS[message.kind]
    lifetime = _minutes(message.lifetime_minutes)
    return Scheme(
        scheme_id=message.scheme_id,
        version=message.version,
        kind=kind,
        name_pattern=message.name_pattern,
        capacity=message.capacity,
        headroom=message.headroom,
        overflow=_OVERFLOWS.get(message.overflow, Overflow.NEXT_OF_SITE),
        audience=_conditions(message.audience),
        threshold=_conditions(message.threshold),
        segments=tuple(
            Segment(segment_id=one.segment_id, name=one.name, expression=one.expression)
            for one in message.segments
        ),
        priority=message.priority,
        margin_m=message.margin_m,
        cooldown=timedelta(hours=message.cooldown_hours),
        seat_hold=_minutes(message.seat_hold_minutes),
        lifetime=lifetime or (FLASH_LIFETIME if kind is SchemeKind.FLASH else None),
        successor_scheme_id=message.successor_scheme_id,
        default_site_id=message.default_site_id,
        on_threshold_lost=_POLICIES.get(message.on_threshold_lost, ThresholdLost.KEEP),
        welcome=message.welcome,
        notice=message.notice,
        calendar=tuple(_occasion(entry) for entry in message.calendar),
        withdrawn=message.withdrawn,
    )


def _minutes(count: int) -> timedelta | None:
    return timedelta(minutes=count) if count else None


def _conditions(messages: Iterable[pb.Condition]) -> tuple[Condition, ...]:
    return tuple(Condition(name=one.name, expression=one.expression) for one in messages)


def _occasion(entry: pb.Occasion) -> Occasion:
    return Occasion(
        entry_id=entry.entry_id,
        recurrence=_RECURRENCES[entry.recurrence],
        weekdays=frozenset(entry.weekdays),
        days_of_month=frozenset(entry.days_of_month),
        dates=frozenset(date.fromisoformat(day) for day in entry.dates),
        local_time=time.fromisoformat(entry.local_time),
        claim_for=timedelta(minutes=entry.claim_minutes),
        valid_from=instant(entry.valid_from_time) if entry.HasField("valid_from_time") else None,
        valid_until=instant(entry.valid_until_time) if entry.HasField("valid_until_time") else None,
        benefit_code=entry.benefit_code,
        text=entry.text,
    )


# --- the programme ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompiledProgramme:
    """A version of the programme, ready to be asked."""

    programme: Programme
    rules: Mapping[str, Text]
    """By the key of the tag, in order."""

    def tags_of(self, profile: Profile, member: Known, at: datetime) -> dict[str, Tag]:
        """A member's tags at an instant: those that callers set, and those that follow from what is known.

        `member` is what `known` reads of the profile. A tag of a rule is nobody else's, and is none where the
        rule gives none. What other services told as a tag counts where neither a caller nor a rule has that
        key. A tag that says what it said stays.
        """
        said = {
            key: tag
            for key, tag in profile.tags.items()
            if tag.source != RULE and key not in self.rules and tag.holds(at)
        }
        member = member.with_tags({**_told_tags(profile), **{key: tag.value for key, tag in said.items()}})
        for key, rule in self.rules.items():
            value = member.text(rule, f"programme {key}")
            if value != member.tags.get(key, ""):
                others = {name: other for name, other in member.tags.items() if name != key}
                member = member.with_tags({**others, key: value} if value else others)
        derived = {key: value for key, value in member.tags.items() if key not in said}
        return said | {key: _derived(profile.tags.get(key), key, value, at) for key, value in derived.items()}


def _told_tags(profile: Profile) -> dict[str, str]:
    return {
        name: value for name, value in profile.facts.items() if name != TIER and not name.startswith(CARD)
    }


def _derived(was: Tag | None, key: str, value: str, at: datetime) -> Tag:
    if was is not None and (was.source, was.value) == (RULE, value):
        return was
    return Tag(key=key, value=value, source=RULE, set_time=at)


def compile_programme(message: pb.Programme) -> CompiledProgramme:
    """Compiles a programme. Raises ProgrammeInvalid with every fault and its place."""
    faults = list(
        _faults(
            (f"programme.tag_rules[{index}].expression", partial(_MEMBERS.compile_text, rule.expression))
            for index, rule in enumerate(message.tag_rules)
        )
    )
    if faults:
        raise ProgrammeInvalid(violations=faults)
    programme = _programme(message)
    return CompiledProgramme(
        programme, {rule.key: _MEMBERS.compile_text(rule.expression) for rule in programme.tag_rules}
    )


def _programme(message: pb.Programme) -> Programme:
    """The programme; 0 is as one that nobody put says."""
    default = Programme()
    return Programme(
        version=message.version,
        tag_rules=tuple(TagRule(key=one.key, expression=one.expression) for one in message.tag_rules),
        horizon_days=message.horizon_days or default.horizon_days,
        moves_per_day=message.moves_per_day or default.moves_per_day,
        moves_per_group=message.moves_per_group or default.moves_per_group,
        offer_cooldown=timedelta(hours=message.offer_cooldown_hours) or default.offer_cooldown,
        opt_out_key=message.opt_out_key,
        seat_hold=_minutes(message.seat_hold_minutes) or default.seat_hold,
    )


# --- compiled once ------------------------------------------------------------------------------------


def _keep(kept: OrderedDict[Version, Compiled], version: Version, compiled: Compiled) -> None:
    kept[version] = compiled
    while len(kept) > COMPILED:
        kept.popitem(last=False)


NO_PROGRAMME = compile_programme(pb.Programme())
"""What holds before one was put."""


class Rulebook:
    """Compiled versions. A version never changes, so a compiled one is as good as the row."""

    def __init__(self) -> None:
        self._schemes: OrderedDict[tuple[str, int], CompiledScheme] = OrderedDict()
        self._programmes: OrderedDict[int, CompiledProgramme] = OrderedDict()

    def scheme(self, scheme_id: str, version: int) -> CompiledScheme | None:
        """A version of a scheme compiled before."""
        return self._schemes.get((scheme_id, version))

    def keep_scheme(self, body: bytes) -> CompiledScheme:
        """Compiles a stored version of a scheme."""
        compiled = compile_scheme(pb.Scheme.FromString(body))
        _keep(self._schemes, compiled.name, compiled)
        return compiled

    def programme(self, version: int) -> CompiledProgramme | None:
        """A version of the programme compiled before; 0 is what holds before one was put."""
        return NO_PROGRAMME if version == 0 else self._programmes.get(version)

    def keep_programme(self, body: bytes) -> CompiledProgramme:
        """Compiles a stored version of the programme."""
        compiled = compile_programme(pb.Programme.FromString(body))
        _keep(self._programmes, compiled.programme.version, compiled)
        return compiled
