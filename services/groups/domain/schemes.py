"""How groups are formed: the schemes, and the programme that all of them share, as they were put."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from services.groups.domain.calendar import Occasion

LONGEST_NAME = 200  # characters of a group's name


class SchemeKind(StrEnum):
    """What decides which group of a scheme a member belongs in."""

    BY_LOCATION = "BY_LOCATION"
    """Where the member is: the groups of a site."""
    BY_TAG = "BY_TAG"
    """Who the member is: the groups of a segment."""
    INVITE = "INVITE"
    """Who brought the member: the groups of a KOL."""
    FLASH = "FLASH"
    """One group for some hours."""


class Overflow(StrEnum):
    """Where the next member goes when a site's group is full."""

    NEXT_OF_SITE = "NEXT_OF_SITE"
    """A further group of the site, which opens by itself."""
    NEXT_NEAREST = "NEXT_NEAREST"
    """The group of the next nearest site."""


class ThresholdLost(StrEnum):
    """What becomes of a member for whom a scheme's conditions hold no longer."""

    KEEP = "KEEP"
    NOTIFY = "NOTIFY"
    """The member stays; ThresholdLost tells."""
    REMOVE = "REMOVE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A named CEL expression that holds or not."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the members of a BY_TAG scheme, with groups of its own."""

    segment_id: str
    name: str
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A version of a scheme."""

    scheme_id: str
    version: int
    kind: SchemeKind
    name_pattern: str
    capacity: int
    """Members that the platform takes in a group."""
    headroom: int
    """Of these, how many are kept for whoever comes without a seat."""
    overflow: Overflow = Overflow.NEXT_OF_SITE
    audience: tuple[Condition, ...] = ()
    """For whom it is, where all schemes are asked by priority."""
    threshold: tuple[Condition, ...] = ()
    """What a member must meet to get a seat."""
    segments: tuple[Segment, ...] = ()
    priority: int = 0
    """The lower comes first."""
    margin_m: int = 0
    """How much nearer another site's group must be for a member to be moved."""
    cooldown: timedelta = timedelta(0)
    """After leaving, how long no seat is given."""
    seat_hold: timedelta | None = None
    """How long a seat is kept; None is as the programme says."""
    lifetime: timedelta | None = None
    successor_scheme_id: str = ""
    default_site_id: str = ""
    on_threshold_lost: ThresholdLost = ThresholdLost.KEEP
    welcome: str = ""
    notice: str = ""
    calendar: tuple[Occasion, ...] = ()
    withdrawn: bool = False
    """It takes no more members."""

    @property
    def room(self) -> int:
        """Seats of a group."""
        return self.capacity - self.headroom

    def group_name(self, place: str, seq: int) -> str:
        """What a group is called: `place` is its site's or segment's name, and the first has no number."""
        number = str(seq) if seq > 1 else ""
        named = self.name_pattern.replace("{seq}", number)
        return named.replace("{site}", place).replace("{segment}", place)[:LONGEST_NAME]


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRule:
    """A tag that follows from what is known of a member: what an expression says, if it says anything."""

    key: str
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """What all schemes go by."""

    version: int = 0
    tag_rules: tuple[TagRule, ...] = ()
    horizon_days: int = 400
    """After so many local days without a purchase, time alone changes nothing more about a member."""
    moves_per_day: int = 300
    """Members whom the platform lets us move in a local day."""
    moves_per_group: int = 2
    """How often a group may be moved out within 90 days."""
    offer_cooldown: timedelta = timedelta(days=7)
    """Between two EntryOffered of a member."""
    opt_out_key: str = ""
    """A member with this tag gets none."""
    seat_hold: timedelta = timedelta(hours=24)
    """How long a seat is kept where the scheme does not say."""
