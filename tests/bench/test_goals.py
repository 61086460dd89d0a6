"""Goals are judged by medians over the rounds, and by ratios within each block."""

from __future__ import annotations

from tests.bench.goals import Gain, Memory, Rate, Rounds, Tail
from tests.bench.paths import Figure

ROUNDS = Rounds(
    {
        "grpcio": [
            {
                "read": Figure(rate=100, p50=2, p99=6),
                "echo": Figure(rate=200),
                "memory": Figure(megabytes=150),
            },
            {"read": Figure(rate=300, p50=2, p99=10), "echo": Figure(rate=1_000), "memory": Figure()},
            {"read": Figure(rate=200, p50=2, p99=8), "echo": Figure(rate=800), "memory": Figure(megabytes=1)},
        ],
        "native": [{"read": Figure(rate=500, p50=1, p99=3), "memory": Figure(megabytes=250)}],
    }
)


def test_a_rate_is_compared_within_each_round() -> None:
    assert Rate("read", 0.5, "echo").verdict(ROUNDS, "grpcio") == "≥ 0.5 × echo: 0.30, MISSED"
    assert Rate("read", 0.3, "echo").verdict(ROUNDS, "grpcio") == "≥ 0.3 × echo: 0.30, met"


def test_other_goals_are_judged_by_medians() -> None:
    assert Gain("read", 2).verdict(ROUNDS, "native") == "≥ 2 × on grpcio: 2.50, met"
    assert Tail("read", 4).verdict(ROUNDS, "grpcio") == "≤ 4 × p50 at p99: 4.00, met"
    assert Memory("memory").verdict(ROUNDS, "native") == "≤ 200 MB: 250.00, MISSED"


def test_what_a_round_did_not_measure_is_not_judged() -> None:
    assert Memory("memory").verdict(ROUNDS, "grpcio") == "≤ 200 MB: not measured"
