"""Sites made up and read, without a house."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import protovalidate
import pytest
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.cli import sites
from services.cli.apply import Faulty
from services.cli.sites import COLUMNS, City

HEADER = ",".join(COLUMNS)
ROW = "s1,人民广场店,上海,31.23,121.47,GCJ02,true"


@pytest.fixture(scope="module")
def cities() -> list[City]:
    return sites.cities()


def file_of(rows: object) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *rows])  # type: ignore[misc]
    return text.getvalue()


def faults(text: str) -> list[str]:
    with pytest.raises(Faulty) as caught:
        sites.read(io.StringIO(text), "f.csv")
    return str(caught.value).splitlines()


def test_cities_have_the_names_that_people_there_read(cities: list[City]) -> None:
    assert [city.name for city in cities[:4]] == ["上海", "北京", "深圳", "广州"]
    assert len({city.name for city in cities}) == len(cities) > 300
    assert {"西安", "吕梁", "呼和浩特", "拉萨"} <= {city.name for city in cities}
    assert all(18 < city.latitude < 54 and 73 < city.longitude < 136 for city in cities)


def test_made_up_sites_are_sites_that_a_file_can_bring_in(cities: list[City]) -> None:
    rows = sites.read(io.StringIO(file_of(sites.made_up(cities, 1400, 7))), "f.csv")
    assert len({row.site.site_id for row in rows}) == len({row.site.name for row in rows}) == 1400
    assert not any(row.site.closed for row in rows)
    protovalidate.validate(pb.BatchPutSitesRequest(request_id="r", sites=[row.site for row in rows[:1000]]))
    middles = {city.name: city for city in cities}
    for row in rows:
        where, city = row.site.location, middles[row.site.city]
        assert where.datum == pb.DATUM_WGS84
        assert abs(where.latitude - city.latitude) < 0.6
        assert abs(where.longitude - city.longitude) < 0.8


def test_there_are_more_sites_where_more_people_live(cities: list[City]) -> None:
    counts = Counter(row[2] for row in sites.made_up(cities, 20_000, 7))
    people = sum(city.population for city in cities)
    for city in cities[:10]:
        assert counts[city.name] == pytest.approx(20_000 * city.population / people, rel=0.25)


def test_a_seed_gives_the_same_sites_again_and_another_seed_others(cities: list[City]) -> None:
    first = list(sites.made_up(cities, 200, 7))
    assert list(sites.made_up(cities, 200, 7)) == first
    assert list(sites.made_up(cities, 200, 8)) != first


def test_a_row_is_a_site_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"  # as a spreadsheet writes it: with a mark, and a line break within a name
    columns = "open,datum,longitude,latitude,city,name,site_id"
    file.write_text(
        f'{columns}\r\ntrue,BD09,116.41,39.92,北京,"a\nb",s1\r\nfalse,WGS84,1,2,,店,s2\r\n',
        encoding="utf-8-sig",
        newline="",
    )
    with file.open(newline="", encoding="utf-8-sig") as opened:
        first, second = sites.read(opened, "f.csv")
    location = pb.Location(latitude=39.92, longitude=116.41, datum=pb.DATUM_BD09)
    assert first.site == pb.Site(site_id="s1", name="a\nb", city="北京", location=location)
    assert (second.site.site_id, second.site.city, second.site.closed) == ("s2", "", True)
    assert (first.line, second.line) == (3, 4)


def test_every_fault_of_a_file_is_told_with_its_line() -> None:
    rows = [
        ROW,
        "s2,店,上海,north,121.47,GCJ02,true",
        "s3,店,上海,31.23,,gcj,yes",
        "s4,店,上海,31.23",
        "s5,店,上海,31.23,121.47,WGS84,true,more",
        ROW,
    ]
    assert faults("\n".join([HEADER, *rows])) == [
        "f.csv:3: latitude: 'north' is not a number of degrees",
        "f.csv:4: longitude: '' is not a number of degrees",
        "f.csv:4: datum: 'gcj' is not one of WGS84, GCJ02, BD09",
        "f.csv:4: open: 'yes' is neither true nor false",
        "f.csv:5: must have 7 fields",
        "f.csv:6: must have 7 fields",
        "f.csv:7: site_id: stands in line 2 already",
    ]


@pytest.mark.parametrize("header", ["", "site_id,name", f"{HEADER},colour", HEADER.replace("city", "town")])
def test_a_file_of_other_columns_is_refused(header: str) -> None:
    [fault] = faults(f"{header}\n{ROW}\n")
    assert fault.startswith("f.csv:1: the columns must be site_id, name,")


def test_what_is_no_csv_is_refused(tmp_path: Path) -> None:
    [fault] = faults(f'{HEADER}\ns1,"人民广场店\n')
    assert fault.startswith("f.csv:2: unexpected end of data")
    file = tmp_path / "f.csv"
    file.write_bytes(HEADER.encode() + b"\n\xff\xfe,\n")
    with file.open(newline="", encoding="utf-8-sig") as opened, pytest.raises(Faulty) as caught:
        sites.read(opened, "f.csv")
    assert "is not UTF-8 text" in str(caught.value)


def test_a_fault_that_the_service_finds_is_told_with_the_line_of_its_site() -> None:
    rows = sites.read(io.StringIO(f"{HEADER}\n{ROW}\n{ROW.replace('s1', 's2')}\n"), "f.csv")
    found = [
        sites._located(rows, "f.csv", path, "is wrong")
        for path in ("sites[1].location.latitude", "sites[0]", "sites[7].name", "request_id")
    ]
    assert [str(fault) for fault in found] == [
        "f.csv:3: location.latitude: is wrong",
        "f.csv:2: is wrong",
        "f.csv:1: sites[7].name: is wrong",
        "f.csv:1: request_id: is wrong",
    ]
