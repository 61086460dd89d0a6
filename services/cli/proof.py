"""Houses of their own for the proofs over a year, and a programme under which a year sees everything."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import stamina.instrumentation
from google.protobuf.json_format import ParseDict
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from nats.errors import Error as NatsError

from services.chassis import operations
from services.chassis.errors import ServiceError
from services.cli.house import House, running
from services.groups.audit import audit as audit_groups
from services.points.audit import audit as audit_points

EVE: Final = datetime(2016, 12, 31, 4, 0, tzinfo=UTC)  # where the clock stands when the programme is put
CALL_TIMEOUT: Final = 10.0  # seconds
TIER_DAYS: Final = 90
GRACE_DAYS: Final = 10
GROWTH: Final = (1, 100, 350)  # that the tiers take in so short a window, from the lowest

_AUDITS: Final = {"points": audit_points, "groups": audit_groups}


@dataclass(frozen=True)
class Audited:
    """What the audit found in the books and in the stream."""

    totals: dict[str, int]
    findings: list[str]


def short_lived(programme: Mapping[str, Any]) -> dict[str, Any]:
    """The programme, with points and tiers that end within the year: after three months."""
    ladder = programme["tier_ladder"]
    tiers = [{**tier, "growth": takes} for tier, takes in zip(ladder["tiers"], GROWTH, strict=True)]
    return {
        **programme,
        "expiry": {"rolling_months": 3},
        "tier_ladder": {"rolling_days": TIER_DAYS, "grace_days": GRACE_DAYS, "tiers": tiers},
    }


@contextmanager
def house_of(service: str) -> Iterator[House]:
    """A house of the end of 2016 with a service alone, for as long as the block runs."""
    stamina.instrumentation.set_on_retry_hooks([])
    with tempfile.TemporaryDirectory(prefix="loyalty-proof-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL does not run as root: its user must get in
        with running(Path(folder), test_clock=EVE, services=(service,)) as house:
            yield house


@contextmanager
def own_house(programme: Mapping[str, Any]) -> Iterator[House]:
    """A house of the points service under a programme."""
    with house_of("points") as house:
        with grpc.insecure_channel(house.describe()["points"]["grpc"]) as channel:
            request = pb.PutProgrammeRequest(request_id="proof")
            ParseDict(dict(programme), request.programme)
            PointsServiceStub(channel).PutProgramme(request, timeout=CALL_TIMEOUT)
        yield house


def audited(house: House, service: str = "points") -> Audited:
    """Audits the books, and the stream against them; a dead letter is a finding too, and so is a failure."""
    database, audit = house.database_url(service), _AUDITS[service]
    try:
        report = asyncio.run(audit(database, stream_url=house.nats.url))
    except (ServiceError, NatsError, OSError) as failure:  # what was replayed is to be told all the same
        return Audited({}, [f"the audit did not come to its end: {failure}"])
    findings = [line for _, _, found in report.lines for line in found]
    dead = [f"dead letter {letter}" for letter in asyncio.run(operations.waiting(database))]
    return Audited(dict(report.totals), findings + dead)
