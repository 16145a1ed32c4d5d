"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest


class Metrics:
    """Counters and gauges of one server; `live_kv_tokens` counts the rows that are still generating."""

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
        self.waiting = self._gauge("dynts_waiting", "Completions waiting for a batch")

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry)
