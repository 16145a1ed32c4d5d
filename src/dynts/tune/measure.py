"""Replay traces under every setting of a grid."""

from collections.abc import Callable, Mapping, Sequence

from dynts.config import CompressionConfig
from dynts.decode.compress import Session
from dynts.evaluate.replay import replay, with_full_cache
from dynts.training.filters import Selected
from dynts.tune.rows import Row, Rows


def measure(
    sessions: Mapping[CompressionConfig, Session],
    traces: Sequence[Selected],
    rows: Rows,
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
                    Row(
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
