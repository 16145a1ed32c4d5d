"""Gradients of several processes add up to those of one."""

from collections.abc import Sequence

import pytest
import torch

from dynts.predictor import ImportancePredictor, PredictorConfig
from dynts.training.config import TrainConfig
from dynts.training.dataset import Example
from dynts.training.fit import _accumulate
from dynts.training.processes import Processes


def check_averaged_gradients(
    batch: Sequence[Example], shape: PredictorConfig, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW hardly sees the scale of a gradient, so equal weights alone do not show that it is right."""
    monkeypatch.setattr("dynts.training.processes.distributed.all_reduce", lambda value: value)

    def gradients(processes: Processes) -> tuple[float, list[torch.Tensor]]:
        torch.manual_seed(0)
        predictor = ImportancePredictor(shape)
        loss = _accumulate(predictor, batch, config, processes)
        return loss, [weight.grad for weight in predictor.parameters() if weight.grad is not None]

    loss, alone = gradients(Processes())
    shares = [gradients(Processes(rank, 2)) for rank in range(2)]
    assert sum(part for part, _ in shares) == pytest.approx(loss)
    for whole, *parts in zip(alone, *(found for _, found in shares), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(dim=0), whole, rtol=1e-5, atol=1e-7)
