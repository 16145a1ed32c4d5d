"""What both plugins ask of an engine before it runs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dynts.engines.compat import load_predictor
from dynts.engines.settings import PluginSettings
from dynts.errors import DyntsError
from dynts.predictor.model import ImportancePredictor
from tiny import tiny_model


class HalfHere(nn.Module):
    """The embedding of a process of two: it holds the first rows, and gets the others from the other one."""

    def __init__(self, whole: torch.Tensor) -> None:
        super().__init__()
        first, second = whole.detach().chunk(2)
        self.weight, self.elsewhere = nn.Parameter(first), second

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.weight, self.elsewhere])[tokens]


def test_a_predictor_of_another_model_shows_where_processes_share_the_embedding_out(tmp_path: Path) -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    ImportancePredictor.for_model(model).save_pretrained(tmp_path)
    settings, device = PluginSettings(str(tmp_path)), torch.device("cpu")
    for shared_out in (False, True):
        own, others = (
            HalfHere(each.get_input_embeddings().weight) if shared_out else each.get_input_embeddings()
            for each in (model, other)
        )
        load_predictor(settings, device, model.config, own)
        with pytest.raises(DyntsError, match="another model of the same shape"):
            load_predictor(settings, device, model.config, others)
