"""Tune a model on traces: choose the traces, replay them under every setting, in a folder that can be continued."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedTokenizerBase

from dynts.chat.options import DEFAULT_CHAT
from dynts.collect.plan import model_files
from dynts.config import MAX_TOKENS, CompressionConfig, ModelSource
from dynts.decode.compress import compress
from dynts.errors import DyntsError
from dynts.methods import Method
from dynts.models import load_model, load_tokenizer
from dynts.planning.frontier import FrontierPoint, frontier
from dynts.planning.replays import MeasuredReplays, measure
from dynts.predictor.model import ImportancePredictor
from dynts.store.lock import hold
from dynts.store.manifest import check_settings, settle
from dynts.store.progress import Display, Tally, describe_counts
from dynts.store.torchrun import this_rank
from dynts.traces.filters import Selected, select_traces
from dynts.traces.sets import TraceSets

BUDGET_SHARES = (0.2, 0.3, 0.4, 0.5)
"""Of the traces' mean length, where no budgets are given."""
WINDOWS = (0.3, 0.4, 0.5)
"""W_l / B; the published ones lie between 0.33 and 0.5 (arXiv 2601.18383, section 5)."""
RATIOS = (0.3, 0.4, 0.5)
"""Retention ratios; 0.3 and 0.4 were published."""


def settings_grid(budgets: Sequence[int], windows: Sequence[float], ratios: Sequence[float]) -> list[CompressionConfig]:
    """Return every combination, small budgets first.

    Args:
        budgets: B, in tokens.
        windows: local windows as shares of the budget.
        ratios: r.

    Raises:
        DyntsError: a value is outside its range.
    """
    for window in windows:
        if not 0 <= window < 1:
            raise DyntsError(f"windows are shares of the budget, at least 0 and below 1, got {window}")
    found = (
        CompressionConfig(budget, round(window * budget), ratio)
        for budget, window, ratio in product(sorted(budgets), windows, ratios)
    )
    return list(dict.fromkeys(found))


def default_budgets(mean_length: float) -> list[int]:
    """Budgets for traces of this mean length."""
    return [round(share * mean_length) for share in BUDGET_SHARES]


MADE_BY = "dynts tune"


@dataclass(frozen=True, slots=True)
class TuneSpec:
    """What is tuned.

    Args:
        source: the model.
        method: what chooses the tokens.
        predictor: folder or Hub id of the importance predictor, where the method needs one.
        budgets: B of the settings tried; None for shares of the traces' mean length.
        windows: W_l / B.
        ratios: r.
        limit: replay the first fit traces only, this many.
        max_tokens: longer traces are dropped.
        keep_incorrect: keep traces whose answer is wrong or cannot be graded.

    Raises:
        DyntsError: a value is outside its range.
    """

    source: ModelSource
    method: Method
    predictor: str | None = None
    budgets: Sequence[int] | None = None
    windows: Sequence[float] = WINDOWS
    ratios: Sequence[float] = RATIOS
    limit: int = 100
    max_tokens: int = MAX_TOKENS
    keep_incorrect: bool = False

    def __post_init__(self) -> None:
        settings_grid(self.budgets or [MAX_TOKENS], self.windows, self.ratios)

    def settings(self, sets: TraceSets) -> dict[str, Any]:
        """Return what determines a measured replay; which settings and how many traces there are does not."""
        return {
            "kind": "tune",
            **self.source.settings(),
            "model_files": model_files(self.source.name),
            "attn_implementation": self.source.attention,
            "method": {"name": type(self.method).__name__, **asdict(self.method)},  # type: ignore[call-overload]
            "predictor": self.predictor,
            "predictor_files": None if self.predictor is None else model_files(self.predictor),
            "max_tokens": self.max_tokens,
            "keep_incorrect": self.keep_incorrect,
            "traces_sha256": sets.sha256,
            **({"chat": self.source.chat.settings()} if self.source.chat != DEFAULT_CHAT else {}),
        }


def tune(spec: TuneSpec, sets: TraceSets, out: Path, display: Display) -> list[FrontierPoint]:
    """Replay the traces under every setting.

    The same call on the same folder continues, also with other settings to try.

    Args:
        spec: what is tuned.
        sets: the traces.
        out: the folder.
        display: shows how far it is.

    Returns:
        The settings tried, small budgets first.

    Raises:
        DyntsError: a bad setting or file, no fit trace, a folder with other settings or in use, a full disk.
    """
    rank = this_rank()
    if rank.world > 1:
        raise DyntsError("dynts tune runs in one process: start it without torchrun; --device auto spreads the model")
    tokenizer = load_tokenizer(spec.source)
    traces = choose_traces(spec, sets, tokenizer)
    grid = _grid(spec, traces)
    predictor = None if spec.predictor is None else ImportancePredictor.from_pretrained(spec.predictor)
    tally = Tally(total=len(traces))
    with hold(out, rank, MADE_BY) as held:

        def done(trace: Selected, replayed: int) -> None:
            tally.done += 1
            tally.started_with += not replayed
            tally.tokens += replayed * len(trace.tokens.ids)
            held.note(**tally.figures())
            display.update(tally)

        check_settings(out, spec.settings(sets), MADE_BY)
        rows = MeasuredReplays(out)
        if any((trace.trace.id, setting) not in rows.found for trace in traces for setting in grid):
            model, _ = load_model(spec.source)
            markers = spec.source.chat.format(tokenizer)
            sessions = {
                setting: compress(model, spec.method, setting, predictor, tokenizer=tokenizer, markers=markers)
                for setting in grid
            }
            # not before: a folder must not be claimed for a model or predictor that turns out to be unfit
            settle(out, spec.settings(sets), MADE_BY, {})
            measure(sessions, traces, rows, done)
    return frontier(rows.found.values(), grid, [trace.trace.id for trace in traces])


def choose_traces(spec: TuneSpec, sets: TraceSets, tokenizer: PreTrainedTokenizerBase) -> list[Selected]:
    """Return the first fit traces, see `dynts.traces.filters.select_traces`.

    Args:
        spec: how many, and which are fit.
        sets: the traces.
        tokenizer: of the model.

    Raises:
        DyntsError: there is none.
    """
    found: list[Selected] = []
    dropped: Counter[str] = Counter()
    options = {"max_tokens": spec.max_tokens, "keep_incorrect": spec.keep_incorrect, "chat": spec.source.chat}
    with closing(select_traces(sets, tokenizer, **options)) as judged:  # type: ignore[arg-type,type-var]
        for trace in judged:
            if isinstance(trace, str):
                dropped[trace] += 1
                continue
            found.append(trace)
            if len(found) == spec.limit:
                break
    if not found:
        raise DyntsError(f"no trace is fit to be replayed; dropped: {describe_counts(dropped)}")
    return found


def _grid(spec: TuneSpec, traces: Sequence[Selected]) -> list[CompressionConfig]:
    """The settings to try: those asked for, or those around the traces' length that have room for every question.

    Raises:
        DyntsError: one that was asked for, or the roomiest of the others, is too small for a question.
    """
    longest = max(trace.tokens.question_end for trace in traces)
    budgets = spec.budgets or default_budgets(mean(len(trace.tokens.ids) for trace in traces))
    grid = settings_grid(budgets, spec.windows, spec.ratios)
    if spec.budgets is None:
        grid = [setting for setting in grid if setting.selected_tokens(longest) >= 1] or grid[-1:]
    for setting in grid:
        setting.check_question(longest)
    return grid
