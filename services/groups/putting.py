"""Schemes and the programme: tried, and put in versions, each of which has members looked at anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Connection
from services.chassis.timestamps import timestamp
from services.groups import rules, store
from services.groups.domain import calendar
from services.groups.domain.schemes import Scheme, SchemeKind
from services.groups.errors import KindFixed, SchemeUnknown, SiteUnknown, TooManySchemes
from services.groups.rules import CompiledScheme
from services.groups.service import Lore

MOST_ASKED = 20  # schemes that AssignMember asks where none is named
LOOKED_AT = 256  # members that are read at once

_ASKED = (SchemeKind.BY_LOCATION, SchemeKind.BY_TAG)


# --- schemes ------------------------------------------------------------------------------------------


async def put_scheme(
    connection: Connection,
    lore: Lore,
    at: datetime,
    put: CompiledScheme,
    *,
    message: pb.Scheme,
    author: str,
) -> pb.Scheme:
    """Keeps the next version of a scheme, `message`, which `put` is compiled.

    Raises KindFixed, SchemeUnknown, SiteUnknown, TooManySchemes.
    """
    scheme = put.scheme
    last = await store.lock_last_scheme(connection, scheme.scheme_id)
    if last is not None and last["kind"] != scheme.kind:
        raise KindFixed(kind=last["kind"])
    await _check_names(connection, lore, scheme)
    made = pb.Scheme()
    made.CopyFrom(message)
    made.version = 1 if last is None else last["version"] + 1
    made.create_time.CopyFrom(timestamp(at))
    await store.add_scheme(
        connection,
        scheme_id=scheme.scheme_id,
        version=made.version,
        kind=scheme.kind,
        withdrawn=scheme.withdrawn,
        author=author,
        create_time=at,
        body=made.SerializeToString(),
    )
    if last is not None:
        upcoming = calendar.upcoming(scheme.calendar, at, lore.terms.zone)
        await store.reschedule(connection, scheme.scheme_id, at, upcoming[0].at if upcoming else None)
    if scheme.kind is SchemeKind.BY_TAG or scheme.threshold:
        await store.start_evaluation(connection, store.SCHEME, scheme.scheme_id, made.version, at)
    return made


async def _check_names(connection: Connection, lore: Lore, scheme: Scheme) -> None:
    """That what the scheme names is there, and that no more schemes are asked than may be."""
    others = await lore.schemes(connection)
    others.pop(scheme.scheme_id, None)
    if scheme.successor_scheme_id not in ("", scheme.scheme_id, *others):
        raise SchemeUnknown(scheme_id=scheme.successor_scheme_id)
    if scheme.default_site_id and (await lore.atlas(connection)).site(scheme.default_site_id) is None:
        raise SiteUnknown(site_id=scheme.default_site_id)
    asked = [one for one in (scheme, *(other.scheme for other in others.values())) if _is_asked(one)]
    if _is_asked(scheme) and len(asked) > MOST_ASKED:
        raise TooManySchemes(limit=MOST_ASKED)


def _is_asked(scheme: Scheme) -> bool:
    return scheme.kind in _ASKED and not scheme.withdrawn


@dataclass(slots=True)
class Preview:
    """How many members a scheme would take, of those that were looked at."""

    looked_at: int = 0
    in_audience: int = 0
    meet_threshold: int = 0
    segments: Counter[str] = field(default_factory=Counter)
    in_no_segment: int = 0
    failed: int = 0


async def preview(
    connection: Connection, lore: Lore, at: datetime, tried: CompiledScheme, member_ids: Iterable[str]
) -> Preview:
    """What a scheme would take of members as they are known now."""
    programme = (await lore.programme(connection)).programme
    found, names = Preview(), list(member_ids)
    for start in range(0, len(names), LOOKED_AT):
        profiles = await store.profiles(connection, names[start : start + LOOKED_AT])
        for profile in profiles.values():
            known = rules.known(profile, programme, at, lore.terms.zone)
            _count(found, tried, known)
            found.failed += known.failed
    return found


def _count(found: Preview, tried: CompiledScheme, known: rules.Known) -> None:
    found.looked_at += 1
    if not tried.is_for(known):
        return
    found.in_audience += 1
    if tried.failing(known) is not None:
        return
    found.meet_threshold += 1
    if tried.scheme.kind is not SchemeKind.BY_TAG:
        return
    segment = tried.segment(known)
    if segment is None:
        found.in_no_segment += 1
    else:
        found.segments[segment.segment_id] += 1


# --- the programme ------------------------------------------------------------------------------------


async def put_programme(
    connection: Connection, at: datetime, message: pb.Programme, author: str
) -> pb.Programme:
    """Keeps the next version of the programme, which was compiled before."""
    last = await store.lock_last_programme(connection)
    made = pb.Programme()
    made.CopyFrom(message)
    made.version = 1 if last is None else last["version"] + 1
    made.create_time.CopyFrom(timestamp(at))
    await store.add_programme(
        connection, version=made.version, author=author, create_time=at, body=made.SerializeToString()
    )
    await store.start_evaluation(connection, store.PROGRAMME, "", made.version, at)
    return made
