"""Continue an interrupted training exactly where it was."""

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynts.errors import DyntsError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.store.files import write_whole
from dynts.store.manifest import differences
from dynts.training.config import TrainConfig


@dataclass(slots=True)
class TrainingState:
    """All that the rest of a training depends on.

    Args:
        predictor: float32, like the state of the optimizer.
        optimizer: of its parameters.
        schedule: of the learning rate.
        generator: draws the order of the traces, epoch by epoch.
        order: state of the generator at the start of the epoch.
        epoch: from 1.
        batches: done in this epoch.
        loss: sum over them.
    """

    predictor: ImportancePredictor
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    order: torch.Tensor
    epoch: int = 1
    batches: int = 0
    loss: float = 0.0

    @classmethod
    def start(cls, shape: PredictorConfig, config: TrainConfig, steps: int, device: torch.device) -> "TrainingState":
        """Return the state before the first of so many steps; the weights depend on the seed alone.

        Args:
            shape: of the predictor.
            config: how to train.
            steps: in all.
            device: to train on.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            predictor = ImportancePredictor(shape).to(device)
        optimizer = torch.optim.AdamW(
            predictor.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, steps))
        generator = torch.Generator().manual_seed(config.seed)
        return cls(predictor, optimizer, schedule, generator, generator.get_state())

    @property
    def mean_loss(self) -> float:
        """Return the mean loss of the epoch so far."""
        return self.loss / self.batches

    def begin(self, epoch: int, traces: int) -> list[int]:
        """Return the order of the traces in this epoch; what was done of it stays done.

        Args:
            epoch: from 0.
            traces: how many there are.
        """
        if epoch != self.epoch:
            self.epoch, self.batches, self.loss = epoch, 0, 0.0
            self.order = self.generator.get_state()
        return torch.randperm(traces, generator=self.generator).tolist()

    def step(self, loss: float) -> None:
        """Use the gradients of a batch with this loss."""
        nn.utils.clip_grad_norm_(self.predictor.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.batches += 1
        self.loss += loss

    def dump(self) -> dict[str, Any]:
        """Return the state as a checkpoint holds it."""
        return {
            "predictor": self.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order,
            "epoch": self.epoch,
            "batches": self.batches,
            "loss": self.loss,
        }

    def load(self, found: Mapping[str, Any]) -> None:
        """Continue from what `dump` gave."""
        self.predictor.load_state_dict(found["predictor"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.schedule.load_state_dict(found["schedule"])
        self.order = found["order"]
        self.generator.set_state(self.order)
        self.epoch, self.batches, self.loss = found["epoch"], found["batches"], found["loss"]


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(1, round(0.1 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that holds the state of a training, always whole.

    Args:
        path: the file.
        minutes: how often to write it, besides the end of each epoch; 0 writes it after every step.
    """

    path: Path
    minutes: float = 10.0

    def __post_init__(self) -> None:
        if not self.minutes >= 0:
            raise DyntsError(f"the minutes between checkpoints must not be negative, got {self.minutes}")

    def save(self, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Replace what the file held.

        Args:
            settings: that determine the training.
            state: where it is.

        Raises:
            DyntsError: the disk is full or not writable.
        """
        found = {"settings": dict(settings), "state": dict(state)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, lambda partial: torch.save(found, partial))
        # torch reports a full disk as a RuntimeError
        except (OSError, RuntimeError) as error:
            raise DyntsError(
                f"cannot write the checkpoint {self.path} ({error}): make room, then run the same command again"
            ) from error

    def load(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the state to continue from, on the CPU; None if there is none yet.

        Raises:
            DyntsError: the file is damaged, or of a training with other settings; the differing fields are named.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            recorded, state = dict(found["settings"]), dict(found["state"])
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise DyntsError(f"{self.path} is damaged or no checkpoint of dynts: remove it to start over") from error
        if details := differences(recorded, settings):
            raise DyntsError(
                f"{self.path} is of a training with other settings ({details}): repeat those, remove it to start over, "
                "or choose another folder"
            )
        return state
