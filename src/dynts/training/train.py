"""Fit an importance predictor to labelled traces (arXiv 2601.18383, section 4.1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import mse_loss

from dynts import __version__
from dynts.errors import DyntsError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.training.baselines import baseline_metrics
from dynts.training.dataset import Example, load_examples, read_hidden, split_by_question
from dynts.training.metrics import average, trace_metrics
from dynts.training.shards import ShardFolder
from dynts.training.transforms import TRANSFORMS

Report = Callable[[int, float, dict[str, float]], None]
"""Called after each epoch with its number from 1, the mean training loss and the held-out metrics."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train; the defaults are the paper's, but for the batch.

    Args:
        label: which stored label to predict.
        transform: one of `TRANSFORMS`.
        epochs: passes over the training traces; the predictor of the last one is saved, so nothing is chosen by the
            held-out traces.
        batch_traces: traces per optimizer step; None takes the paper's 256, or fewer so that an epoch has 100 steps
            (small batches did better on small trace sets).
        micro_traces: traces per forward pass; bounds memory, does not change the result.
        learning_rate: peak of the schedule, a linear warm-up over 10% of the steps and a cosine decay to 0.
        weight_decay: of AdamW.
        held_out: share of the questions that are held out.
        seed: of the split, the weights and the order of the traces.
        bf16: compute in bfloat16 where that is safe (autocast).

    Raises:
        DyntsError: a value is out of range.
    """

    label: str = "answer"
    transform: str = "rank"
    epochs: int = 15
    batch_traces: int | None = None
    micro_traces: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    held_out: float = 0.2
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_traces", "micro_traces"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DyntsError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise DyntsError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.transform not in TRANSFORMS:
            raise DyntsError(f"unknown transform {self.transform!r}: choose from {', '.join(TRANSFORMS)}")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained predictor on the CPU; held-out metrics by predictor, its own under "predictor"; and counts."""

    predictor: ImportancePredictor
    metrics: dict[str, dict[str, float]]
    train_traces: int
    held_out_traces: int


def train_predictor(
    folder: ShardFolder,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> TrainResult:
    """Train on all questions of the folder but the held-out ones, and measure on those.

    Raises:
        DyntsError: no such label or transform, too few questions, an incomplete folder, or a loss that is not finite.
    """
    examples = load_examples(folder, config.label, config.transform)
    train, held_out = split_by_question(examples, config.held_out, config.seed)
    predictor = fit(folder, train, config, device=device, held_out=held_out, report=report)
    metrics = {"predictor": evaluate(predictor, folder, held_out), **baseline_metrics(train, held_out, config.seed)}
    predictor = predictor.cpu()
    predictor.config = _describe(folder, config, train, held_out, metrics)
    predictor._hub_mixin_config = predictor.config  # what save_pretrained writes
    return TrainResult(predictor, metrics, len(train), len(held_out))


def compare_transforms(
    folder: ShardFolder, config: TrainConfig, *, device: str | torch.device = "cpu"
) -> dict[str, dict[str, float]]:
    """Metrics of every transform on a validation split of the training questions; the held-out ones are not touched."""
    results = {}
    for transform in TRANSFORMS:
        examples = load_examples(folder, config.label, transform)
        train, _ = split_by_question(examples, config.held_out, config.seed)
        train, validation = split_by_question(train, config.held_out, config.seed + 1)
        predictor = fit(folder, train, config, device=device)
        results[transform] = evaluate(predictor, folder, validation)
    return results


def fit(
    folder: ShardFolder,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    held_out: Sequence[Example] = (),
    report: Report | None = None,
) -> ImportancePredictor:
    """Minimise the squared error on the examples; `held_out` serves the report only.

    Raises:
        DyntsError: the loss is not finite.
    """
    device = torch.device(device)
    size = folder.manifest["settings"]["fingerprint"]["hidden_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        predictor = ImportancePredictor(PredictorConfig(hidden_size=size)).to(device)
    optimizer = torch.optim.AdamW(
        predictor.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    batch = batch_size(config, len(examples))
    steps = config.epochs * math.ceil(len(examples) / batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, steps))
    order = torch.Generator().manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        shuffled = [examples[i] for i in torch.randperm(len(examples), generator=order).tolist()]
        losses = []
        for start in range(0, len(shuffled), batch):
            loss = _accumulate(predictor, folder, shuffled[start : start + batch], config, device)
            if not math.isfinite(loss):
                raise DyntsError(
                    f"the loss is {loss} in epoch {epoch}: lower the learning rate ({config.learning_rate})"
                )
            torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss)
        if report is not None:
            report(epoch, sum(losses) / len(losses), evaluate(predictor, folder, held_out))
    return predictor.eval()


@torch.no_grad()
def evaluate(predictor: ImportancePredictor, folder: ShardFolder, examples: Sequence[Example]) -> dict[str, float]:
    """Metrics averaged over traces."""
    return average(
        trace_metrics(predictor(read_hidden(folder, [example])).cpu().numpy(), example.targets) for example in examples
    )


def batch_size(config: TrainConfig, traces: int) -> int:
    """Traces per step: as configured, else the paper's 256, or fewer so that an epoch has 100 steps."""
    return config.batch_traces or max(1, min(256, traces // 100))


def _accumulate(
    predictor: ImportancePredictor,
    folder: ShardFolder,
    batch: Sequence[Example],
    config: TrainConfig,
    device: torch.device,
) -> float:
    """Add the gradients of a batch's mean squared error over its tokens, and return that error."""
    targets = [torch.from_numpy(example.targets).float() for example in batch]
    tokens = sum(int((~target.isnan()).sum()) for target in targets)
    total = torch.zeros((), device=device)
    for start in range(0, len(batch), config.micro_traces):
        target = torch.cat(targets[start : start + config.micro_traces])
        known = ~target.isnan()
        hidden = read_hidden(folder, batch[start : start + config.micro_traces])[known]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            scores = predictor(hidden)
        loss = mse_loss(scores, target[known].to(device), reduction="sum") / tokens
        loss.backward()
        total += loss.detach()
    return total.item()


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(1, round(0.1 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _describe(
    folder: ShardFolder,
    config: TrainConfig,
    train: Sequence[Example],
    held_out: Sequence[Example],
    metrics: dict[str, dict[str, float]],
) -> PredictorConfig:
    settings = folder.manifest["settings"]
    markers = settings["think_markers"] or {"start": [], "end": []}
    return PredictorConfig(
        hidden_size=settings["fingerprint"]["hidden_size"],
        label=config.label,
        transform=config.transform,
        future_window=settings["future_window"] if config.label == "future" else None,
        base_model=settings["model"],
        fingerprint=settings["fingerprint"],
        think_start=markers["start"],
        think_end=markers["end"],
        training={
            **asdict(config),
            "batch_traces": batch_size(config, len(train)),
            "train_traces": len(train),
            "train_tokens": sum(len(example.targets) for example in train),
            "held_out_traces": len(held_out),
            "traces_file": folder.manifest["traces_file"],
            "traces_sha256": settings["traces_sha256"],
            "keep_incorrect": settings["keep_incorrect"],
            "dropped": folder.manifest["dropped"],
        },
        metrics=metrics,
        dynts_version=__version__,
    )
