"""Load a causal language model and its tokenizer from a folder, the Hub, or a GGUF file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
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
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from dynts.config import ModelSource
from dynts.errors import DyntsError
from dynts.extras import pip_install
from dynts.models import gguf_tokenizer
from dynts.models.checks import check_special_tokens, check_weights
from dynts.models.gguf import GgufFile
from dynts.models.threads import fit_threads
from dynts.store.progress import bar, paused

log = logging.getLogger(__name__)


def load_model(model: ModelSource | str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in evaluation mode, and its tokenizer.

    On a CPU a narrow model computes with one thread, see `fit_threads`.

    Args:
        model: which one, in which dtype, where; or only its name, a folder or the id of a repository on the Hub.

    Raises:
        DyntsError: the model, its GGUF file or its tokenizer is missing or cannot be read, weights are missing, or a
            special token has no embedding.
    """
    source = _source(model)
    with _shown_loading(source):
        return _load(source)


def _load(source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"dtype": _dtype(source.dtype), **source.checkpoint()}
    tokenizer = load_tokenizer(source)
    file = _gguf(source)
    if file is not None:
        if not file.tensors:
            raise DyntsError(f"{file.path} holds no weights, only a configuration and a tokenizer")
        # reading the configuration takes transformers as long as the weights of a small model: once is enough
        options["config"] = load_config(source)
        _check_positions(options["config"], file)
        if options["dtype"] == "auto":
            options["dtype"] = file.float_dtype or _half_precision(source.device)
        if hasattr(
            transformers, "GgufConfig"
        ):  # from 5.23 on; its default says that weights stay quantised, which they do not
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    result: Any
    try:
        result = AutoModelForCausalLM.from_pretrained(
            source.name,
            device_map=source.device,
            attn_implementation=source.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below by name
            **options,
        )
    except ImportError as error:
        raise _missing_package(source, error) from error
    except Exception as error:
        raise DyntsError(f"could not load the model {source}: {_first_line(error)}") from error
    loaded, info = result
    check_weights(info, str(source))
    if file is not None:
        _complete(loaded, file)
    check_special_tokens(loaded, tokenizer, str(source))
    if loaded.device.type == "cpu":
        fit_threads(loaded.get_input_embeddings().weight.shape[-1])
    return loaded.eval(), tokenizer


@contextmanager
def _shown_loading(source: ModelSource) -> Iterator[None]:
    """Show a bar of dynts, or leave the terminal to those of the libraries where they may have to download."""
    if not Path(source.name).is_dir():
        with paused():
            yield
        return
    with bar(f"loading {source.gguf_file or Path(source.name).resolve().name}") as shown:
        theirs = shown.shown and is_progress_bar_enabled()
        if theirs:
            disable_progress_bar()
        try:
            yield
        finally:
            if theirs:
                enable_progress_bar()


def _half_precision(device: str | None) -> torch.dtype:
    """Return bfloat16 where the device computes in it, else float32."""
    if device == "auto" or (device or "").startswith("cuda"):
        has = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has else torch.float32


def _check_positions(config: PreTrainedConfig, file: GgufFile) -> None:
    """Refuse positions that transformers does not scale.

    It reads that from GGUF files of one architecture only (gpt-oss).

    Raises:
        DyntsError: names what the file says.
    """
    rope = config.rope_parameters or {}
    kinds = {rope.get("rope_type"), *(part.get("rope_type") for part in rope.values() if isinstance(part, dict))}
    if file.scaled_positions is not None and not kinds - {None, "default"}:
        raise DyntsError(
            f"{file.path} scales rotary positions ({file.scaled_positions}), which transformers leaves out of a GGUF "
            f"file of a {config.model_type} model: it would lose its way in long texts. Load the checkpoint that the "
            "file was made of"
        )


def _complete(model: PreTrainedModel, file: GgufFile) -> None:
    """Add what transformers does not take from a GGUF file: further end tokens. And say what unpacked weights take."""
    assert model.generation_config is not None
    model.generation_config.eos_token_id = sorted({*end_tokens(model), *file.token_ids("eos", "eot", "eom")}) or None
    if file.quantised:
        size = sum(parameter.nbytes for parameter in model.parameters())
        dtype = str(model.dtype).removeprefix("torch.")
        log.info(
            f"the weights of {file.path.name} ({', '.join(file.quantised)}; {file.path.stat().st_size / 1e9:.1f} GB) "
            f"are unpacked to {dtype} and take {size / 1e9:.1f} GB; --dtype takes another"
        )


def load_tokenizer(model: ModelSource | str | Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone.

    Args:
        model: as in `load_model`.

    Raises:
        DyntsError: it is missing or cannot be read.
    """
    source = _source(model)
    file = _gguf(source)
    if file is not None and (Path(source.name) / "tokenizer.json").is_file():
        # the model's own, which needs no reconstruction
        file, source = None, replace(source, gguf_file=None)
    elif file is not None and gguf_tokenizer.knows(file):
        with bar(f"reading the tokenizer of {file.path.name}"):
            tokenizer = gguf_tokenizer.build_tokenizer(file)
            gguf_tokenizer.check_tokenizer(tokenizer, file)
        return tokenizer
    _check_folder(source.name)
    try:
        loaded = AutoTokenizer.from_pretrained(source.name, **source.checkpoint())
    except ImportError as error:
        raise _missing_package(source, error) from error
    except Exception as error:
        check = (
            "the tokenizer files lie beside the weights"
            if Path(source.name).is_dir()
            else "the name is right, and the Hub can be reached; without a network give a folder"
        )
        raise DyntsError(
            f"could not load the tokenizer of {source}: {_first_line(error)}; check that {check}"
        ) from error
    if file is not None:
        gguf_tokenizer.check_tokenizer(loaded, file)
    return loaded


def random_model(model: ModelSource | str | Path) -> PreTrainedModel:
    """Make a model with random weights, in evaluation mode: only the configuration is read.

    Args:
        model: as in `load_config`, in which dtype, where.

    Raises:
        DyntsError: the configuration is missing or cannot be read.
    """
    source = _source(model)
    resolved = _dtype(source.dtype)
    config = load_config(source)
    chosen = resolved if isinstance(resolved, torch.dtype) else config.dtype
    with bar("making random weights"), torch.device(source.device or "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=chosen).eval()


def load_config(model: ModelSource | str | Path) -> PreTrainedConfig:
    """Read a model's configuration alone.

    Args:
        model: as in `load_model`; its name may also be that of a file with a configuration.

    Raises:
        DyntsError: it is missing or cannot be read.
    """
    source = _source(model)
    file = _gguf(source)
    try:
        with nullcontext() if file is None else bar(f"reading the configuration of {file.path.name}"):
            config = AutoConfig.from_pretrained(source.name, **source.checkpoint())
    except ImportError as error:
        raise _missing_package(source, error) from error
    except Exception as error:
        raise DyntsError(f"could not read the configuration of {source.name}: {_first_line(error)}") from error
    if file is not None:
        config.dtype = file.float_dtype or torch.bfloat16
        if not file.tensors:
            config.tie_word_embeddings = False
            log.warning(
                f"{file.path.name} lists no tensors: taken as a model whose embedding and output head are two matrices"
            )
    return config


def quantised_by(config: PreTrainedConfig) -> str | None:
    """Return the name of the way in which a checkpoint's weights are quantised, such as "gptq"; None for not at all."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    return str(settings.get("quant_method") or "a method without a name")


def load_generation_config(source: ModelSource) -> GenerationConfig:
    """Read a checkpoint's generation config alone; that of transformers where it has none."""
    try:
        return GenerationConfig.from_pretrained(source.name, revision=source.revision or "main")
    except OSError:
        return GenerationConfig()


def _gguf(source: ModelSource) -> GgufFile | None:
    """Read the header of the GGUF file, if the weights come from one, in a folder or a Hub repository."""
    name, folder = source.gguf_file, Path(source.name)
    there = sorted(file.name for file in folder.glob("*.gguf"))
    if name is None:
        if there and not (folder / "config.json").exists():
            raise DyntsError(f"{folder} holds a GGUF file and no config.json: name it, as in --gguf-file {there[0]}")
        return None
    _check_folder(source.name)
    path = folder / name
    if folder.is_dir() and not path.is_file():
        raise DyntsError(f"{path} does not exist; GGUF files in {folder}: {', '.join(there) or 'none'}")
    try:
        found = path if folder.is_dir() else cached_file(source.name, name, revision=source.revision)
        assert found is not None
        return GgufFile.read(Path(found))
    except DyntsError:
        raise
    except ImportError as error:
        raise _missing_package(source, error) from error
    except Exception as error:
        raise DyntsError(f"could not read {source}: {_first_line(error)}") from error


def _check_folder(name: str) -> None:
    folder = Path(name)
    # a Hub id is "name" or "owner/name": anything else can only be meant as a path
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not folder.is_dir():
        raise DyntsError(
            f"model folder {name} does not exist or is not a folder: give a folder or the id of a Hub repository"
        )


def parse_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of that name.

    Raises:
        DyntsError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DyntsError(f"dtype {name!r} is not a floating point dtype of torch: use float32, bfloat16 or float16")
    return dtype


def _source(model: ModelSource | str | Path) -> ModelSource:
    return model if isinstance(model, ModelSource) else ModelSource(str(model))


def _dtype(name: str | None) -> str | torch.dtype:
    return "auto" if name in (None, "auto") else parse_dtype(name)


def _missing_package(source: ModelSource, error: ImportError) -> DyntsError:
    fix = pip_install("gguf") if source.gguf_file else "install the package that it names"
    return DyntsError(f"loading {source} needs a package that is not installed ({_first_line(error)}): {fix}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its inputs, also while accelerate keeps its embeddings elsewhere, such as on disk."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    if model.device.type == "meta" and isinstance(hook, AlignDevicesHook):
        return torch.device(hook.execution_device)
    return model.device


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Return the ids of the tokens that end the model's turn."""
    assert model.generation_config is not None
    ends = model.generation_config.eos_token_id
    return frozenset(() if ends is None else (ends,) if isinstance(ends, int) else ends)
