"""Labelled traces as training examples, split by question. Nothing of a trace's tokens stays in memory."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dynts.errors import DyntsError
from dynts.predictor.label import looks_ahead
from dynts.training.shards import ShardFolder
from dynts.training.transforms import labelled, transform_labels

FOLDER_COLUMN = "folder"
"""The column that every trace has: the name of its folder of shards."""
_NO_VALUE = "none"
_SAMPLE = "embedding_sample"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The T stored tokens of one trace.

    Args:
        hidden: hidden states [T, d] in the stored dtype.
        positions: int64 [T], places among the labelled tokens.
        ids: int64 [T], token ids.
        targets: float64 [T], or [T, layers, KV heads]: transformed labels; NaN where there is none.
    """

    hidden: torch.Tensor
    positions: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Example:
    """One trace; its tokens are read from disk each time that they are needed.

    Args:
        folder: of the shard.
        index: of the shard.
        label: which of its labels to predict.
        transform: how that label is scaled.
        question: key of the question.
        known: stored tokens that have this label.
        heads: full-attention layers and KV heads that have labels of their own; (1, 1) for one label of all together.
        group: its value of the column that results are grouped by.
    """

    folder: ShardFolder
    index: int
    label: str
    transform: str
    question: str
    known: int
    heads: tuple[int, int] = (1, 1)
    group: str = _NO_VALUE

    def read(self) -> Tokens:
        """Read the tokens; hidden states are memory-mapped.

        Raises:
            DyntsError: the shard is missing or damaged.
        """
        shard = self.folder.read(self.index)
        rows = shard.rows.numpy()
        targets = transform_labels(shard.labels[self.label].numpy(), self.transform)[rows]
        return Tokens(shard.hidden, rows, shard.ids.numpy()[rows], targets)


def load_examples(
    folders: Sequence[ShardFolder], label: str, transform: str, group_by: str | None = None
) -> list[Example]:
    """Read all traces of folders that were labelled with one model; those too short to have any label are left out.

    Args:
        folders: of labelled traces.
        label: which stored label to predict.
        transform: one of `TRANSFORMS`.
        group_by: a column of the traces ("subject", say), or "folder".

    Raises:
        DyntsError: folders that do not go together, lack that label or that column, or are incomplete or damaged.
    """
    _check_together(folders, label)
    names = [folder.path.name for folder in folders]
    examples, columns = [], {FOLDER_COLUMN}
    for folder, name in zip(folders, names, strict=True):
        _check_complete(folder, label)
        for index in folder.indices:
            shard = folder.read(index)
            labels = shard.labels[label].numpy()
            known = int(labelled(labels)[shard.rows.numpy()].sum())
            if known == 0:
                continue
            columns |= shard.info.keys()
            heads = (labels.shape[1], labels.shape[2]) if labels.ndim > 1 else (1, 1)
            values = {**shard.info, FOLDER_COLUMN: name if names.count(name) == 1 else str(folder.path)}
            group = _NO_VALUE if group_by is None else values.get(group_by, _NO_VALUE)
            examples.append(Example(folder, index, label, transform, shard.info["question"], known, heads, group))
    if group_by is not None and group_by not in columns:
        raise DyntsError(
            f"no trace has the column {group_by!r} to group by, there are {', '.join(sorted(columns))}: "
            "give the traces that field and label them into a new folder"
        )
    return examples


def split_by_question(examples: Sequence[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split examples into those to train on and those held out; all traces of a question fall on the same side.

    Questions are ordered by a seeded hash, so the split hardly changes when traces are added or removed.

    Args:
        examples: of one or several folders.
        held_out: share of the questions to hold out.
        seed: of the split.

    Raises:
        DyntsError: the share is not between 0 and 1, or a side would be empty.
    """
    if not 0 < held_out < 1:
        raise DyntsError(f"held_out must lie between 0 and 1, both excluded, got {held_out}")
    questions = sorted(
        {example.question for example in examples}, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()
    )
    count = max(1, round(held_out * len(questions)))
    if len(questions) <= count:
        raise DyntsError(
            f"{len(questions)} questions cannot be split into training and held-out ones: label more traces"
        )
    chosen = set(questions[:count])
    return (
        [example for example in examples if example.question not in chosen],
        [example for example in examples if example.question in chosen],
    )


def _check_together(folders: Sequence[ShardFolder], label: str) -> None:
    """Refuse to mix hidden states of different models, or labels of different meaning."""
    first, *others = folders
    paths = [folder.path.resolve() for folder in folders]
    for index, other in enumerate(others, start=1):
        if paths[index] in paths[:index]:
            raise DyntsError(f"{other.path} was given twice: give each folder of shards once")
        ours, theirs = (_meaning(folder, label) for folder in (first, other))
        differing = sorted(name for name in {*ours, *theirs} if not _agree(ours.get(name), theirs.get(name)))
        if differing:
            details = "; ".join(
                name if name == _SAMPLE else f"{name}: {ours.get(name)} and {theirs.get(name)}" for name in differing
            )
            raise DyntsError(
                f"{first.path} and {other.path} differ ({details}): "
                "mix only folders that were labelled with the same model and settings"
            )


def _meaning(folder: ShardFolder, label: str) -> dict[str, object]:
    settings = folder.manifest["settings"]
    window = {"future_window": settings["future_window"]} if looks_ahead([label]) else {}
    scope = {"all_tokens": settings.get("all_tokens", False)}
    return {**settings["fingerprint"], "think_markers": settings["think_markers"], **scope, **window}


def _agree(ours: object, theirs: object) -> bool:
    """Return whether two values are equal; samples of embeddings may differ by what another dtype rounds."""
    if isinstance(ours, list) and isinstance(theirs, list) and np.shape(ours) == np.shape(theirs):
        return bool(np.allclose(ours, theirs, rtol=1e-2, atol=1e-3))
    return ours == theirs


def _check_complete(folder: ShardFolder, label: str) -> None:
    stored = folder.manifest["settings"]["labels"]
    if label not in stored:
        raise DyntsError(
            f"{folder.path} holds the labels {', '.join(stored)}, not {label!r}: label again with --labels {label}"
        )
    missing = sum(not folder.file(index).exists() for index in folder.indices)
    if missing:
        raise DyntsError(
            f"{folder.path} is incomplete, {missing} of {len(folder.indices)} shards are missing: "
            "run the `dynts label` command that made it again to complete it"
        )
