"""The manifest in short, for below tables and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynts.evaluate.table import graded_by
from dynts.report.group import Group, missing_samples

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top-p",
    "top_k": "top-k",
    "max_new_tokens": "new tokens at most",
    "seed": "seed",
}
_PACKAGES = ("dynts", "torch", "transformers", "vllm")


def conditions(group: Group) -> str:
    """One line: model and revision, sampling, data, versions, and how many arms lack samples."""
    manifests = [entry.arm.manifest for entry in group.entries]
    settings = manifests[0]["settings"]
    parts = [group.benchmark, _model(settings), *(settings[name] for name in ("dtype", "engine") if settings.get(name))]
    parts += _sampling(settings.get("sampling", {}))
    if problems := manifests[0].get("problems"):
        parts.append(f"{problems} problems")
    if data := settings.get("data_sha256"):
        parts.append(f"data {data[:12]}")
    parts += _versions(manifests)
    parts.append(graded_by(entry.arm for entry in group.entries))
    if incomplete := sum(missing_samples(entry.arm) > 0 for entry in group.entries):
        parts.append(f"**{incomplete} of {len(group.entries)} arms incomplete**")
    return ", ".join(parts)


def _model(settings: Mapping[str, Any]) -> str:
    name = settings.get("gguf_file") or settings.get("model")
    revision = settings.get("revision") or settings.get("model_files")
    return f"{name} ({str(revision)[:12]})" if revision else f"{name}"


def _sampling(sampling: Mapping[str, Any]) -> list[str]:
    if sampling.get("temperature") == 0:
        return ["greedy", f"{sampling['max_new_tokens']} new tokens at most"]
    return [f"{shown} {sampling[name]}" for name, shown in _SAMPLING.items() if name in sampling]


def _versions(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of all arms; several of a package are all named."""
    shown = []
    for package in _PACKAGES:
        found = sorted({each.get("versions", {}).get(package, "") for each in manifests} - {""})
        if found:
            shown.append(f"{package} {' and '.join(found)}")
    return shown
