"""What the facts of a machine mean for dynts, a line each: all is well, worth knowing, or a problem with its fix."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from dynts.config import MEMORY_RESERVE, CompressionConfig
from dynts.doctor.facts import OWN, TRIAL, Devices, Facts, Gpu, Hub, ModelNeeds, Package, Plugin, Steps, Trial
from dynts.extras import DISTRIBUTION, pip_install

ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        level: "ok", "note" for what one may want to know, "problem" for what will fail or mislead.
        subject: what it is about, in a word or two.
        text: what was found.
        fix: what to do about it, None for nothing.
    """

    level: Literal["ok", "note", "problem"]
    subject: str
    text: str
    fix: str | None = None


def judge(facts: Facts) -> list[Finding]:
    """Return what the facts mean, in the order in which a reader wants to know.

    Args:
        facts: of a machine, see `facts.look`.
    """
    return [
        *_versions(facts),
        *_extras(facts),
        *(_devices(facts.devices) if facts.devices else ()),
        *(_steps(facts.steps, facts.devices) if facts.steps and facts.devices else ()),
        *(_model(facts.model, facts.devices) if facts.model else ()),
        *(finding for plugin in facts.plugins for finding in _plugin(plugin, facts)),
        *(_hub(facts.hub) if facts.hub else ()),
        *_environment(facts),
        *(_trial(trial) for trial in facts.trials),
        *(Finding("problem", where, reason) for where, reason in facts.refusals.items()),
        *_failures(facts),
    ]


def _versions(facts: Facts) -> Iterator[Finding]:
    needed = [package for package in facts.packages if package.extra is None]
    remarks = {package.name: f" (supported: {package.wanted})" for package in needed if package.name == "transformers"}
    if facts.devices:
        remarks["torch"] = f" ({_build(facts.devices)})"
    shown = [
        f"{each.name} {each.found}{remarks.get(each.name, '')}"
        for each in needed
        if each.name in ("torch", "transformers", "accelerate")
    ]
    yield Finding("ok", "versions", ", ".join([f"dynts {facts.dynts}", f"Python {facts.python}", *shown, facts.system]))
    yield from (_misfit(package) for package in needed if not package.fits)
    if facts.namesake is not None:
        yield Finding(
            "problem",
            "versions",
            f"`dynts` {facts.namesake} is installed, another project whose files lie in the same folder",
            f"pip uninstall -y dynts {DISTRIBUTION}, then install {DISTRIBUTION} again",
        )
    if facts.installed is None:
        yield Finding(
            "problem",
            "versions",
            f"the code in {facts.folder} is not installed: no engine finds its plugin",
            f"pip install {DISTRIBUTION} (in a clone of dynts: pip install .)",
        )
    elif facts.installed != facts.dynts:
        yield Finding(
            "note",
            "versions",
            f"the code in {facts.folder} is {facts.dynts}, the installed metadata, by which all is judged here, is of "
            f"{facts.installed}",
            "install it again: in a clone of dynts pip install -e .",
        )


def _misfit(package: Package) -> Finding:
    found = "is not installed" if package.found is None else f"{package.found} is installed"
    wanted = f"{package.name}{package.wanted}"
    return Finding("problem", package.name, f"{found}, dynts wants {wanted}", f"pip install '{wanted}'")


def _extras(facts: Facts) -> Iterator[Finding]:
    packages: dict[str, list[Package]] = {}
    for package in facts.packages:
        if package.extra is not None and package.extra not in ENGINES:
            packages.setdefault(package.extra, []).append(package)
    whole = [extra for extra, asked in packages.items() if all(each.found for each in asked)]
    if whole:
        yield Finding("ok", "extras", f"installed: {', '.join(whole)}")
    if missing := [extra for extra in packages if extra not in whole]:
        yield Finding("note", "extras", f"not installed: {', '.join(missing)}", pip_install(",".join(missing)))
    for extra in packages.values():
        yield from (_misfit(package) for package in extra if package.found is not None and not package.fits)


def _gb(size: float) -> str:
    if size < 1e9:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"


def _build(found: Devices) -> str:
    return f"CUDA {found.cuda}" if found.cuda else f"ROCm {found.hip}" if found.hip else "without CUDA"


def _devices(found: Devices) -> Iterator[Finding]:
    memory = f"{_gb(found.free)} of {_gb(found.memory)} memory free"
    yield Finding("ok", "CPU", f"{found.cores} cores, {found.threads} threads of torch, {memory}")
    for gpu in found.gpus:
        capability = ".".join(map(str, gpu.capability))
        text = f"{gpu.name}, compute capability {capability}, {_gb(gpu.free)} of {_gb(gpu.total)} free"
        if _compiled_for(gpu, found.architectures):
            yield Finding("ok", "GPU", text)
        else:
            yield Finding(
                "problem",
                "GPU",
                f"{text}; torch has kernels for {', '.join(found.architectures)} only",
                "install a build of torch for this GPU: https://pytorch.org/get-started/locally, or take --device cpu",
            )
    if found.mps:
        yield Finding("note", "GPU", "Apple's; take it with --device mps, where nothing of dynts was tried")
    if found.gpus or found.mps:
        return
    if found.driver and found.cuda is None:
        yield Finding(
            "problem",
            "GPU",
            "NVIDIA's driver is installed, but torch was built without CUDA",
            "pip uninstall -y torch, then install its build for your CUDA: https://pytorch.org/get-started/locally",
        )
    elif found.driver:
        yield Finding(
            "problem",
            "GPU",
            f"torch was built for CUDA {found.cuda} and finds no GPU, though NVIDIA's driver is installed",
            "see nvidia-smi, whether CUDA_VISIBLE_DEVICES hides it, and whether the driver is new enough",
        )
    else:
        yield Finding("note", "GPU", "none: everything runs on the CPU, large models slowly")


def _compiled_for(gpu: Gpu, architectures: tuple[str, ...]) -> bool:
    """Whether torch has kernels for it: binaries run within a major version, PTX on everything newer."""
    major, minor = gpu.capability
    known = [(kind, *divmod(int(number), 10)) for kind, number in re.findall(r"(sm|compute)_(\d+)", str(architectures))]
    runs = [(of, least) <= (major, minor) and (kind == "compute" or of == major) for kind, of, least in known]
    return not runs or any(runs)  # those of AMD are called otherwise


def _steps(steps: Steps, devices: Devices) -> Iterator[Finding]:
    if not devices.gpus:
        yield Finding("ok", "decode steps", "plain, torch's attention (sdpa), with a mask where rows differ in length")
        if steps.compiler:
            yield Finding("ok", "decode steps", f"compile=True calls {steps.compiler}")
        else:
            yield Finding("note", "decode steps", "compile=True finds no C++ compiler", "install g++, or set CXX")
        return
    for name, by_lengths in dict.fromkeys(zip([gpu.name for gpu in devices.gpus], steps.by_lengths, strict=False)):
        recorded = "recorded as CUDA graphs and replayed" if "cuda" in steps.recorded else "plain"
        attention = (
            "in half precision FlashAttention by the rows' lengths, else sdpa with a mask where rows differ in length"
            if by_lengths
            else "sdpa with a mask where rows differ in length (by lengths: NVIDIA's compute capability 8.0 or newer)"
        )
        yield Finding("ok", "decode steps", f"on {name}: {recorded}; {attention}")
    if steps.plain:
        yield Finding("note", "decode steps", f"{steps.plain} is set: none is recorded, and all are slower")
    if not steps.triton:
        yield Finding("note", "decode steps", "compile=True needs Triton, which is not there", "pip install triton")
    if any(steps.by_cudnn):
        name = devices.gpus[steps.by_cudnn.index(True)].name
        yield Finding(
            "note",
            "cuDNN",
            f"torch gives it attention on {name}, and it plans anew for every length, about 40 ms a decode step; dynts "
            "keeps it out",
            "for plain transformers: torch.backends.cuda.enable_cudnn_sdp(False)",
        )
    else:
        yield Finding("ok", "cuDNN", "torch gives it no decode steps, which it would plan anew for every length")


def _model(model: ModelNeeds, devices: Devices | None) -> Iterator[Finding]:
    where = devices.gpus[0].name if devices and devices.gpus else "this machine"
    room = model.memory * (1 - MEMORY_RESERVE) - model.weights
    needs = f"{model.name} ({model.type}, {model.dtype}): {_gb(model.weights)} of weights"
    if model.quantised:
        needs += f" (the checkpoint's are quantised by {model.quantised}, and take less)"
    if room <= 0:
        yield Finding(
            "note",
            "model",
            f"{needs} do not fit into the {_gb(model.memory)} that are free on {where}, a tenth left for the rest",
            "free memory, or let --device auto spread it over all devices, the CPU too, which is slow",
        )
        return
    budget, tokens = CompressionConfig().budget, int(room // model.token_bytes)
    attention = "FlashAttention by the rows' lengths" if model.by_lengths else "sdpa"
    yield Finding(
        "ok",
        "model",
        f"{needs}; decode steps by {attention}; a cached token takes {model.token_bytes:,} bytes: beside the weights "
        f"{tokens:,} fit into what is free on {where}, {tokens // budget:,} sequences under a budget of {budget:,} "
        "(dynts plan tells more)",
    )


def _plugin(plugin: Plugin, facts: Facts) -> Iterator[Finding]:
    name = ENGINES[plugin.engine]
    if plugin.distribution is None:
        yield Finding("note", name, "not installed", pip_install(plugin.engine))
        return
    asked = next((each for each in facts.packages if each.extra == plugin.engine), None)
    if asked is not None and not Package(asked.name, asked.wanted, plugin.found).fits:
        yield Finding(
            "problem",
            name,
            f"{plugin.distribution} {plugin.found} is installed, the plugin is for {asked.name}{asked.wanted}",
            pip_install(plugin.engine),
        )
    elif not plugin.registered:
        yield Finding("problem", name, "does not find dynts' plugin", "install dynts again in this environment")
    elif _left_out(plugin):
        yield Finding(
            "problem",
            name,
            f"{plugin.variable}={plugin.chosen} leaves dynts' plugin out, and every token would be kept",
            f"add dynts to {plugin.variable}, or unset it",
        )
    else:
        yield Finding("ok", name, f"{plugin.distribution} {plugin.found}, finds dynts' plugin")


def _left_out(plugin: Plugin) -> bool:
    """Whether the variable that names plugins leaves dynts' out, as each engine reads it."""
    if plugin.chosen is None:
        return False
    names = plugin.chosen.split(",")
    if plugin.engine == "vllm":  # where an empty one names none
        return "dynts" not in names
    return bool(plugin.chosen) and "dynts" not in map(str.strip, names)


def _hub(hub: Hub) -> Iterator[Finding]:
    there = f"{hub.cache} ({_gb(hub.free)} of the disk free)"
    if hub.offline:
        yield Finding("note", "models", f"offline: from folders and from {there}; {hub.endpoint} is not asked")
    else:
        yield Finding("ok", "models", f"from folders and {hub.endpoint}, kept in {there}")


def _environment(facts: Facts) -> Iterator[Finding]:
    for name in facts.unread:
        if not any(name in reason for reason in facts.refusals.values()):
            near = get_close_matches(name, OWN, n=1)
            fix = f"did you mean {near[0]}?" if near else "unset it"
            yield Finding("problem", "environment", f"{name} is read by nothing", fix)
    if facts.variables:
        yield Finding("note", "environment", ", ".join(f"{name}={value}" for name, value in facts.variables.items()))


def _trial(trial: Trial) -> Finding:
    did = (
        f"on {trial.device} the embedded model wrote {trial.tokens} tokens with at most {trial.peak} cached (budget "
        f"{TRIAL.budget}), {trial.compactions} compactions, in {trial.seconds:.1f} s; its answer is "
        f"{'right' if trial.correct else 'wrong'}"
    )
    if trial.correct and trial.peak <= TRIAL.budget and trial.compactions:
        return Finding("ok", "trial", did)
    fix = "this installation computes something else than it should: please report it with dynts doctor --json"
    return Finding("problem", "trial", did, fix)


def _failures(facts: Facts) -> Iterator[Finding]:
    """One for each error, which often has one cause in several places."""
    for error in dict.fromkeys(facts.failures.values()):
        places = ", ".join(name for name, each in facts.failures.items() if each == error)
        yield Finding("problem", places, error, "mend or install again what the error names")
