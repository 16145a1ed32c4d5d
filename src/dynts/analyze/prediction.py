"""How well a predictor orders the tokens of labelled traces, beside trivial predictors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dynts.errors import DyntsError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.training.dataset import Example, load_examples, split_by_question
from dynts.training.metrics import METRICS, average, baseline_scores, by_group, top_overlap, trace_metrics
from dynts.training.shards import ShardFolder
from dynts.training.transforms import by_head, labelled, transform_labels

Array = npt.NDArray[np.float64]

PREDICTOR = "predictor"
SHARES = tuple(part / 20 for part in range(1, 11))
"""Of the tokens, for the overlap of predicted and true top sets: 5% to 50%."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
BINS = 20
"""Of equally many tokens each, for the calibration."""
Split = Literal["auto", "held-out", "all"]
_MODEL = ("model_type", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True, slots=True)
class Fold:
    """Traces to analyse, and others of other questions for trivial predictors to learn from."""

    analysed: list[Example]
    others: list[Example]


def choose_traces(
    folders: Sequence[ShardFolder], config: PredictorConfig, split: Split = "auto", group_by: str | None = None
) -> tuple[list[Fold], str]:
    """Choose the traces to analyse.

    Args:
        folders: of labelled traces.
        config: the predictor's.
        split: "held-out": the traces that were held out when the predictor was trained, and the training traces as the
            others. "all": all traces, in two folds that are each other's others. "auto": "held-out" if these are the
            traces that the predictor was trained on, else "all".
        group_by: a column of the traces, or "folder".

    Returns:
        The folds, and what they are in words.

    Raises:
        DyntsError: shards of another model or without the predictor's label, no such column, fewer than two questions,
            or the held-out traces cannot be told from the others.
    """
    for folder in folders:
        _check_model(folder, config)
    examples = load_examples(folders, config.label, config.transform, group_by)
    training = config.training
    same = training.get("traces_sha256") == ", ".join(
        folder.manifest["settings"]["traces_sha256"] for folder in folders
    )
    if split == "held-out" and not same:
        raise DyntsError(
            "the predictor was not trained on these traces, so none of them was held out: give the shards that it was "
            "trained on, or --split all"
        )
    if split == "all" or not same:
        halves = split_by_question(examples, 0.5, 0)
        seen = "its training traces among them" if same else "none of which it was trained on, going by the trace file"
        return [Fold(*halves), Fold(*halves[::-1])], f"all {len(examples)} traces, {seen}"
    others, held_out = split_by_question(examples, training["held_out"], training["seed"])
    if (len(others), len(held_out)) != (training["train_traces"], training["held_out_traces"]):
        raise DyntsError(
            f"the predictor was trained on {training['train_traces']} of these traces with "
            f"{training['held_out_traces']} held out, the shards hold {len(examples)}: give the shards that it was "
            "trained on, or --split all"
        )
    return [Fold(held_out, others)], f"the {len(held_out)} traces that were held out when it was trained"


def _check_model(folder: ShardFolder, config: PredictorConfig) -> None:
    """Refuse shards of another model than the predictor's."""
    settings = folder.manifest["settings"]
    there = settings["fingerprint"]
    recorded = {"hidden_size": config.hidden_size, **config.fingerprint}
    for name in _MODEL:
        if name in recorded and recorded[name] != there[name]:
            raise DyntsError(
                f"the predictor was trained for a model with {name} {recorded[name]!r}, {folder.path} was labelled "
                f"with one that has {there[name]!r} ({settings['model']}): label the traces with {config.base_model}"
            )
    ours, theirs = (found.get("embedding_sample") for found in (recorded, there))
    # another dtype or a quantisation moves the values a little, another model has others altogether
    if (
        ours
        and theirs
        and np.shape(ours) == np.shape(theirs)
        and np.corrcoef(np.ravel(ours), np.ravel(theirs))[0, 1] < 0.9
    ):
        raise DyntsError(
            f"{folder.path} was labelled with another model of the same shape ({settings['model']}): label the traces "
            f"with {config.base_model}, which the predictor was trained for"
        )


@dataclass(frozen=True, slots=True)
class Bin:
    """Tokens with similar scores.

    Attributes:
        score: their mean predicted score.
        target: their mean transformed label.
        rank: their mean label rank within their trace, over its length.
        low: label rank that 10% of them do not exceed.
        high: likewise 90%.
    """

    score: float
    target: float
    rank: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Quality of a predictor and of the trivial ones, by name; every trace counts alike.

    Attributes:
        traces: how many.
        metrics: means of `METRICS` over the traces.
        quantiles: of each metric over the traces, at `QUANTILES`.
        taus: Kendall tau of each trace.
        overlaps: mean overlap of predicted and true top sets, at `SHARES`.
        calibration: of the predictor: tokens of all traces, in every layer and head that is scored by itself, in `BINS`
            bins.
        groups: `metrics` by group; empty if the traces were not grouped.
        group_traces: traces of each group.
    """

    traces: int
    metrics: dict[str, dict[str, float]]
    quantiles: dict[str, dict[str, list[float]]]
    taus: dict[str, list[float]]
    overlaps: dict[str, list[float]]
    calibration: list[Bin]
    groups: dict[str, dict[str, dict[str, float]]]
    group_traces: dict[str, int]


def measure_prediction(
    predictor: ImportancePredictor,
    folds: Sequence[Fold],
    *,
    grouped: bool = False,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
) -> Prediction:
    """Measure a predictor on the analysed traces of each fold; the trivial predictors learn from its others.

    One trace is in memory at a time, and three numbers a score.

    Args:
        predictor: on any device.
        folds: traces to analyse and to learn from.
        grouped: whether the traces carry groups.
        seed: of the random predictor.
        done: called after each trace.

    Raises:
        DyntsError: a shard is missing or damaged.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    overlaps: dict[str, list[list[float]]] = {}
    pooled: list[Array] = []
    for targets, scores in _scored(predictor, folds, seed):
        known = labelled(targets)
        labels = targets[known]
        for name, predicted in scores.items():
            rows.setdefault(name, []).append(trace_metrics(predicted, targets))
            overlaps.setdefault(name, []).append([_overlap(predicted[known], labels, share) for share in SHARES])
        own = (scores[PREDICTOR][known], labels, transform_labels(labels, "rank"))
        pooled.append(np.stack([values.ravel() for values in own]))
        done()
    groups = [example.group for fold in folds for example in fold.analysed] if grouped else []
    return Prediction(
        traces=len(rows[PREDICTOR]),
        metrics={name: average(values) for name, values in rows.items()},
        quantiles={name: _quantiles(values) for name, values in rows.items()},
        taus={name: [row["kendall_tau"] for row in values] for name, values in rows.items()},
        overlaps={name: np.mean(values, axis=0).tolist() for name, values in overlaps.items()},
        calibration=_calibrate(*np.concatenate(pooled, axis=1)),
        groups=by_group(rows, groups),
        group_traces={group: groups.count(group) for group in sorted(set(groups))},
    )


@torch.no_grad()
def _scored(predictor: ImportancePredictor, folds: Sequence[Fold], seed: int) -> Iterator[tuple[Array, dict[str, Any]]]:
    """Targets of each analysed trace, and its scores by predictor."""
    for fold in folds:
        learned, analysed = ((example.read() for example in side) for side in (fold.others, fold.analysed))
        for tokens, trivial in baseline_scores(learned, analysed, seed):
            own = predictor(tokens.hidden, native=tokens.targets.ndim > 1).cpu().double().numpy()
            yield tokens.targets, {PREDICTOR: own, **trivial}


def _overlap(scores: Array, labels: Array, share: float) -> float:
    """Of one top set, or the mean over those of all layers and heads."""
    heads = zip(by_head(scores), by_head(labels), strict=True)
    return float(np.mean([top_overlap(*head, share) for head in heads]))


def _quantiles(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: np.quantile([row[name] for row in rows], QUANTILES).tolist() for name in METRICS}


def _calibrate(scores: Array, targets: Array, ranks: Array) -> list[Bin]:
    order = np.argsort(scores, kind="stable")
    bins = []
    for chosen in np.array_split(order, min(BINS, len(order))):
        low, high = np.quantile(ranks[chosen], [0.1, 0.9]).tolist()
        score, target, rank = (float(values[chosen].mean()) for values in (scores, targets, ranks))
        bins.append(Bin(score, target, rank, low, high))
    return bins
