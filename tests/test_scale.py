"""The simulation of many sessions, held against what can be worked out without it."""

import runpy
import sys
from math import comb, factorial
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("simpy", reason="pip install 'sonic-kv[scale]'")
RECIPE = Path(__file__).parent.parent / "recipes" / "scale"
SIMULATE = runpy.run_path(str(RECIPE / "simulate.py"))
NUMBERS: dict[str, float] = SIMULATE["assumptions"]()
FULL, SONIC = SIMULATE["kinds"](NUMBERS)[:2]


def cluster(n: dict[str, float], kind: Any, replicas: int, sessions: int) -> Any:
    return SIMULATE["Cluster"](n, kind, replicas, sessions)


def finite_source_wait(places: int, sessions: int, think: float, service: float) -> float:
    """Mean wait for one of `places` exponential servers of `sessions` that think in between (M/M/c//N)."""
    load = service / think
    weights = [
        comb(sessions, k)
        * load**k
        * (1 if k <= places else factorial(k) / factorial(places) / places ** (k - places))
        for k in range(sessions + 1)
    ]
    total = sum(weights)
    waiting = sum((k - places) * w for k, w in enumerate(weights) if k > places) / total
    inside = sum(k * w for k, w in enumerate(weights)) / total
    return waiting / ((sessions - inside) / think)


def test_waiting_for_a_place_is_that_of_the_finite_source_queue() -> None:
    alone = {"token_bytes": 0.0, "weights": 0.0, "user_tokens": 0.0, "token_flops": 0.0}  # decoding alone
    n = NUMBERS | alone | {"max_batch": 3, "step_overhead": 0.02, "think": 10.0}
    expected = finite_source_wait(3, 8, 10.0, 0.02 * n["reply_tokens"])
    found = cluster(n, FULL, 1, 8).run(30000.0, 100.0)
    assert expected > 0.5
    assert found["wait"] == pytest.approx(expected, rel=0.08)
    assert found["sojourn"] - found["wait"] == pytest.approx(0.02 * n["reply_tokens"], rel=0.04)


@pytest.mark.parametrize("dies", [False, True])
def test_every_session_is_thinking_or_in_a_turn(dies: bool) -> None:
    crowd = cluster(NUMBERS, SONIC, 3, 300)
    if dies:
        crowd.env.process(crowd.fail(crowd.up[0], 500.0))
    found = crowd.run(900.0, 250.0)
    assert found["turns"] * (NUMBERS["think"] + found["sojourn"]) == pytest.approx(300, rel=0.06)
    assert len(crowd.up) == 3


def test_replicas_get_even_shares() -> None:
    crowd = cluster(NUMBERS, SONIC, 4, 0)
    numbers = [crowd.route(session).number for session in range(2000)]
    assert all(440 <= numbers.count(number) <= 560 for number in range(4))


def test_a_death_moves_the_dead_replicas_sessions_only_and_reads_them_from_the_store() -> None:
    crowd = cluster(NUMBERS, SONIC, 4, 80)  # few enough that every cache stays where it is
    dead = crowd.up[1]
    before = {session: crowd.route(session) for session in range(80)}
    crowd.env.process(crowd.fail(dead, 500.0))
    crowd.env.run(600.0)
    for session, replica in before.items():
        assert (crowd.route(session) is replica) == (replica is not dead)
    read = [note["start"] for note in crowd.turns if note["read"] and note["first"] > 450.0]
    theirs = sum(replica is dead for replica in before.values())
    assert 0 < len(read) <= theirs


def test_caches_that_fit_are_read_from_nowhere_and_smaller_ones_fit_longer() -> None:
    reads = {kind.name: cluster(NUMBERS, kind, 1, 80).run(600.0, 300.0)["read"] for kind in (FULL, SONIC)}
    assert reads[FULL.name] > 1e8
    assert reads[SONIC.name] < 0.01 * reads[FULL.name]


def test_every_assumption_says_where_it_comes_from() -> None:
    tables = tomllib.loads((RECIPE / "assumptions.toml").read_text(encoding="utf-8"))
    entries = [entry for table in tables.values() for entry in table.values()]
    assert all(set(entry) == {"value", "source"} and len(entry["source"]) > 10 for entry in entries)
    assert len({name for table in tables.values() for name in table}) == len(entries)  # they share one space
