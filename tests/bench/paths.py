"""How a path is measured: called for a while, with the rows that it committed checked.

What the paths of a service are, its own module says; here is what all have in common, and what they are
compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from tests.bench import echo, load
from tests.bench.site import Served, Site

TPCB, ECHO = "pgbench TPC-B, 16 clients", "bare unary echo, 256 in flight"

IN_FLIGHT = 256
MOST = 25_000  # calls a second that are prepared; who is faster ends earlier


class WrongRows(Exception):
    """A path did not commit exactly what it acknowledged: its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float  # for each path
    scale: int  # of pgbench's tables, above its number of clients
    backlog: int  # events
    savers: int  # members with points to spend
    holders: int  # members with a card


FULL = Plan(rounds=3, seconds=5.0, scale=50, backlog=20_000, savers=2_000, holders=12_000)
QUICK = Plan(rounds=1, seconds=2.0, scale=20, backlog=10_000, savers=500, holders=5_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; times are in milliseconds of waiting and microseconds of CPU a call."""

    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    batch: float | None = None
    service_cpu: float | None = None
    client_cpu: float | None = None
    megabytes: float | None = None


Figures = dict[str, Figure]


def some(made: Iterable[bytes], seconds: float) -> list[bytes]:
    """As many calls as a path may need."""
    return list(itertools.islice(made, int(MOST * seconds)))


def bare_echo(site: Site, front: str, made: Iterable[bytes], seconds: float) -> Figure:
    """What the front is worth."""
    address, token = site.echoes[front], site.token("points")
    return figure(load.run(address, echo.METHOD, made, in_flight=IN_FLIGHT, seconds=seconds, token=token))


def call(
    served: Served, method: str, made: Iterable[bytes], seconds: float, in_flight: int = IN_FLIGHT
) -> load.Result:
    """Calls for a while; none of the calls may be refused. Raises WrongRows."""
    result = load.run(
        *(served.address, served.method(method), made),
        in_flight=in_flight,
        seconds=seconds,
        token=served.token,
    )
    if result.refused:
        raise WrongRows(f"{result.refused} of {result.succeeded + result.refused} {method} were refused")
    return result


def path(
    served: Served,
    method: str,
    made: Iterable[bytes],
    seconds: float,
    *,
    gather: str = "",
    committed: str = "",
    items: int = 1,
    in_flight: int = IN_FLIGHT,
) -> Figure:
    """Measures calls; those that share transactions do so in a gather.

    Of a write the query `committed` counts what is there: a call must add exactly `items`, and figures are
    by item. Raises WrongRows.
    """
    served.quiet()  # what was told before must not cost this path
    before, counted = served.sql(committed) if committed else 0, served.metrics()
    result = call(served, method, made, seconds, in_flight)
    spent = {name: value - counted.get(name, 0) for name, value in served.metrics().items()}
    if committed and (grown := served.sql(committed) - before) != result.succeeded * items:
        raise WrongRows(f"{method}: {result.succeeded * items} were acknowledged, {grown} committed")
    name, batch = f'{{gather="{gather}"}}', None
    if gather:
        batch = spent[f"gather_batch_size_sum{name}"] / spent[f"gather_batch_size_count{name}"]
    return figure(result, items, batch, spent.get("process_cpu_seconds_total"))


def memory(served: Served) -> Figure:
    """What a service holds by now."""
    held = served.metrics().get("process_resident_memory_bytes")
    return Figure(megabytes=held and held / 2**20)


def figure(
    result: load.Result, items: int = 1, batch: float | None = None, cpu: float | None = None
) -> Figure:
    """A run's figures by item; `cpu` is in seconds."""
    return Figure(
        rate=result.rate * items,
        p50=result.quantile(0.5) * 1e3,
        p99=result.quantile(0.99) * 1e3,
        batch=batch,
        service_cpu=cpu and cpu / result.succeeded / items * 1e6,
        client_cpu=result.client_seconds / result.succeeded / items * 1e6,
    )
