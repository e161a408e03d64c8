"""The benchmark times what it says; no test depends on how fast this machine is."""

import time

import pytest
from tiny import tiny_model

from sonic_kv.bench import as_json, bench, paired, report
from sonic_kv.config import BenchOptions
from sonic_kv.errors import BudgetError, ConfigError


def test_paired_ratio_is_that_of_the_two_sides() -> None:
    result = paired("slow / quick", lambda: time.sleep(0.02), lambda: time.sleep(0.01), repetitions=5)
    assert 1.5 < result.ratio < 2.5
    assert result.low <= result.ratio <= result.high
    assert result.ms > result.baseline_ms > 9


def test_bench_times_closing_and_decoding_on_a_compressed_cache() -> None:
    results = bench(tiny_model(), BenchOptions(history=96, segment=32, steps=2, repetitions=3))
    assert [result.name.split()[0] for result in results] == ["closing", "closing", "2"]
    assert all(result.ms > 0 and result.baseline_ms > 0 for result in results)
    assert "on 22 entries" in results[2].name  # prefix 4, a fifth of 92
    assert len(report(results).splitlines()) == 5
    assert as_json(results)[0]["ratio"] == results[0].ratio


def test_bench_options_are_checked() -> None:
    with pytest.raises(BudgetError):
        BenchOptions(ratio=1.0)
    with pytest.raises(ConfigError, match="repetitions"):
        BenchOptions(repetitions=1)
    with pytest.raises(ConfigError, match="history"):
        BenchOptions(history=4)
