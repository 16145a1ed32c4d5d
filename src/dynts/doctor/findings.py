"""What the facts of a machine mean for dynts, a line each: all is well, worth knowing, or a problem with its fix."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from dynts.decode.recorded import PLAIN
from dynts.doctor.facts import TRIAL, Devices, Facts, Gpu, Package, Plugin
from dynts.extras import pip_install

PLANNING_TORCH, PLANNING_CUDNN, PLANNING_CAPABILITY = Version("2.9"), 91500, (9, 0)
"""From this torch and capability on, above this cuDNN, torch gives attention to cuDNN first, which plans it anew for
every number of keys (https://github.com/pytorch/pytorch/issues/162073)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        level: "ok", "note" for what one may want to know, "problem" for what will fail or mislead.
        subject: what it is about, in a word or two.
        text: what was found, and the fix of a problem.
    """

    level: Literal["ok", "note", "problem"]
    subject: str
    text: str


def judge(facts: Facts) -> list[Finding]:
    """Return what the facts mean, in the order in which a reader wants to know.

    Args:
        facts: of a machine, see `facts.look`.
    """
    return [
        *_python(facts),
        *_extras(facts),
        *(_devices(facts.devices, _found(facts, "torch")) if facts.devices else ()),
        *(_steps(facts) if facts.devices else ()),
        *(finding for plugin in facts.plugins for finding in _plugin(plugin, facts)),
        *_environment(facts),
        *_trial(facts),
        *(Finding("problem", name, f"could not be looked at: {error}") for name, error in facts.failures.items()),
    ]


def _found(facts: Facts, name: str) -> str | None:
    return next((package.found for package in facts.packages if package.name == name), None)


def _python(facts: Facts) -> Iterator[Finding]:
    needed = [package for package in facts.packages if package.extra is None]
    shown = [f"{each.name} {each.found}" for each in needed if each.name in ("torch", "transformers", "accelerate")]
    yield Finding("ok", "versions", ", ".join([f"dynts {facts.dynts}", f"Python {facts.python}", *shown, facts.system]))
    yield from (_misfit(package) for package in needed if not package.fits)


def _misfit(package: Package) -> Finding:
    found = "is not installed" if package.found is None else f"{package.found} is installed"
    wanted = f"{package.name}{package.wanted}"
    return Finding("problem", package.name, f"{found}, dynts wants {wanted}: pip install '{wanted}'")


def _extras(facts: Facts) -> Iterator[Finding]:
    packages: dict[str, list[Package]] = {}
    for package in facts.packages:
        if package.extra is not None and package.extra not in {plugin.engine for plugin in facts.plugins}:
            packages.setdefault(package.extra, []).append(package)
    whole = [extra for extra, asked in packages.items() if all(each.found for each in asked)]
    if whole:
        yield Finding("ok", "extras", f"installed: {', '.join(whole)}")
    if missing := [extra for extra in packages if extra not in whole]:
        yield Finding(
            "note", "extras", f"not installed: {', '.join(missing)}; for all: {pip_install(','.join(missing))}"
        )
    for extra in packages.values():
        yield from (_misfit(package) for package in extra if package.found is not None and not package.fits)


def _gb(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"


def _devices(found: Devices, torch: str | None) -> Iterator[Finding]:
    yield Finding(
        "ok",
        "CPU",
        f"{found.cores} cores, {found.threads} threads of torch; {_gb(found.free)} of {_gb(found.memory)} memory and "
        f"{_gb(found.disk)} of the disk for models are free",
    )
    for gpu in found.gpus:
        capability = ".".join(map(str, gpu.capability))
        yield Finding(
            "ok", "GPU", f"{gpu.name} (compute capability {capability}), {_gb(gpu.free)} of {_gb(gpu.total)} free"
        )
    if found.mps:
        yield Finding("note", "GPU", "Apple's: take it with --device mps; nothing of dynts was tried there")
    if found.gpus or found.mps:
        return
    if found.driver and found.cuda is None:
        yield Finding(
            "problem",
            "GPU",
            f"NVIDIA's driver is installed, but torch {torch} was built without CUDA: install its CUDA build "
            "(pip install --force-reinstall torch, with the index of your CUDA version)",
        )
    elif found.driver:
        yield Finding(
            "problem",
            "GPU",
            f"torch was built for CUDA {found.cuda} and finds no GPU, though NVIDIA's driver is installed: "
            "see `nvidia-smi`, whether CUDA_VISIBLE_DEVICES hides it, and whether the driver is new enough",
        )
    else:
        yield Finding("note", "GPU", "none: everything runs on the CPU, large models slowly")


def _steps(facts: Facts) -> Iterator[Finding]:
    assert facts.devices is not None
    devices = facts.devices
    compiled = f"compiled steps (compile=True) by {devices.compiler}"
    if not devices.gpus:
        text = "plain, PyTorch's attention (sdpa) with a mask where rows differ in length"
        missing = "compile=True needs a C++ compiler: install g++, or set CXX"
        yield Finding("ok", "decode steps", f"{text}; {compiled if devices.compiler else missing}")
    for kind in dict.fromkeys((gpu.name, gpu.by_lengths) for gpu in devices.gpus):
        name, by_lengths = kind
        attention = (
            "in half precision FlashAttention by the rows' lengths, else sdpa with a mask"
            if by_lengths
            else "sdpa with a mask (attention by lengths wants NVIDIA's compute capability 8.0 or newer)"
        )
        yield Finding("ok", "decode steps", f"on {name}: recorded as CUDA graphs and replayed; {attention}")
    if devices.gpus and PLAIN in facts.variables:
        yield Finding("note", "decode steps", f"{PLAIN} is set: they are not recorded, and slower")
    if trapped := [gpu for gpu in devices.gpus if _cudnn_plans(gpu, devices, _found(facts, "torch"))]:
        yield Finding(
            "note",
            "cuDNN",
            f"torch lets it plan attention anew for every length on {trapped[0].name}, about 40 ms a step. dynts keeps "
            "it out; for plain transformers call torch.backends.cuda.enable_cudnn_sdp(False)",
        )


def _cudnn_plans(gpu: Gpu, devices: Devices, torch: str | None) -> bool:
    if torch is None or devices.cudnn is None:
        return False
    return (
        gpu.capability >= PLANNING_CAPABILITY
        and devices.cudnn > PLANNING_CUDNN
        and Version(Version(torch).base_version) >= PLANNING_TORCH
    )


def _plugin(plugin: Plugin, facts: Facts) -> Iterator[Finding]:
    name = {"vllm": "vLLM", "sglang": "SGLang"}[plugin.engine]
    if plugin.distribution is None:
        yield Finding("note", name, f"not installed: {pip_install(plugin.engine)}")
        return
    asked = next((each for each in facts.packages if each.extra == plugin.engine), None)
    if asked is not None and not Package(asked.name, asked.wanted, plugin.found).fits:
        yield Finding(
            "problem",
            name,
            f"{plugin.distribution} {plugin.found} is installed, the plugin is for {asked.name}{asked.wanted}: "
            f"{pip_install(plugin.engine)}",
        )
    elif not plugin.registered:
        yield Finding("problem", name, "does not find dynts' plugin: install dynts again in this environment")
    elif plugin.chosen is not None and "dynts" not in plugin.chosen.split(","):
        yield Finding(
            "problem",
            name,
            f"{plugin.variable}={plugin.chosen} leaves dynts' plugin out, and {name} would keep every token: add dynts "
            "to it, or unset it",
        )
    else:
        yield Finding("ok", name, f"{plugin.distribution} {plugin.found}, finds dynts' plugin")


def _environment(facts: Facts) -> Iterator[Finding]:
    if facts.settings_error:
        yield Finding("problem", "environment", facts.settings_error)
    if facts.variables:
        yield Finding("note", "environment", ", ".join(f"{name}={value}" for name, value in facts.variables.items()))


def _trial(facts: Facts) -> Iterator[Finding]:
    trial = facts.trial
    if trial is None:
        return
    did = (
        f"the embedded model wrote {trial.tokens} tokens with at most {trial.peak} cached, {trial.compactions} "
        f"compactions, in {trial.seconds:.1f} s"
    )
    if trial.correct and trial.peak <= TRIAL.budget and trial.compactions:
        yield Finding("ok", "trial", f"{did}; its answer is right")
    else:
        yield Finding(
            "problem",
            "trial",
            f"{did}; its answer is {'right' if trial.correct else 'wrong'}, with a budget of {TRIAL.budget}: this "
            "installation computes something else than it should; please report it with `dynts doctor --json`",
        )
