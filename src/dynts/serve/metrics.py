"""What a server counts, for Prometheus."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters, gauges and histograms of one server.

    What the gauges show, whoever knows it says by their `set_function`, so that it is right whenever it is asked for.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "dynts_requests", "Requests to /v1 by HTTP status; 499: the client left", ["status"], registry=self.registry
        )
        self.failed = self._counter("dynts_failed_completions", "Completions that ended in an error of the model's")
        self.compactions = self._counter("dynts_compactions", "Compactions of a row's KV cache")
        self.evicted_tokens = self._counter("dynts_evicted_tokens", "Tokens evicted from the KV cache")
        self.generated_tokens = self._counter("dynts_generated_tokens", "Generated tokens")
        self.live_kv_tokens = self._gauge("dynts_live_kv_tokens", "Cached tokens of completions under way")
        self.running = self._gauge("dynts_running", "Completions under way")
        self.waiting = self._gauge("dynts_waiting", "Completions waiting for a free row")
        self.queue_time = self._seconds("dynts_queue_seconds", "Time from request to a free row", _WAIT_SECONDS)
        self.time_to_first_token = self._seconds(
            "dynts_time_to_first_token_seconds", "Time from request to a completion's first token", _WAIT_SECONDS
        )
        self.time_per_token = self._seconds(
            "dynts_time_per_token_seconds", "Time from a completion's token to its next", _TOKEN_SECONDS
        )

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry)

    def _seconds(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, meaning, registry=self.registry, buckets=buckets)
