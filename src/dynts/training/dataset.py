"""Labelled traces as training examples, split by question."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dynts.errors import DyntsError
from dynts.training.shards import ShardFolder
from dynts.training.transforms import transform_labels


@dataclass(frozen=True, slots=True)
class Example:
    """The T stored thinking tokens of one trace; their hidden states stay on disk.

    Args:
        index: of the shard.
        question: key of the question.
        positions: int64 [T], places among the thinking tokens.
        ids: int64 [T], token ids.
        targets: float64 [T], transformed labels; NaN where there is none.
    """

    index: int
    question: str
    positions: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.float64]


def load_examples(folder: ShardFolder, label: str, transform: str) -> list[Example]:
    """Read everything but the hidden states; traces too short to have any label are left out.

    Raises:
        DyntsError: the folder lacks that label, or is incomplete or damaged.
    """
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
    examples = []
    for index in folder.indices:
        shard = folder.read(index)
        rows = shard.rows.numpy()
        targets = transform_labels(shard.labels[label].numpy(), transform)[rows]
        if not np.isnan(targets).all():
            examples.append(Example(index, shard.info["question"], rows, shard.ids.numpy()[rows], targets))
    return examples


def read_hidden(folder: ShardFolder, examples: Sequence[Example]) -> torch.Tensor:
    """Hidden states [sum of T, d] of some examples, in the stored dtype."""
    return torch.cat([folder.read(example.index).hidden for example in examples])


def split_by_question(examples: Sequence[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; all traces of a question fall on the same side.

    Questions are ordered by a seeded hash, so the split hardly changes when traces are added or removed.

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
