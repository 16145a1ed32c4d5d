"""From labelled traces to a predictor with its held-out metrics (arXiv 2601.18383, section 4.1)."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dynts import __version__
from dynts.errors import DyntsError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.label import looks_ahead
from dynts.predictor.model import CONFIG_FILE, WEIGHTS_FILE, ImportancePredictor
from dynts.training.checkpoint import Checkpoint
from dynts.training.config import TrainConfig
from dynts.training.dataset import Example, load_examples, split_by_question
from dynts.training.fit import Progress, Report, batch_size, evaluate, fit
from dynts.training.metrics import average, baseline_metrics, by_group
from dynts.training.processes import Processes
from dynts.training.shards import ShardFolder
from dynts.training.transforms import TRANSFORMS


def work_folder(out: Path) -> Path:
    """Return where a predictor is made, checkpoints included, before it moves to `out`; removed when it is saved."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


def save_predictor(predictor: ImportancePredictor, out: str | Path, *, overwrite: bool = False) -> None:
    """Save as a folder, all or nothing, and remove the work folder.

    Args:
        predictor: the predictor.
        out: the folder.
        overwrite: whether a predictor that is there may go.

    Raises:
        DyntsError: `out` exists and `overwrite` is not set, or it cannot be written.
    """
    out = Path(out)
    check_free(out, overwrite)
    work = work_folder(out)
    new, old = work / "predictor", work / "replaced"
    try:
        shutil.rmtree(new, ignore_errors=True)
        predictor.save_pretrained(new)
        if out.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        new.rename(out)
    except OSError as error:
        raise DyntsError(f"cannot save the predictor to {out} ({error}): make room or choose another folder") from error
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        # what a checkpoint needs stays
        with suppress(OSError):
            work.rmdir()


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to overwrite a folder unasked, and to delete one that is no predictor.

    Args:
        out: the folder.
        overwrite: whether a predictor that is there may go.

    Raises:
        DyntsError: names the way out.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG_FILE).is_file() or not (out / WEIGHTS_FILE).is_file():
        raise DyntsError(f"{out} exists and holds something else than a predictor: choose a new folder")
    if not overwrite:
        raise DyntsError(f"{out} already holds a predictor: choose a new folder, or pass --overwrite")


__all__ = ["TrainConfig", "TrainResult", "compare_transforms", "train_predictor"]

Metrics = dict[str, dict[str, float]]
"""Held-out metrics by predictor, the trained one under "predictor"."""

_ALONE = Processes()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a training.

    Args:
        predictor: on the CPU.
        metrics: over all held-out traces.
        groups: over those of each group, if they were grouped.
        group_traces: held-out traces of each group.
        train_traces: how many.
        held_out_traces: how many.
    """

    predictor: ImportancePredictor
    metrics: Metrics
    groups: dict[str, Metrics]
    group_traces: dict[str, int]
    train_traces: int
    held_out_traces: int


def train_predictor(
    folders: ShardFolder | Sequence[ShardFolder],
    config: TrainConfig,
    *,
    group_by: str | None = None,
    processes: Processes = _ALONE,
    report: Report | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Train on all questions but the held-out ones, and measure on those.

    Args:
        folders: one folder of labelled traces, or several of the same model.
        config: how to train.
        group_by: also measure by the values of this column of the traces, or by "folder".
        processes: the processes to train on; each calls this with the same arguments and gets the same result.
        report: called after each epoch.
        progress: called after each step.
        checkpoint: where to keep the state; if it holds one already, training continues from there.

    Raises:
        DyntsError: no such label or column, too few questions, an incomplete folder, folders of different models, a
            checkpoint of other settings, or a loss that is not finite.
    """
    folders = _as_list(folders)
    examples = load_examples(folders, config.label, config.transform, group_by)
    train, held_out = split_by_question(examples, config.held_out, config.seed)
    predictor = fit(
        train, config, processes=processes, held_out=held_out, report=report, progress=progress, checkpoint=checkpoint
    )
    rows = {
        "predictor": evaluate(predictor, held_out, processes),
        **baseline_metrics(
            (example.read() for example in train), (example.read() for example in held_out), config.seed
        ),
    }
    metrics = {name: average(values) for name, values in rows.items()}
    groups = [example.group for example in held_out] if group_by else []
    grouped = by_group(rows, groups)
    counts = {group: groups.count(group) for group in grouped}
    predictor = predictor.cpu()
    described = _describe(folders, config, train, held_out, metrics)
    if group_by:
        described.training["groups"] = {"column": group_by, "traces": counts, "metrics": grouped}
    predictor.config = described
    predictor._hub_mixin_config = predictor.config  # what save_pretrained writes
    return TrainResult(predictor, metrics, grouped, counts, len(train), len(held_out))


def compare_transforms(
    folders: ShardFolder | Sequence[ShardFolder],
    config: TrainConfig,
    *,
    processes: Processes = _ALONE,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Metrics:
    """Measure every transform on a validation split of the training questions; held-out ones are not touched.

    Args:
        folders: as for `train_predictor`.
        config: as for `train_predictor`, but for the transform.
        processes: as for `train_predictor`.
        progress: called after each step of each training.
        checkpoint: each transform has one of its own beside it.
    """
    examples = load_examples(_as_list(folders), config.label, config.transform)
    train, _ = split_by_question(examples, config.held_out, config.seed)
    splits = split_by_question(train, config.held_out, config.seed + 1)
    results = {}
    for transform in TRANSFORMS:
        train, validation = ([replace(example, transform=transform) for example in split] for split in splits)
        tried = replace(config, transform=transform)
        path = checkpoint and replace(checkpoint, path=checkpoint.path.with_stem(f"compare-{transform}"))
        predictor = fit(train, tried, processes=processes, progress=progress, checkpoint=path)
        results[transform] = average(evaluate(predictor, validation, processes))
    return results


def _as_list(folders: ShardFolder | Sequence[ShardFolder]) -> list[ShardFolder]:
    return [folders] if isinstance(folders, ShardFolder) else list(folders)


def _describe(
    folders: Sequence[ShardFolder],
    config: TrainConfig,
    train: Sequence[Example],
    held_out: Sequence[Example],
    metrics: Metrics,
) -> PredictorConfig:
    settings = folders[0].manifest["settings"]
    markers = settings["think_markers"] or {"start": [], "end": []}
    layers, kv_heads = train[0].heads
    return PredictorConfig(
        hidden_size=settings["fingerprint"]["hidden_size"],
        layers=layers,
        kv_heads=kv_heads,
        label=config.label,
        all_tokens=settings.get("all_tokens", False),
        transform=config.transform,
        future_window=settings["future_window"] if looks_ahead([config.label]) else None,
        base_model=settings["model"],
        fingerprint=settings["fingerprint"],
        think_start=markers["start"],
        think_end=markers["end"],
        training={
            **asdict(config),
            "batch_traces": batch_size(config, len(train)),
            "train_traces": len(train),
            "train_tokens": sum(example.known for example in train),
            "held_out_traces": len(held_out),
            "traces_file": ", ".join(folder.manifest["traces_file"] for folder in folders),
            "traces_sha256": ", ".join(folder.manifest["settings"]["traces_sha256"] for folder in folders),
            "keep_incorrect": any(folder.manifest["settings"]["keep_incorrect"] for folder in folders),
            "dropped": _sum([folder.manifest["dropped"] for folder in folders]),
        },
        metrics=metrics,
        dynts_version=__version__,
    )


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(found.get(name, 0) for found in counts) for found in counts for name in found}
