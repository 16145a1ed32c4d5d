"""What the budget did since an engine started, for programs and for its server's /metrics."""

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(slots=True)
class Counters:
    """Of one scheduler.

    Attributes:
        compactions: how often a request reached the budget.
        evicted_tokens: tokens evicted, over all requests.
        live_tokens: tokens cached for the requests of the latest step.
        peak_requests: most requests in a step.
        preemptions: requests that had to be computed anew.
    """

    compactions: int = 0
    evicted_tokens: int = 0
    live_tokens: int = 0
    peak_requests: int = 0
    preemptions: int = 0

    def note_step(self, requests: int, live_tokens: int, compactions: int, evicted_tokens: int) -> None:
        """Count a step that was scheduled.

        Args:
            requests: that it feeds.
            live_tokens: that they hold.
            compactions: after it.
            evicted_tokens: by these compactions.
        """
        self.compactions += compactions
        self.evicted_tokens += evicted_tokens
        self.live_tokens = live_tokens
        self.peak_requests = max(self.peak_requests, requests)
        metrics = _prometheus()
        metrics["live_tokens"].set(live_tokens)
        if compactions:
            metrics["compactions"].inc(compactions)
            metrics["evicted_tokens"].inc(evicted_tokens)


@cache
def _prometheus() -> dict[str, Any]:
    """Metrics in the process's registry.

    A server's /metrics shows them where PROMETHEUS_MULTIPROC_DIR joins the engine's processes.
    """
    from prometheus_client import Counter, Gauge

    return {
        "compactions": Counter("dynts_compactions", "Times that a request reached the KV cache budget"),
        "evicted_tokens": Counter("dynts_evicted_tokens", "Tokens evicted from the KV cache"),
        "live_tokens": Gauge("dynts_live_tokens", "Tokens in the KV cache", multiprocess_mode="livesum"),
    }
