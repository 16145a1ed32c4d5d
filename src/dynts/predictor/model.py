"""The importance predictor: a small MLP on the base model's last hidden state (arXiv 2601.18383, section 4.1)."""

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import linear, softplus
from transformers import PreTrainedConfig, PreTrainedModel

from dynts.errors import DyntsError, check_count
from dynts.models.shape import full_attention_layers, kv_heads
from dynts.predictor.card import model_card
from dynts.predictor.config import PredictorConfig
from dynts.predictor.fingerprint import check_fingerprint, fingerprint
from dynts.store.files import write_whole
from dynts.store.jsonlines import read_object

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


# Not a `PreTrainedModel` of transformers: that one fills a matrix that is missing from a checkpoint with random
# numbers, leaves out unknown ones and takes over the file's dtype. The refusals below would have to be written on top,
# and nothing would be saved.
class ImportancePredictor(nn.Module, ModelHubMixin):
    """Scores the importance of a token from its last hidden state, after the final norm.

    `Linear(d, 2d), Softplus, Linear(2d, d/2), Softplus, Linear(d/2, 1), Softplus`, without biases. Beyond the paper,
    the last matrix can have an output for each full-attention layer and KV head.

    Raises:
        DyntsError: `config.hidden_size` is not at least 2, or there is no layer or head.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        size = config.hidden_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise DyntsError(f"a predictor's hidden_size must be that of its base model, at least 2, got {size!r}")
        for name in ("layers", "kv_heads"):
            check_count(f"a predictor's {name}", getattr(config, name), least=1)
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(size, 2 * size, bias=False),
            nn.Softplus(),
            nn.Linear(2 * size, size // 2, bias=False),
            nn.Softplus(),
            nn.Linear(size // 2, config.layers * config.kv_heads, bias=False),
            nn.Softplus(),
        )

    @classmethod
    def for_model(cls, model: PreTrainedModel, **fields: Any) -> Self:
        """Make an untrained predictor for a model.

        Args:
            model: whose hidden states it reads.
            fields: further `PredictorConfig` fields.
        """
        known = {
            "hidden_size": model.config.get_text_config().hidden_size,
            "base_model": model.name_or_path,
            "fingerprint": fingerprint(model),
        }
        return cls(PredictorConfig(**{**known, **fields}))

    def forward(self, hidden: torch.Tensor, native: bool = False) -> torch.Tensor:
        """Return scores in float32, not negative, for hidden states of any floating dtype.

        Args:
            hidden: [..., d].
            native: whether to return the scores of each layer and KV head.

        Returns:
            [...], the mean over the layers and KV heads that have scores of their own; with `native` the scores of
            each, [..., layers, KV heads].
        """
        first, second, last = self.parameters()
        hidden = hidden.to(first.device, product_dtype(hidden.device, hidden.dtype, first.dtype))
        for weight in (first, second):
            hidden = softplus(linear(hidden, weight.to(hidden.dtype)))
        # scores that only half precision would make equal still differ
        scores = softplus(linear(hidden.float(), last.float())).float()
        if native:
            return scores.unflatten(-1, (self.config.layers, self.config.kv_heads))
        return scores.mean(dim=-1) if self.config.native else scores.squeeze(-1)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that this predictor was not trained for.

        Raises:
            DyntsError: another hidden size, shape or set of embeddings.
        """
        self.check_sizes(model.config)
        check_fingerprint(self.config.fingerprint, model, self.config.base_model)

    def check_sizes(self, model_config: PreTrainedConfig) -> None:
        """Refuse a model whose sizes are not those that this predictor was trained for.

        Raises:
            DyntsError: another hidden size, or another number of layers or KV heads where each has its own scores.
        """
        size = model_config.get_text_config().hidden_size
        if size != self.config.hidden_size:
            raise DyntsError(
                f"the predictor reads hidden states of size {self.config.hidden_size}, this model's have size {size}: "
                f"use a predictor trained for this model (this one is for {self.config.base_model or 'another'})"
            )
        if not self.config.native:
            return
        own = (len(full_attention_layers(model_config)), kv_heads(model_config))
        if (self.config.layers, self.config.kv_heads) != own:
            raise DyntsError(
                f"the predictor scores tokens for {self.config.layers} layers of {self.config.kv_heads} KV heads, this "
                f"model has {own[0]} full-attention layers of {own[1]}: use a predictor trained for this model"
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Load from a folder or from any repository on the Hub, in evaluation mode, on the CPU, in float32.

        Args:
            pretrained_model_name_or_path: folder, or repository id.
            force_download: download again even if cached.
            token: Hub token for private repositories.
            cache_dir: where downloads are kept.
            local_files_only: take a repository from the cache only.
            revision: branch, tag or commit of a repository.
            model_kwargs: accepts nothing; the configuration comes from the checkpoint.

        Raises:
            DyntsError: missing, damaged or not a predictor.
        """
        if model_kwargs:
            raise DyntsError(f"from_pretrained does not take {', '.join(model_kwargs)}")
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        if not folder.is_dir():
            try:
                folder = Path(
                    snapshot_download(
                        name,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        token=token,
                        local_files_only=local_files_only,
                        allow_patterns=[CONFIG_FILE, WEIGHTS_FILE],
                    )
                )
            except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                raise DyntsError(
                    f"predictor {name!r} is neither a folder nor a Hub repository that can be read: {error}"
                ) from error
        predictor = cls(_read_config(folder / CONFIG_FILE))
        _load_weights(predictor, folder / WEIGHTS_FILE)
        return predictor.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(
            save_directory / WEIGHTS_FILE, lambda partial: save_file(weights, partial, metadata={"format": "pt"})
        )

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the text of `README.md`, written by `save_pretrained` and `push_to_hub`.

        Args:
            args: of the Hub mixin, unused.
            kwargs: likewise.
        """
        return model_card(self.config)


def product_dtype(device: torch.device, hidden: torch.dtype, weights: torch.dtype) -> torch.dtype:
    """Return the dtype of a predictor's matrix products: that of its weights, but a model's half precision on a GPU.

    There float32 takes many times as long, and the weights are cast in a fraction of the time of the products. Training
    has its own way to half precision.

    Args:
        device: where the hidden states are.
        hidden: their dtype.
        weights: that of the predictor.
    """
    half = hidden in (torch.bfloat16, torch.float16)
    return hidden if half and device.type == "cuda" and not torch.is_grad_enabled() else weights


def _read_config(path: Path) -> PredictorConfig:
    if not path.exists():
        raise DyntsError(f"{path} does not exist: {path.parent} is not a predictor saved by dynts")
    try:
        values = read_object(path)
    except DyntsError as error:
        raise DyntsError(f"{path} is damaged ({error}): download or train the predictor again") from error
    return PredictorConfig.from_dict(values)


def _load_weights(predictor: ImportancePredictor, path: Path) -> None:
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise DyntsError(f"{path} does not exist: download or train the predictor again") from error
    except (OSError, SafetensorError) as error:
        raise DyntsError(f"{path} is damaged ({error}): download or train the predictor again") from error
    try:
        predictor.load_state_dict(weights)
    except RuntimeError as error:
        raise DyntsError(
            f"{path} does not fit {CONFIG_FILE} beside it (hidden_size {predictor.config.hidden_size}): "
            "one of the two comes from another predictor; download or train it again"
        ) from error
