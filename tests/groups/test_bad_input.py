"""Bad input gets a precise error and changes nothing: every field of every method, and broken bytes."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.groups.api import METHODS
from tests.contract import refuses_bad_fields, refuses_broken_bytes
from tests.groups.calls import a_region, a_scheme, a_site, at, put_scheme, put_site
from tests.groups.requests import GOOD, fingerprint
from tests.support import Groups, fresh, read_refusal, refused

EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.rsplit("/")[-1])


def test_every_method_has_a_good_request_here() -> None:
    assert set(GOOD) == set(METHODS)


@EACH_METHOD
def test_a_bad_field_is_refused_precisely_and_changes_nothing(groups: Groups, method: str) -> None:
    refuses_bad_fields(groups, method, lambda: GOOD[method](groups), lambda: fingerprint(groups))


@EACH_METHOD
def test_broken_bytes_are_refused_and_change_nothing(groups: Groups, method: str) -> None:
    refuses_broken_bytes(groups, method, GOOD[method](groups), lambda: fingerprint(groups))


@pytest.mark.parametrize(("latitude", "longitude"), [(0, 0), (120.2, 30.3), (-91, 5), (78.2, 31.9)], ids=str)
def test_coordinates_of_nowhere_are_refused_by_every_method_that_takes_them(
    groups: Groups, latitude: float, longitude: float
) -> None:
    location, good = pb.Location(latitude=latitude, longitude=longitude, datum=pb.DATUM_GCJ02), a_region()
    requests: dict[Any, Message] = {
        groups.groups.AssignMember: pb.AssignMemberRequest(
            member_id=fresh("member"), request_id="1", location=location
        ),
        groups.groups.ListNearbyGroups: pb.ListNearbyGroupsRequest(
            member_id=fresh("member"), scheme_id="scheme", location=location
        ),
    }
    for method, request in requests.items():
        with refused(StatusCode.INVALID_ARGUMENT, "LOCATION_INVALID") as refusal:
            groups.call(method, request)
        assert refusal.fields == {"location"}
    wrong = a_site(good)
    wrong.location.CopyFrom(location)
    with refused(StatusCode.INVALID_ARGUMENT, "LOCATION_INVALID") as refusal:
        put_site(groups, wrong)
    assert refusal.fields == {"site.location"}
    batch = pb.BatchPutSitesRequest(request_id=fresh("put"), sites=[a_site(good), wrong])
    with refused(StatusCode.INVALID_ARGUMENT, "LOCATION_INVALID") as refusal:
        groups.call(groups.groups.BatchPutSites, batch)
    assert refusal.fields == {"sites[1].location"}


@pytest.mark.parametrize("degrees", [math.nan, math.inf, 181.0])
def test_what_is_no_number_of_degrees_breaks_the_contract(groups: Groups, degrees: float) -> None:
    wrong = a_site(a_region())
    wrong.location.CopyFrom(at((degrees, 5.0)))
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        put_site(groups, wrong)
    assert refusal.fields == {"site.location.latitude"}


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 990 + "true" + ")" * 990,
        "!" * 1999 + "a",
        "'" + "x" * 1999,
        "facts",
        "nobody.knows == 1",
        "tags.wish.matches('(a+)+$')",
    ],
    ids=lambda expression: expression[:12],
)
def test_a_wild_condition_is_compiled_or_refused_with_its_place(groups: Groups, expression: str) -> None:
    made = a_scheme(threshold=[{"name": "wild", "expression": expression}])
    try:
        put_scheme(groups, made, validate_only=True)
    except grpc.RpcError as error:
        refusal = read_refusal(error)
        assert (refusal.code, refusal.reason) == (StatusCode.INVALID_ARGUMENT, "SCHEME_INVALID")
        assert refusal.fields == {"scheme.threshold[0].expression"}
