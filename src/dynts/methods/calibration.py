"""What `triattention` knows of a model's queries: statistics in one file, and the model that they are of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from dynts.errors import DyntsError
from dynts.predictor.fingerprint import check_fingerprint
from dynts.store.files import write_whole

_TENSORS = ("mean", "length", "frequencies")


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Statistics of a model's queries before the rotary embedding, whose dimensions are taken in pairs.

    The pair f of a vector is the complex number of its dimensions f and f + half the head size, as Llama rotates them.

    Attributes:
        mean: complex64 [full-attention layers, query heads, pairs], the mean of the queries.
        length: float32, shaped likewise, the mean of their absolute values.
        frequencies: float32 [pairs], by how much a pair turns from one position to the next, in radians.
        scaling: what the rotary embedding multiplies queries and keys by (YaRN's attention factor; 1 for most).
        base_model: name of the model.
        fingerprint: of the model, see `dynts.predictor.fingerprint`.
    """

    mean: torch.Tensor
    length: torch.Tensor
    frequencies: torch.Tensor
    scaling: float
    base_model: str
    fingerprint: Mapping[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the file, whole.

        Args:
            path: a safetensors file.
        """
        about = {"scaling": self.scaling, "base_model": self.base_model, "fingerprint": self.fingerprint}
        tensors = {"mean": torch.view_as_real(self.mean), "length": self.length, "frequencies": self.frequencies}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_whole(Path(path), lambda partial: save_file(contiguous, partial, {"dynts": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file.

        Args:
            path: what `save` wrote.

        Raises:
            DyntsError: there is no such file, or it is another one.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["dynts"])
                pairs, length, frequencies = map(file.get_tensor, _TENSORS)
                mean = torch.view_as_complex(pairs)
                if mean.shape != length.shape or mean.shape[2:] != frequencies.shape:
                    raise ValueError("its statistics are not of the same heads and pairs")
                return cls(mean, length, frequencies, **about)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DyntsError(
                f"{path} is no calibration of triattention ({error}): make one with `dynts calibrate`"
            ) from error

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse another model.

        Raises:
            DyntsError: names what differs.
        """
        check_fingerprint(
            self.fingerprint,
            model,
            self.base_model,
            made="the calibration was made",
            remedy="make one for this model with `dynts calibrate`",
        )
