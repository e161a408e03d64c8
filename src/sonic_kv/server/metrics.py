"""Figures for Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sonic_kv.server.requests import Outcome, Request
from sonic_kv.server.worker import Worker

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
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
        self._first = self._timed("first_token", "from a request to its first text")
        self._whole = self._timed("reply", "from a request to the end of its reply")
        self._queued = self._timed("queue", "from a request until it was taken up")
        self._each = self._timed("token", "from one token of a stream to the next, a reply's mean")

    def _timed(self, name: str, help: str) -> Histogram:
        return Histogram(f"sonic_kv_{name}_seconds", help, buckets=SECONDS, registry=self._registry)

    def answered(self, route: str, status: int) -> None:
        """Count an answer; status 0: there was none."""
        self._requests.labels(route, str(status)).inc()

    def failed(self, error: Exception) -> None:
        """Count an error inside a stream, whose status was told before."""
        self._failures.labels(type(error).__name__).inc()

    def replied(
        self, request: Request, outcomes: Sequence[Outcome], seconds: float, first: float | None = None
    ) -> None:
        """Count the tokens of a request's replies, and time them.

        Args:
            seconds: that all of it took.
            first: seconds to the first text, if it was told when it came.
        """
        written = sum(outcome.completion_tokens for outcome in outcomes)
        self._tokens.labels("prompt").inc(outcomes[0].prompt_tokens)
        self._tokens.labels("prompt_cached").inc(outcomes[0].cached_tokens)
        self._tokens.labels("completion").inc(written)
        self._whole.observe(seconds)
        if request.taken is not None:
            self._queued.observe(request.taken - request.since)
        if first is not None:
            self._first.observe(first)
            if written > len(outcomes):
                self._each.observe((seconds - first) / (written / len(outcomes) - 1))

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)
