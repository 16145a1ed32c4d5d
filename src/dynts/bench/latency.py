"""Throughput and waiting times of streams, those of short and of long requests apart."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from dynts.bench.serving import Batching, Served
from dynts.bench.stream import Reception


@dataclass(frozen=True, slots=True)
class Percentiles:
    """What half, 95 and 99 of 100 values do not exceed."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Percentiles | None":
        """Return the percentiles of the values that there are; None if there are none."""
        known = [value for value in values if value is not None]
        return cls(*map(float, np.percentile(known, (50, 95, 99)))) if known else None


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long requests waited.

    Attributes:
        requests: how many, those that failed included.
        first_seconds: from a request's coming to its first token, the time in a queue included.
        token_seconds: of each token after the first, a request's average.
    """

    requests: int
    first_seconds: Percentiles | None
    token_seconds: Percentiles | None

    @classmethod
    def of(cls, receptions: Sequence[Reception]) -> "Waiting":
        """Return how long these requests waited; those that failed give no times."""
        answered = [reception for reception in receptions if reception.failure is None]
        return cls(
            len(receptions),
            Percentiles.of(reception.first_seconds for reception in answered),
            Percentiles.of(reception.token_seconds for reception in answered),
        )


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """An engine on a stream.

    Attributes:
        engine: its name.
        batching: how it joined requests; None where nothing is known of it.
        budget: most cached tokens of a row, if known.
        rows: at a time, if known.
        seconds: from the beginning of the stream to its last token.
        failures: requests that failed, by reason.
        asked_tokens: mean of what the requests asked for.
        got_tokens: mean of what they got, those that failed left out.
        tokens_per_second: of all requests, over the seconds.
        requests_per_second: that did not fail.
        waiting: "all", and apart the "short" ones, which ask for no more tokens than the median, and the "long" ones.
        dead_rows: see `dynts.bench.serving.Served`.
        remark: likewise.
    """

    engine: str
    batching: Batching | None
    budget: int | None
    rows: int | None
    seconds: float
    failures: dict[str, int]
    asked_tokens: float
    got_tokens: float
    tokens_per_second: float
    requests_per_second: float
    waiting: dict[str, Waiting]
    dead_rows: float | None
    remark: str | None

    def remarks(self) -> list[str]:
        """Return what is to be known beside the figures, a line each."""
        failed = [f"{self.engine}: {count} requests failed: {reason}" for reason, count in self.failures.items()]
        return [*([] if self.remark is None else [self.remark]), *failed]


def summarize_stream(served: Served) -> StreamSummary:
    """Sum up a stream that has been served."""
    found = served.receptions
    answered = [reception for reception in found if reception.failure is None]
    middle = median(reception.asked.generated for reception in found)
    groups = {
        "all": found,
        "short": [reception for reception in found if reception.asked.generated <= middle],
        "long": [reception for reception in found if reception.asked.generated > middle],
    }
    seconds = max((reception.last for reception in found), default=0.0)
    return StreamSummary(
        engine=served.engine,
        batching=served.batching,
        budget=served.budget,
        rows=served.rows,
        seconds=seconds,
        failures=dict(Counter(reception.failure for reception in found if reception.failure is not None)),
        asked_tokens=fmean(reception.asked.generated for reception in found),
        got_tokens=fmean(reception.tokens for reception in answered) if answered else 0.0,
        tokens_per_second=sum(reception.tokens for reception in found) / seconds if seconds else 0.0,
        requests_per_second=len(answered) / seconds if seconds else 0.0,
        waiting={name: Waiting.of(group) for name, group in groups.items() if group},
        dead_rows=served.dead_rows,
        remark=served.remark,
    )
