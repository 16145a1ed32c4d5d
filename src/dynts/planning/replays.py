"""Replay traces under every setting of a grid, a line for each trace and setting, each on the disk before the next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynts.config import CompressionConfig
from dynts.decode.compress import Session
from dynts.evaluate.replay import replay, with_full_cache
from dynts.store.journal import Journal, read_journal
from dynts.traces.filters import Selected

ROWS_FILE = "replays.jsonl"


@dataclass(frozen=True, slots=True)
class MeasuredReplay:
    """One trace under one setting; see `dynts.evaluate.replay.Replay`.

    Args:
        trace: the trace's id.
        budget: B.
        local_window: W_l.
        retention_ratio: r.
        tokens: of the whole trace.
        thinking_tokens: of its thinking, closing marker included.
        answer_tokens: of its answer.
        kl: mean over the answer tokens, in nats.
        log_likelihood: likewise.
        loss: likewise.
        thinking_loss: mean over the thinking tokens, in nats.
        kept: cached tokens that the first answer token is drawn from.
        peak_tokens: most cached tokens.
        mean_tokens: cached tokens of a decode step, on average.
        compactions: how often tokens were evicted.
    """

    trace: str
    budget: int
    local_window: int
    retention_ratio: float
    tokens: int
    thinking_tokens: int
    answer_tokens: int
    kl: float
    log_likelihood: float
    loss: float
    thinking_loss: float
    kept: int
    peak_tokens: int
    mean_tokens: float
    compactions: int

    @property
    def setting(self) -> CompressionConfig:
        """The setting."""
        return CompressionConfig(self.budget, self.local_window, self.retention_ratio)

    @property
    def trace_loss(self) -> float:
        """By how much log p of thinking and answer as a whole is less than with the full cache, in nats."""
        return self.loss * self.answer_tokens + self.thinking_loss * self.thinking_tokens


class MeasuredReplays:
    """The rows of a folder, by trace and setting; one of a damaged line is measured again."""

    def __init__(self, folder: Path) -> None:
        self.found: dict[tuple[str, CompressionConfig], MeasuredReplay] = {}
        self._journal = Journal(folder / ROWS_FILE)
        if self._journal.path.exists():
            self.found.update(read_journal(self._journal.path, _read))

    def append(self, row: MeasuredReplay) -> None:
        """Write one row through to the disk.

        Raises:
            DyntsError: the disk is full or not writable.
        """
        self._journal.append(asdict(row))
        self.found[row.trace, row.setting] = row


def _read(values: dict[str, Any]) -> tuple[tuple[str, CompressionConfig], MeasuredReplay]:
    row = MeasuredReplay(**values)
    return (row.trace, row.setting), row


def measure(
    sessions: Mapping[CompressionConfig, Session],
    traces: Sequence[Selected],
    rows: MeasuredReplays,
    done: Callable[[Selected, int], None],
) -> None:
    """Measure what the rows lack. The pass with the full cache is made once for each trace.

    Args:
        sessions: of one model and method, by setting.
        traces: what to replay.
        rows: takes what is measured.
        done: called after each trace with the number of settings it was replayed under, those of earlier runs left out.
    """
    for chosen in traces:
        identity, trace = chosen.trace.id, chosen.tokens
        missing = [setting for setting in sessions if (identity, setting) not in rows.found]
        if missing:
            full = with_full_cache(sessions[missing[0]].model, trace)
            for setting in missing:
                found = replay(sessions[setting], trace, full)
                rows.append(
                    MeasuredReplay(
                        trace=identity,
                        budget=setting.budget,
                        local_window=setting.local_window,
                        retention_ratio=setting.retention_ratio,
                        tokens=len(trace.ids),
                        thinking_tokens=len(found.thinking_loss),
                        answer_tokens=len(found.loss),
                        kl=float(found.kl.mean()),
                        log_likelihood=float(found.log_likelihood.mean()),
                        loss=float(found.loss.mean()),
                        # without thinking tokens there is nothing to lose
                        thinking_loss=float(found.thinking_loss.sum()) / max(1, len(found.thinking_loss)),
                        kept=found.kept,
                        peak_tokens=found.peak_tokens,
                        mean_tokens=found.mean_tokens,
                        compactions=found.compactions,
                    )
                )
        done(chosen, len(missing))
