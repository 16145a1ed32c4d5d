"""Minimise the squared error of a predictor, on one process or several, and continue after an interruption."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

from dynts.errors import DyntsError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.training.checkpoint import Checkpoint, TrainingState
from dynts.training.config import TrainConfig
from dynts.training.dataset import Example
from dynts.training.metrics import average, trace_metrics
from dynts.training.processes import Processes, without_exchange
from dynts.training.transforms import labelled

Report = Callable[[int, float, dict[str, float]], None]
"""Called after each epoch with its number from 1, the mean training loss and the held-out metrics."""
Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, all steps, and the mean training loss of the epoch so far."""

_ALONE = Processes()


# Not `transformers.Trainer`: it writes a checkpoint file by file into a folder that has its final name, which kill -9
# leaves half done, and its batches, losses and resuming would all have to be ours: each labelled token counts alike on
# 1 and on N processes.
def fit(
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    processes: Processes = _ALONE,
    held_out: Sequence[Example] = (),
    report: Report | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> ImportancePredictor:
    """Train on the examples; `held_out` serves the report only.

    Every process calls this with the same arguments, and gets the same predictor. Each takes its share of the traces of
    each batch; gradients add up to those of one process, but for rounding.

    Args:
        examples: to train on.
        config: how to train.
        processes: that train together.
        held_out: measured after each epoch.
        report: is told the metrics of each epoch.
        progress: is told how far the training is.
        checkpoint: where to continue; None starts anew.

    Raises:
        DyntsError: the loss is not finite, or the checkpoint is of other settings.
    """
    batch = batch_size(config, len(examples))
    batches = math.ceil(len(examples) / batch)
    size = examples[0].folder.manifest["settings"]["fingerprint"]["hidden_size"]
    layers, kv_heads = examples[0].heads
    shape = PredictorConfig(hidden_size=size, layers=layers, kv_heads=kv_heads)
    state = TrainingState.start(shape, config, config.epochs * batches, processes.device)
    settings = _settings(examples, config, batch)
    if checkpoint is not None:
        found = processes.from_main(lambda: checkpoint.load(settings))
        if found is not None:
            state.load(found)

    minutes = checkpoint.minutes if checkpoint else math.inf
    saved = time.monotonic()

    def save(least_minutes: float = 0) -> None:
        nonlocal saved
        if checkpoint is not None and processes.is_main and time.monotonic() - saved >= 60 * least_minutes:
            checkpoint.save(settings, state.dump())
            saved = time.monotonic()

    model = processes.wrap(state.predictor)
    for epoch in range(state.epoch, config.epochs + 1):
        shuffled = [examples[index] for index in state.begin(epoch, len(examples))]
        for start in range(state.batches * batch, len(shuffled), batch):
            loss = _accumulate(model, shuffled[start : start + batch], config, processes)
            if not math.isfinite(loss):
                raise DyntsError(
                    f"the loss is {loss} in epoch {epoch}: lower the learning rate ({config.learning_rate})"
                )
            state.step(loss)
            if progress is not None:
                progress((epoch - 1) * batches + state.batches, config.epochs * batches, state.mean_loss)
            save(minutes)
        save()
        if report is not None:
            report(epoch, state.mean_loss, average(evaluate(state.predictor, held_out, processes)))
    return state.predictor.eval()


@torch.no_grad()
def evaluate(
    predictor: ImportancePredictor, examples: Sequence[Example], processes: Processes = _ALONE
) -> list[dict[str, float]]:
    """Measure each trace; every process computes its share and gets all.

    Args:
        predictor: the predictor.
        examples: to measure.
        processes: that share them.
    """
    rows = []
    for example in processes.share(examples):
        tokens = example.read()
        scores = predictor(tokens.hidden, native=tokens.targets.ndim > 1)
        rows.append(trace_metrics(scores.cpu().numpy(), tokens.targets))
    return processes.gather(rows)


def batch_size(config: TrainConfig, traces: int) -> int:
    """Return how many traces a step takes: as configured, else the paper's 256, or fewer so that an epoch has 100.

    Args:
        config: how to train.
        traces: how many there are.
    """
    return config.batch_traces or max(1, min(256, traces // 100))


def _accumulate(model: nn.Module, batch: Sequence[Example], config: TrainConfig, processes: Processes) -> float:
    """Add the gradients of a batch's mean squared error over its tokens, and return that error."""
    known = sum(example.known for example in batch)
    total = torch.zeros((), device=processes.device)
    for micro, last in _micro_batches(processes.share(batch), config.micro_traces):
        with without_exchange(model, active=not last):
            hidden, targets = _read(micro, batch[0])
            with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=config.bf16):
                scores = model(hidden.to(processes.device), native=targets.ndim > 1)
            loss = mse_loss(scores, targets.to(processes.device), reduction="sum") / (
                known * math.prod(scores.shape[1:])
            )
            # the processes' gradients are averaged, and should be added
            (loss * processes.count).backward()
            total += loss.detach()
    return processes.total(total).item()


def _micro_batches(share: Sequence[Example], size: int) -> Iterator[tuple[Sequence[Example], bool]]:
    """Pieces of a share, at least one, and whether each is the last."""
    for start in range(0, max(1, len(share)), size):
        yield share[start : start + size], start + size >= len(share)


def _read(micro: Sequence[Example], any_example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """Read hidden states [T, d] and float32 targets [T, ...] of tokens that have one; T = 0 without a trace."""
    if not micro:
        nothing = any_example.read()
        return nothing.hidden[:0], torch.from_numpy(nothing.targets[:0]).float()
    tokens = [example.read() for example in micro]
    targets = torch.cat([torch.from_numpy(item.targets).float() for item in tokens])
    known = torch.from_numpy(labelled(targets.numpy()))
    return torch.cat([item.hidden for item in tokens])[known], targets[known]


def _settings(examples: Sequence[Example], config: TrainConfig, batch: int) -> dict[str, Any]:
    """Return what determines the weights, by name. How many traces are in memory at a time changes rounding only."""
    settings = {name: value for name, value in asdict(config).items() if name != "micro_traces"}
    traces = hashlib.sha256()
    for example in examples:
        origin = json.dumps(example.folder.manifest["settings"], sort_keys=True)
        traces.update(f"{origin} {example.index} {example.question} {example.known}\n".encode())
    return {**settings, "batch_traces": batch, "train_traces": len(examples), "shards": traces.hexdigest()[:16]}
