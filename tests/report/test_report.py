"""Reports of arms made in memory: what is grouped, drawn, tested and written."""

import csv
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.evaluate.results import ArmResults
from dynts.report.build import arms_csv, check_out, group_arms, samples_csv, write_report
from dynts.report.groups import Group, shared_config
from dynts.report.page import page
from made_arms import make_arm

SHAPE = str(Path(__file__).parents[2] / "benchmarks/shapes/smollm2-135m")
WIDE, NARROW = CompressionConfig(400, 100, 0.4), CompressionConfig(200, 50, 0.4)


def arms(**settings: object) -> list[ArmResults]:
    """Two methods at two budgets beside the full cache."""
    return [
        make_arm("rkv, native", NARROW, 0.3, **settings),
        make_arm("dynts, answer label", WIDE, 0.9, **settings),
        make_arm("full", None, 0.95, **settings),
        make_arm("rkv, native", WIDE, 0.5, **settings),
        make_arm("dynts, answer label", NARROW, 0.8, **settings),
    ]


def page_of(made: list[ArmResults]) -> str:
    """The page without figures, which take their time."""
    groups = group_arms(made)
    return page(groups, {group.slug: [] for group in groups})


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading."""
    lines = text.split(f"### {heading}\n", 1)[1].lstrip().splitlines()
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if not line.startswith("|---")]
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1 : end - 1]]


def assert_drawn(folder: Path) -> None:
    """Every picture shows something, and both formats are there."""
    pictures = sorted(folder.glob("*.png"))
    assert pictures
    for path in pictures:
        pixels = imread(path)[:, :, :3]
        assert pixels.shape[1] <= 6.5 * 150 + 1
        assert np.mean(pixels.min(axis=2) < 0.5) > 0.005, f"{path.name} is blank"
        # nothing is cut off: the margin stays white
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert edge.min() > 0.9, f"{path.name} touches its margin"
        shapes = ET.parse(path.with_suffix(".svg")).getroot().iter("{http://www.w3.org/2000/svg}path")
        assert sum(1 for _ in shapes) > 10


def test_a_report(tmp_path: Path) -> None:
    groups = group_arms(arms(model=SHAPE))
    write_report(groups, tmp_path, samples=True)
    text = (tmp_path / "report.md").read_text()
    rows = table(text, "Accuracy")
    assert [row["method"] for row in rows] == ["full", *["dynts, answer label", "rkv, native"] * 2]
    assert [row["budget"] for row in rows] == ["", "400", "400", "200", "200"]
    for row, entry in zip(rows, groups[0].entries, strict=True):
        right = sum(sample.correct for sample in entry.arm.samples)
        assert row["Pass@1 (95%)"].startswith(f"{right / 40:.3f} (")
        assert row["samples"] == "40"
    costs = table(text, "Cost")
    assert [row["peak KV tokens"].split()[0] for row in costs[1:]] == ["400", "400", "200", "200"]
    assert costs[0]["FLOPs a step"].endswith(" M")
    short = "temperature 0.6, top-p 0.95, top-k 20, new tokens at most 2000, seed 0, data 0123456789ab, dynts 0.1.0"
    assert text.replace("\n", " ").count(short) == text.count("| method |") + text.count("![")
    names = ["aime24-budgets", "aime24-steps", "aime24-summary"]
    assert [path.stem for path in sorted((tmp_path / "figures").glob("*.png"))] == names
    for name in names:
        assert f"](figures/{name}.png)" in text
    assert_drawn(tmp_path / "figures")
    assert not list(tmp_path.rglob("*.partial"))


def test_csv_holds_every_figure() -> None:
    groups = group_arms([*arms(model=SHAPE), make_arm("full", None, 0.5, samples=4, benchmark="gk23en", model=SHAPE)])
    rows = list(csv.DictReader(arms_csv(groups).splitlines()))
    entries = [entry for group in groups for entry in group.entries]
    assert len(rows) == len(entries) == 6
    for row, entry in zip(rows, entries, strict=True):
        metrics = entry.metrics
        assert float(row["pass_at_1"]) == metrics.pass_at_1.value
        assert float(row["pass_at_1_low"]) == metrics.pass_at_1.low
        assert {k: float(row[f"pass@{k}"]) for k in metrics.pass_at} == metrics.pass_at
        assert {k: float(row[f"maj@{k}"]) for k in metrics.maj_at} == metrics.maj_at
        assert float(row["flops"]) == metrics.flops
        assert row["sampling_temperature"] == "0.6"
        assert row["budget"] == ("" if entry.config is None else str(entry.config.budget))
    assert rows[0]["pass@4"] == ""
    samples = list(csv.DictReader(samples_csv(groups).splitlines()))
    assert len(samples) == sum(len(entry.arm.samples) for entry in entries)
    assert sum(row["correct"] == "True" for row in samples) == sum(
        sample.correct for entry in entries for sample in entry.arm.samples
    )


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name, order in (("one", 1), ("two", -1)):
        write_report(group_arms(arms(model=SHAPE)[::order]), tmp_path / name, samples=True)
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_paired_tests() -> None:
    text = page_of([*arms(), make_arm("snapkv", WIDE, 0.9)])
    full = table(text, "Against the full cache")
    assert {row["compared with"] for row in full} == {"full"}
    assert [row["method"] for row in full].count("rkv, native") == 2
    verdicts = {(row["method"], row["budget"]): row["verdict"] for row in full}
    assert verdicts["rkv, native", "200"] == verdicts["rkv, native", "400"] == "worse"
    assert verdicts["snapkv", "400"] == "noise"
    assert {row["test"] for row in full} == {"McNemar"}
    best = table(text, "Against the best of the same budget")
    assert len(best) == 3  # two losers at the one budget, one at the other
    assert all(row["method"] != row["compared with"] for row in best)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other/model"},
        {"sampling": {"temperature": 0.0}},
        {"data_sha256": "fedc"},
        {"dtype": "bfloat16"},
    ],
)
def test_what_cannot_be_compared_is_kept_apart(other: dict[str, object]) -> None:
    groups = group_arms([*arms(), *arms(folder="others", **other)])
    assert [group.slug for group in groups] == ["aime24-1", "aime24-2"]
    assert [len(group.entries) for group in groups] == [5, 5]
    assert all(len({str(entry.arm.folder) for entry in group.entries}) == 1 for group in groups)


def test_a_page_of_two_groups() -> None:
    text = page_of([*arms(), *arms(model="other/model")])
    assert "must not be compared" in text
    assert text.count("### Against the full cache") == 2


def test_benchmarks_have_groups_of_their_own() -> None:
    groups = group_arms([*arms(), *arms(benchmark="MATH-500")])
    assert [group.slug for group in groups] == ["math-500", "aime24"]
    groups = group_arms([*arms(), *arms(benchmark="MATH-500"), *arms(benchmark="数学")])
    assert [group.slug for group in groups] == ["math-500", "数学", "aime24"]


def test_an_arm_twice_is_refused() -> None:
    with pytest.raises(DyntsError, match=r"full, no budget, on aime24 is there twice, in one and in two"):
        group_arms([make_arm("full", None, 0.5, folder="one"), make_arm("full", None, 0.5, folder="two", seed=1)])


def test_thresholds_are_sorted_beside_budgets() -> None:
    plain = CompressionConfig(480, 100, 0.4)
    low, high = replace(plain, threshold=0.5), replace(plain, threshold=2.0)
    arms = [make_arm(f"dynts, threshold {each.threshold:g}", each, 0.5) for each in (high, low)]
    [group] = group_arms([*arms, make_arm("dynts", plain, 0.5), make_arm("full", None, 0.9)])
    assert [entry.config for entry in group.entries] == [None, plain, low, high]
    assert shared_config(group.compressed) == plain


def test_no_samples_at_all() -> None:
    empty = make_arm("full", None, 0.5, questions=0)
    with pytest.raises(DyntsError, match="none of the 1 arms has a sample yet"):
        group_arms([empty])
    assert len(group_arms([empty, make_arm("rkv", WIDE, 0.5)])[0].entries) == 1


def test_incomplete_arms_are_marked() -> None:
    whole, half = make_arm("full", None, 0.9), make_arm("rkv", WIDE, 0.9)
    del half.samples[23:]
    text = page_of([whole, half])
    assert [row["samples"] for row in table(text, "Accuracy")] == ["40", "23, **17 missing**"]
    assert text.replace("\n", " ").count("**1 of 2 arms incomplete***") == text.count("| method |") + text.count("![")
    assert table(text, "Against the full cache")[0]["questions"] == "23"


def test_an_arm_that_shares_no_question_is_not_compared(tmp_path: Path) -> None:
    full, begun = make_arm("full", None, 0.9), make_arm("rkv", WIDE, 0.9)
    del full.samples[:20], begun.samples[20:]
    write_report(group_arms([full, begun]), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Against" not in text
    assert "aime24-steps" not in text


def test_flops_need_the_shape(tmp_path: Path) -> None:
    groups = group_arms(arms())
    assert groups[0].model is None
    write_report(groups, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "FLOPs are left out" in text
    assert "FLOPs a step" not in text
    assert_drawn(tmp_path / "figures")


def test_greedy_needs_no_sampling_settings() -> None:
    sampling = {"max_new_tokens": 300, "temperature": 0.0, "top_p": 0.95, "top_k": 20, "seed": 0}
    text = page_of([make_arm("full", None, 0.9, sampling=sampling)])
    assert "greedy, 300 new tokens at most" in text
    assert "top-p" not in text


def test_memory_follows_the_dtype() -> None:
    models = [group_arms(arms(model=SHAPE, dtype=dtype))[0].model for dtype in (None, "float32", "bfloat16")]
    assert [model and model.kv_bytes_per_token for model in models] == [46_080, 46_080, 23_040]


def test_a_grid_gives_a_heat_map(tmp_path: Path) -> None:
    grid = [
        make_arm("dynts", CompressionConfig(300, window, ratio), 0.4 + ratio / 2)
        for window in (40, 80)
        for ratio in (0.2, 0.4, 0.6)
    ]
    line = [make_arm("rkv", CompressionConfig(300, window, 0.4), 0.5) for window in (40, 80)]
    write_report(group_arms([*grid[:-1], *line]), tmp_path)
    assert [path.stem for path in (tmp_path / "figures").glob("*grid*.png")] == ["aime24-grid-dynts-300"]
    assert_drawn(tmp_path / "figures")


def test_the_full_cache_alone(tmp_path: Path) -> None:
    write_report(group_arms([make_arm("full", None, 0.9)]), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "![" not in text
    assert len(table(text, "Accuracy")) == 1


def test_every_method_at_once_is_readable(tmp_path: Path) -> None:
    names = ["dynts, answer label", "dynts, future label", "dynts-random", "dynts-bottom", "window", "streaming-llm"]
    names += ["question-window", "sepllm", "h2o", "snapkv", "rkv", "h2o, native, question kept", "something new"]
    made = [make_arm(name, config, 0.6) for name in names for config in (WIDE, NARROW)]
    write_report(group_arms([make_arm("full", None, 1.0), *made]), tmp_path)
    assert_drawn(tmp_path / "figures")


def test_the_commonest_budget_is_shown() -> None:
    def shared(group: Group) -> CompressionConfig:
        return shared_config(group.compressed)

    assert shared(group_arms(arms())[0]) == WIDE  # as common as the other, and larger
    assert shared(group_arms([*arms(), make_arm("h2o", NARROW, 0.5)])[0]) == NARROW


def test_several_samples_show_majorities() -> None:
    row = table(page_of([make_arm("full", None, 0.7, questions=10, samples=5)]), "Accuracy")[0]
    assert float(row["pass@5"]) >= float(row["maj@5"])
    assert row["samples"] == "50"


@pytest.mark.parametrize("name", ["report.md", "report.pdf", "figures.PNG"])
def test_a_report_is_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match="a report is a folder"):
        check_out(tmp_path / name)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(DyntsError, match="is no report"):
        check_out(tmp_path)
    with pytest.raises(DyntsError, match="is no report"):
        check_out(tmp_path / "precious")
    check_out(tmp_path / "v1.2")
