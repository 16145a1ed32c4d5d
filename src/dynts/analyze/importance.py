"""How importance is spread over the tokens of traces (arXiv 2601.18383, section 3)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from dynts.analyze.measure import Row
from dynts.errors import DyntsError
from dynts.traces.tokens import TokenizedTrace
from dynts.training.dataset import load_examples
from dynts.training.labels import label_trace
from dynts.training.shards import ShardFolder
from dynts.training.transforms import transform_labels

Array = npt.NDArray[np.float64]

PARTS = 10
"""Equal parts of a trace, by position."""
SHARES = tuple(part / 20 for part in range(21))
"""Of the thinking tokens, the most important first: where the mass that they hold is measured."""
EDGES: Array = np.linspace(-3, 2, 51)
"""Of the histogram: decimal logarithm of importance over the trace's mean. Ends are open."""


def describe_trace(labels: npt.ArrayLike, ids: Sequence[int]) -> Row:
    """Describe how importance is spread over the L thinking tokens of one trace.

    Args:
        labels: [L], not negative; NaN, a token without a label, does not count.
        ids: [L], token ids.

    Returns:
        "tokens": L; "mean": mean importance; "above_mean": share of the tokens above it; "mass": share of all
        importance that the most important tokens hold, for each of `SHARES`; "parts": mean importance over the trace's
        mean, for each tenth of the trace (None where no token has a label); "histogram": tokens between `EDGES`;
        "identities": for each token id how often it occurs, and the sum of its importance over the mean.
    """
    values = np.asarray(labels, dtype=np.float64)
    relative = transform_labels(values, "linear")
    known = ~np.isnan(values)
    ordered = np.concatenate([[0.0], np.cumsum(-np.sort(-values[known]))])
    count = len(ordered) - 1
    logarithms = np.log10(np.maximum(relative[known], 10.0 ** EDGES[0])).clip(EDGES[0], EDGES[-1])
    identities: dict[int, list[float]] = {}
    for token, value in zip(np.asarray(ids)[known].tolist(), relative[known].tolist(), strict=True):
        sums = identities.setdefault(token, [0, 0.0])
        sums[0] += 1
        sums[1] += value
    return {
        "tokens": count,
        "mean": float(values[known].mean()),
        "above_mean": float((relative[known] > 1).mean()),
        "mass": [float(ordered[round(share * count)] / (ordered[-1] or 1.0)) for share in SHARES],
        "parts": [_mean(part) for part in np.array_split(relative, PARTS)],
        "histogram": np.histogram(logarithms, EDGES)[0].tolist(),
        "identities": identities,
    }


def describe_with_question(model: PreTrainedModel, trace: TokenizedTrace, chunk: int = 128) -> Row:
    """Label a trace and describe it, and how important its M question tokens are for the answer.

    Args:
        model: the model whose attention counts.
        trace: the trace.
        chunk: attention rows held at a time, see `label_trace`.

    Returns:
        What `describe_trace` does, and "question": "tokens": M; "mean"; "mass": share of all attention of the answer;
        "above_mean": share of the question tokens above the mean of the thinking tokens; "first_mass": mass of the very
        first token, where many models park attention that they do not need; "parts": as for the thinking, over its
        mean. And "thinking_mass": share of all attention of the answer.
    """
    # a trace without question tokens: those before the thinking are labelled as the thinking is
    whole = replace(trace, question_end=0)
    labels = label_trace(model, whole, ("answer",), chunk=chunk).labels["answer"].double().numpy()
    question, thinking = labels[: trace.question_end], labels[trace.question_end :]
    row = describe_trace(thinking, trace.ids[trace.question_end : trace.thinking_end])
    mean = row["mean"] or 1.0
    row["thinking_mass"] = float(thinking.sum())
    row["question"] = {
        "tokens": len(question),
        "mean": float(question.mean()),
        "mass": float(question.sum()),
        "above_mean": float((question > mean).mean()),
        "first_mass": float(question[0]),
        "parts": [_mean(part / mean) for part in np.array_split(question, PARTS)],
    }
    return row


def describe_shards(folders: Sequence[ShardFolder], label: str) -> Iterator[Row]:
    """Describe each labelled trace that has any such label, read one at a time; see `describe_trace`.

    Args:
        folders: of labelled traces.
        label: its name.

    Raises:
        DyntsError: folders that do not go together, lack that label, or are incomplete or damaged; or no trace has it.
    """
    for folder in folders:
        settings = folder.manifest["settings"]
        if label not in (stored := settings["labels"]):
            raise DyntsError(
                f"{folder.path} holds the labels {', '.join(stored)}, not {label!r}: give --traces and --model, which "
                f"label anew, or label with --labels {','.join([*stored, label])}"
            )
        if settings.get("all_tokens"):
            raise DyntsError(
                f"{folder.path} holds labels of question and answer tokens too, and these figures are of the thinking: "
                "label without --all-tokens, or give --traces and --model"
            )
    examples = load_examples(folders, label, "linear")
    if not examples:
        raise DyntsError(
            f"no trace has a {label} label: they are too short for it; give longer ones, or another --label"
        )
    for example in examples:
        shard = example.folder.read(example.index)
        yield describe_trace(shard.labels[label].numpy(), shard.ids.tolist())


@dataclass(frozen=True, slots=True)
class Importance:
    """Rows of several traces together, every trace counting alike.

    Attributes:
        traces: how many.
        tokens: thinking tokens with a label, of all traces.
        above_mean: mean share of the thinking tokens above their trace's mean.
        above_mean_range: the shares that 10% and 90% of the traces do not exceed.
        mass: share of the importance that the most important tokens hold, by `SHARES`.
        parts: mean importance over the trace's mean, by tenths of the trace; None where no token has a label.
        histogram: share of all tokens between `EDGES`.
        identities: token id, share of all tokens, share of all importance; the latter descending.
        question: means of `describe_with_question`'s figures; None where it was not measured.
    """

    traces: int
    tokens: int
    above_mean: float
    above_mean_range: tuple[float, float]
    mass: list[float]
    parts: list[float | None]
    histogram: list[float]
    identities: list[tuple[int, float, float]]
    question: dict[str, Any] | None

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Importance":
        """Sum up the rows of at least one trace; one at a time is in memory."""
        above, mass, parts, questions = [], [], [], []
        histogram: Array = np.zeros(len(EDGES) - 1)
        counts: dict[int, int] = {}
        sums: dict[int, float] = {}
        for row in rows:
            above.append(row["above_mean"])
            mass.append(row["mass"])
            parts.append(row["parts"])
            histogram += row["histogram"]
            for token, (count, value) in row["identities"].items():
                # JSON has made them text
                counts[int(token)] = counts.get(int(token), 0) + count
                sums[int(token)] = sums.get(int(token), 0.0) + value
            if "question" in row:
                questions.append(
                    {**row["question"], "thinking_mean": row["mean"], "thinking_mass": row["thinking_mass"]}
                )
        tokens, total = sum(counts.values()), sum(sums.values()) or 1.0
        low, high = np.quantile(above, [0.1, 0.9]).tolist()
        return cls(
            traces=len(above),
            tokens=tokens,
            above_mean=float(np.mean(above)),
            above_mean_range=(low, high),
            mass=_means(mass),
            parts=_means(parts),
            histogram=(histogram / tokens).tolist(),
            identities=[
                (token, counts[token] / tokens, sums[token] / total)
                for token in sorted(sums, key=sums.__getitem__)[::-1]
            ],
            question=_question(questions) if questions else None,
        )

    def mass_of(self, share: float) -> float:
        """Return the share of the importance that a share of the thinking tokens, one of `SHARES`, holds."""
        return self.mass[SHARES.index(share)]


def _question(rows: Sequence[Row]) -> dict[str, Any]:
    names = ("tokens", "mean", "mass", "above_mean", "first_mass", "thinking_mean", "thinking_mass")
    found: dict[str, Any] = {name: float(np.mean([row[name] for row in rows])) for name in names}
    found["over_thinking"] = float(np.mean([row["mean"] / (row["thinking_mean"] or 1.0) for row in rows]))
    # without the first token, over the others
    rest = [(row["mass"] - row["first_mass"]) / max(1, row["tokens"] - 1) for row in rows]
    found["rest_over_thinking"] = float(
        np.mean([mean / (row["thinking_mean"] or 1.0) for mean, row in zip(rest, rows, strict=True)])
    )
    found["parts"] = _means([row["parts"] for row in rows])
    return found


def _mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _means(rows: Sequence[Sequence[float | None]]) -> list[Any]:
    """Means over the rows of what is there, None where nothing is."""
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [float(np.mean(column)) if column else None for column in columns]
