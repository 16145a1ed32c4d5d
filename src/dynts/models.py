"""Load a causal language model and its tokenizer from a folder, the Hub, or a GGUF file."""

from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dynts.errors import DyntsError
from dynts.extras import pip_install


def load_model(
    model: str | Path,
    *,
    gguf_file: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in evaluation mode, and its tokenizer.

    Args:
        model: a folder, or the id of a repository on the Hub.
        gguf_file: name of a GGUF file in that folder or repository; its weights are de-quantised.
        dtype: such as "bfloat16"; None takes the checkpoint's own.
        device: such as "cpu" or "cuda:1"; "auto" spreads the model over all devices; None is the CPU.
        attn_implementation: such as "sdpa" or "eager"; None takes the model's default.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        DyntsError: the model, its GGUF file or its tokenizer is missing or cannot be read.
    """
    name = str(model)
    _check(name, gguf_file)
    resolved_dtype = _dtype(dtype)
    tokenizer = load_tokenizer(model, gguf_file=gguf_file, revision=revision)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            name,
            gguf_file=gguf_file,
            dtype=resolved_dtype,
            device_map=device,
            attn_implementation=attn_implementation,
            revision=revision,
        )
    except ImportError as error:
        raise _missing_package(name, gguf_file, error) from error
    except Exception as error:
        raise DyntsError(f"could not load the model {_source(name, gguf_file)}: {_first_line(error)}") from error
    return loaded.eval(), tokenizer


def load_tokenizer(
    model: str | Path, *, gguf_file: str | None = None, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone.

    Args:
        model: as in `load_model`, as are the others.

    Raises:
        DyntsError: it is missing or cannot be read.
    """
    name = str(model)
    _check(name, gguf_file)
    try:
        return AutoTokenizer.from_pretrained(name, gguf_file=gguf_file, revision=revision)
    except ImportError as error:
        raise _missing_package(name, gguf_file, error) from error
    except Exception as error:
        raise DyntsError(
            f"could not load the tokenizer of {_source(name, gguf_file)}: {_first_line(error)}; "
            "check that the name is right and that the tokenizer files lie beside the weights"
        ) from error


def random_model(
    model: str | Path, *, dtype: str | torch.dtype | None = None, device: str | None = None
) -> PreTrainedModel:
    """A model with random weights, in evaluation mode: only the configuration is read.

    Args:
        model: a folder or file with a configuration, or the id of a repository on the Hub.
        dtype: as in `load_model`.
        device: such as "cpu" or "cuda:1".

    Raises:
        DyntsError: the configuration is missing or cannot be read.
    """
    resolved = _dtype(dtype)
    config = load_config(model)
    chosen = resolved if isinstance(resolved, torch.dtype) else config.dtype
    with torch.device(device or "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=chosen).eval()


def load_config(model: str | Path, *, gguf_file: str | None = None, revision: str | None = None) -> PreTrainedConfig:
    """Read a model's configuration alone.

    Args:
        model: a folder or file with a configuration, or the id of a repository on the Hub.
        gguf_file: as in `load_model`, as is the other.

    Raises:
        DyntsError: it is missing or cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(str(model), gguf_file=gguf_file, revision=revision)
    except ImportError as error:
        raise _missing_package(str(model), gguf_file, error) from error
    except Exception as error:
        raise DyntsError(f"could not read the configuration of {model}: {_first_line(error)}") from error


def load_generation_config(model: str | Path, revision: str | None = None) -> GenerationConfig:
    """A checkpoint's generation config alone; that of transformers where it has none.

    Args:
        model: as in `load_model`, as is the other.
    """
    try:
        return GenerationConfig.from_pretrained(str(model), revision=revision or "main")
    except OSError:
        return GenerationConfig()


def _check(name: str, gguf_file: str | None) -> None:
    folder = Path(name)
    # a Hub id is "name" or "owner/name": anything else can only be meant as a path
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not folder.is_dir():
        raise DyntsError(
            f"model folder {name} does not exist or is not a folder: give a folder or the id of a Hub repository"
        )
    if gguf_file is None or not folder.is_dir():
        return
    path = folder / gguf_file
    if not path.is_file():
        found = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
        raise DyntsError(f"{path} does not exist; GGUF files in {folder}: {found}")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise DyntsError(f"{path} is not a GGUF file: its first four bytes are not 'GGUF'; download it again")


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name.

    Raises:
        DyntsError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DyntsError(f"dtype {name!r} is not a floating point dtype of torch: use float32, bfloat16 or float16")
    return dtype


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto":
        return "auto"
    return dtype if isinstance(dtype, torch.dtype) else parse_dtype(dtype)


def _missing_package(name: str, gguf_file: str | None, error: ImportError) -> DyntsError:
    fix = pip_install("gguf") if gguf_file else "install the package that it names"
    return DyntsError(
        f"loading {_source(name, gguf_file)} needs a package that is not installed ({_first_line(error)}): {fix}"
    )


def _source(name: str, gguf_file: str | None) -> str:
    return f"{name} ({gguf_file})" if gguf_file else name


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs, also while accelerate keeps its embeddings elsewhere (`device_map` with "disk")."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    if model.device.type == "meta" and isinstance(hook, AlignDevicesHook):
        return torch.device(hook.execution_device)
    return model.device


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Ids of the tokens that end the model's turn."""
    assert model.generation_config is not None
    ends = model.generation_config.eos_token_id
    return frozenset(() if ends is None else (ends,) if isinstance(ends, int) else ends)
