"""The page of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynts.report.arm_tables import accuracy_table, against_best, against_full, comparison_table, cost_table, graded_by
from dynts.report.groups import Group, missing_samples
from dynts.report.tables import plain

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top-p",
    "top_k": "top-k",
    "max_new_tokens": "new tokens at most",
    "seed": "seed",
}
_PACKAGES = ("dynts", "torch", "transformers", "vllm", "sglang", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


def conditions(group: Group) -> str:
    """Return one line with model and revision, sampling, data, versions, and how many arms lack samples."""
    manifests = [entry.arm.manifest for entry in group.entries]
    settings = manifests[0]["settings"]
    parts = [group.benchmark, _model(settings), *(settings[name] for name in ("dtype", "engine") if settings.get(name))]
    parts = [plain(part) for part in (*parts, *_sampling(settings.get("sampling", {})))]
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


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: of the files, without their endings.
        title: what it shows.
        caption: what has to be said below it, in Markdown.
    """

    name: str
    title: str
    caption: str

    @property
    def address(self) -> str:
        """Of the PNG file, from the page."""
        return f"figures/{self.name}.png"


def page(groups: Sequence[Group], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return the page in Markdown.

    Args:
        groups: what was evaluated.
        pictures: of each group, by its slug.
    """
    sections = "\n".join(_section(group, pictures[group.slug]) for group in groups)
    several = (
        "\nGroups differ in model, sampling, problems or other settings: figures of different groups must not be "
        "compared.\n"
        if len(groups) > 1
        else ""
    )
    return f"# Evaluation\n\nEvery figure is in [arms.csv](arms.csv), one row an arm.\n{several}\n{sections}"


def _section(group: Group, pictures: Sequence[Picture]) -> str:
    below = f"*{conditions(group)}*\n"
    parts = [
        f"## {group.slug}\n",
        "### Accuracy\n",
        accuracy_table(group),
        f"{below}\nPass@1 is the mean over samples, then questions, with a bootstrap interval over the questions. "
        "Short budgets lengthen and truncate outputs: read length and truncation beside it.\n",
        "### Cost\n",
        cost_table(group),
        f"{below}\nIn brackets: as a multiple of the full cache's. Tokens and bytes are of one sequence; latency and "
        f"throughput include scoring and eviction, and compare only what ran on the same machine.{_flops(group)}\n",
    ]
    for title, comparisons in (
        ("Against the full cache", against_full(group)),
        ("Against the best of the same budget", against_best(group)),
    ):
        if comparisons:
            parts += [f"### {title}\n", comparison_table(comparisons), f"{below}\n{_TESTS}\n"]
    for picture in pictures:
        image = f"![{plain(picture.title)}]({picture.address})"
        parts += [
            f"### {plain(picture.title)}\n",
            f"{image}\n",
            f"{picture.caption} [SVG](figures/{picture.name}.svg)\n",
            below,
        ]
    return "\n".join(parts)


_TESTS = (
    "Paired on the questions that both answered: McNemar's exact test with one sample a question, else a permutation "
    "test. Holm's correction is over the arms compared with the same one. Noise: the interval contains 0, or the "
    "corrected p is not below 0.05. The best was chosen by the same samples, which makes the others look slightly "
    "worse than they are."
)


def _flops(group: Group) -> str:
    if group.model is None:
        return " FLOPs are left out: the model's configuration cannot be read here, or it is a mixture of experts."
    return " FLOPs are those of decode steps, counted from the model's shape and the cache lengths."
