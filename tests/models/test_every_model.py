"""Every causal language model of transformers is decoded exactly or refused by name: docs/reference/models.md."""

import pytest
import transformers

from every_model import MODEL_TYPES, NOT_TRIED
from model_check import check
from models_page import PAGE, counted, row, version

COMMON = (
    *("deepseek_v3", "gemma2", "gemma3_text", "gpt_oss", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_5_text"),
    *("qwen3_moe", "qwen3_next", "bert", "blt", "diffllama", "gemma3n_text"),
)
"""Types that every run of the tests tries; `-m slow` the others, for some minutes."""

pytestmark = pytest.mark.skipif(
    transformers.__version__ != version(), reason=f"docs/reference/models.md speaks of transformers {version()}"
)


def test_the_page_has_every_type_once() -> None:
    assert [kind for kind in MODEL_TYPES if len(lines_of(kind)) != 1] == [], "run `make models`"


def test_the_types_are_counted() -> None:
    """On the page itself, and where else the numbers stand."""
    running, rest = PAGE.read_text(encoding="utf-8").split("## Models that are refused")
    refused = sum(line.count("`") // 2 for line in rest.partition("Not tried")[0].splitlines() if line.startswith("|"))
    run = sum(line.startswith("| `") for line in running.splitlines())
    assert counted(run, refused) in running
    assert run + refused + len(NOT_TRIED) == len(MODEL_TYPES)
    for name in ("README.md", "CHANGELOG.md"):
        text = " ".join((PAGE.parents[2] / name).read_text(encoding="utf-8").split())
        assert f"{run} of transformers' {len(MODEL_TYPES)} types of causal models" in text, name


def lines_of(kind: str) -> list[str]:
    """The lines of tables that name a type."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|") and f"`{kind}`" in line]


@pytest.mark.parametrize(
    "kind",
    [kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.slow) for kind in MODEL_TYPES],
)
def test_a_type(kind: str) -> None:
    if kind in NOT_TRIED:
        pytest.skip(NOT_TRIED[kind])
    found, (line,) = check(kind), lines_of(kind)
    if found.reason is None:
        assert f"{line}\n" == row(kind, found), "run `make models`"
    else:
        assert line.startswith(f"| {found.reason} |"), "run `make models`"
