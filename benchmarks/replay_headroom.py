r"""What would be left of the loss under a budget if the predictor knew everything: real traces replayed by their true
labels.

    python benchmarks/replay_headroom.py --model DIR --gguf-file FILE --predictor DIR --predictor DIR --shards DIR \
        --traces FILE --out docs/results

The same replay as in `replay_fidelity.py`. Beside trained predictors and h2o, tokens are chosen by their own future
label: one set for all heads and one for each, with question and answer kept as the paper does, and with nothing kept
but what the label says and the local window. Writes replay_headroom.json (after each trace: the same command continues)
and replay_headroom.md.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from replay_fidelity import cell, finished_traces
from resumed_rows import read_rows, write_rows
from rich.progress import track
from transformers import PreTrainedModel

import dynts
from dynts.cache.method import Granularity
from dynts.collect.plan import model_files
from dynts.config import CompressionConfig, ModelSource
from dynts.decode.arm import Arm, make_arms
from dynts.evaluate.replay import replay, with_full_cache
from dynts.methods import H2O, Method
from dynts.models import load_model
from dynts.predictor.model import ImportancePredictor
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.traces.sets import as_sets
from dynts.traces.tokens import TokenizedTrace
from dynts.training.labels import label_trace

if TYPE_CHECKING:
    from dynts.cache.slots import Slots

LABEL = "future-native"
FIGURES = {"kl": "KL", "thinking_loss": "thinking"}


@dataclass
class TrueLabel(Method):
    """Keep the tokens that the rest of the trace will attend to most; no method can know that.

    Args:
        table: [layers, KV heads, tokens], or [1, 1, tokens] for one set of all heads.
        granularity: as the table is.
        protect_question: keep the question too.
    """

    table: torch.Tensor
    granularity: Granularity = "native"
    protect_question: bool = True

    def score(self, slots: "Slots") -> torch.Tensor:
        """The labels; those without one are of the last tokens, which the local window keeps."""
        return slots.lookup_native(self.table[:, None])


@dataclass
class TrueLabelAndAnswer(TrueLabel):
    """The same with the answer's tokens above all others, as in DynTS."""

    protect_answer: ClassVar[bool] = True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "traces"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--predictor", action="append", required=True, help="repeatable")
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--gguf-file")
    parser.add_argument("--count", type=int, default=16, help="the first fit traces, right or wrong")
    parser.add_argument("--shards", type=Path, required=True, help="those that the predictors were trained on")
    parser.add_argument("--budget", type=int, default=224)
    parser.add_argument("--window", type=float, default=0.3, help="local window as a share of the budget")
    parser.add_argument("--retention-ratio", type=float, default=0.4)
    arguments = parser.parse_args()
    schedule = CompressionConfig(
        arguments.budget, round(arguments.window * arguments.budget), arguments.retention_ratio
    )
    model, tokenizer = load_model(ModelSource(arguments.model, gguf_file=arguments.gguf_file))
    predictors = {name: ImportancePredictor.from_pretrained(name) for name in arguments.predictor}
    sets = as_sets(arguments.traces)
    settings = {
        "model": arguments.gguf_file or Path(arguments.model).name,
        "predictors": [model_files(name) for name in arguments.predictor],
        "traces_sha256": sets.sha256,
        "budget": schedule.describe(),
        "torch": torch.__version__,
    }
    path = arguments.out / "replay_headroom.json"
    rows = read_rows(path, settings)
    config = next(iter(predictors.values())).config
    traces = finished_traces(sets, tokenizer, arguments.count, schedule, arguments.shards, config)
    for trace in track(traces):
        if trace.trace.id in rows:
            continue
        full = with_full_cache(model, trace.tokens)
        found = {}
        for name, item in (_known(predictors) | _true(model, trace.tokens)).items():
            session = dynts.compress(model, item.method, schedule, item.predictor, tokenizer=tokenizer)
            result = replay(session, trace.tokens, full)
            if result.compactions:
                found[name] = {
                    "kl": float(result.kl.mean()),
                    "thinking_loss": float(result.thinking_loss.mean()),
                }
        rows[trace.trace.id] = found
        write_rows(path, settings, rows)
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, [rows[trace.trace.id] for trace in traces])))


def _known(predictors: dict[str, ImportancePredictor]) -> dict[str, Arm]:
    """What can be had: predictors, and the best method without one."""
    configs = {folder: predictor.config for folder, predictor in predictors.items()}
    names = ["dynts", "dynts-all"] if any(config.all_tokens for config in configs.values()) else ["dynts"]
    arms = make_arms(names, ["shared", "native"], configs, protect_question=False)
    kept = H2O(granularity="native", protect_question=True)
    return {
        **{arm.name(): replace(arm, predictor=predictors[str(arm.predictor)]) for arm in arms},
        "h2o, native": Arm(kept),
        "h2o, native, as published": Arm(replace(kept, protect_question=False)),
    }


def _true(model: PreTrainedModel, tokens: TokenizedTrace) -> dict[str, Arm]:
    """What could be had with the true label of every token, question and answer among them."""
    whole = replace(tokens, question_end=0, thinking_end=len(tokens.ids))
    each = label_trace(model, whole, (LABEL,)).labels[LABEL].permute(1, 2, 0)
    tables: dict[str, tuple[Granularity, torch.Tensor]] = {
        "true future label": ("shared", each.mean(dim=(0, 1), keepdim=True)),
        "true future label, native": ("native", each),
    }
    rules = {"": (TrueLabelAndAnswer, True), ", question and answer by label": (TrueLabel, False)}
    return {
        f"{name}{suffix}": Arm(method(table, granularity, protect))
        for suffix, (method, protect) in rules.items()
        for name, (granularity, table) in tables.items()
    }


def _page(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    rows = [row for row in rows if row]
    cells = [[name, *(cell([row[name] for row in rows], figure) for figure in FIGURES)] for name in rows[0]]
    lines = [
        "# What the true labels would give",
        "",
        f"Made by `benchmarks/replay_headroom.py`; {settings['model']}, {len(rows)} held-out traces that reach the "
        f"budget; {settings['budget']}. In nats a token (standard error): KL of the answer from the full cache, and by "
        "how much log p of the thinking's tokens falls. dynts and the true label keep question and answer, where "
        "nothing else is said.",
        "",
        markdown_table(["method", *FIGURES.values()], cells),
        f"torch {settings['torch']}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
