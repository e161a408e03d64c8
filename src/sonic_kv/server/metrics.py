"""Figures for Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sonic_kv.server.requests import Outcome
from sonic_kv.server.worker import Worker

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)  # of histograms
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
        self._failures = Counter(
            "sonic_kv_stream_errors", "streams that ended with an error", ["error"], registry=self._registry
        )
        self._tokens = Counter("sonic_kv_tokens", "tokens", ["kind"], registry=self._registry)
        self._first = Histogram(
            "sonic_kv_first_token_seconds",
            "from a request to its first text",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._whole = Histogram(
            "sonic_kv_reply_seconds",
            "from a request to the end of its reply",
            buckets=SECONDS,
            registry=self._registry,
        )

    def answered(self, route: str, status: int) -> None:
        """Count an answer; status 0: there was none."""
        self._requests.labels(route, str(status)).inc()

    def failed(self, error: Exception) -> None:
        """Count an error inside a stream, whose status was told before."""
        self._failures.labels(type(error).__name__).inc()

    def first_token(self, seconds: float) -> None:
        """Time a reply's first text."""
        self._first.observe(seconds)

    def replied(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Count the tokens of a request's replies, and time them."""
        self._tokens.labels("prompt").inc(outcomes[0].prompt_tokens)
        self._tokens.labels("prompt_cached").inc(outcomes[0].cached_tokens)
        self._tokens.labels("completion").inc(sum(outcome.completion_tokens for outcome in outcomes))
        self._whole.observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)
