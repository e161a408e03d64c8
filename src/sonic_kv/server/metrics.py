"""Figures for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sonic_kv.server.requests import Outcome
from sonic_kv.server.worker import Worker

HELP = {
    "kv_bytes": "keys and values of all sessions in memory and of replies in the making",
    "kv_limit_bytes": "what they may have",
    "sessions_resident": "states of sessions in memory",
    "requests_waiting": "requests not taken up yet",
    "requests_running": "requests taken up",
    "rows_decoding": "replies being decoded",
}


class _WorkerCollector(Collector):
    """What the worker counts itself, read when asked for."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        for name, value in self._worker.gauges().items():
            yield GaugeMetricFamily(f"sonic_kv_{name}", HELP[name], value)
        family = CounterMetricFamily("sonic_kv_sessions", "what became of sessions", labels=["event"])
        for event, count in sorted(self._worker.counts.items()):
            family.add_metric([event], count)
        yield family


class Metrics:
    """Counts requests and tokens, and times replies."""

    def __init__(self, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_WorkerCollector(worker))
        self._requests = Counter(
            "sonic_kv_requests", "answers by route and status", ["route", "status"], registry=self._registry
        )
        self._tokens = Counter("sonic_kv_tokens", "tokens", ["kind"], registry=self._registry)
        self._first = Histogram(
            "sonic_kv_first_token_seconds", "from a request to its first text", registry=self._registry
        )
        self._whole = Histogram(
            "sonic_kv_reply_seconds", "from a request to the end of its reply", registry=self._registry
        )

    def answered(self, route: str, status: int) -> None:
        """Count an answer; status 0: there was none."""
        self._requests.labels(route, str(status)).inc()

    def first_token(self, seconds: float) -> None:
        """Time a reply's first text."""
        self._first.observe(seconds)

    def replied(self, outcome: Outcome, seconds: float) -> None:
        """Count a reply's tokens and time it."""
        self._tokens.labels("prompt").inc(outcome.prompt_tokens)
        self._tokens.labels("prompt_cached").inc(outcome.cached_tokens)
        self._tokens.labels("completion").inc(outcome.completion_tokens)
        self._whole.observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)
