"""Every command and every piece of Python in the documentation is run, on the embedded model.

A page is a test: its blocks run in their order in a folder that holds what the page says one has (`GIVEN`), nothing in
them replaced. A block that cannot run here says why, in a comment above it.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import dynts
from dynts.traces.sets import as_sets
from preloaded import Shell, end_group

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

LANGUAGES = {"bash", "python", "json", "text"}
"""What a block is marked as; text is what a program prints, a layout or a formula, and nothing to run."""
LEFT_OUT = {
    "makes an environment": 8,
    "needs a GPU": 1,
    "needs a real model": 12,
    "needs lighteval": 1,
    "needs several GPUs": 1,
    "needs several machines": 2,
    "needs SGLang": 4,
    "needs the Hub": 4,
    "needs vLLM": 5,
    "takes long": 4,
}
"""Why blocks are not run, and how many."""
NOT_RUN = re.compile(r"^<!-- not run: (.*) -->$")

PARTS = {
    "MODEL": "the embedded model",
    "problems.jsonl": "four of its problems",
    "traces": "its traces of them",
    "traces.jsonl": "the same as JSON Lines",
    "r1.jsonl": "the first half of these",
    "qwen3.jsonl": "the other half, with the marker that opens the thinking",
    "exaone.jsonl": "all of them with other markers",
    "held_out.jsonl": "two other problems",
    "shards": "these labelled with every label",
    "predictor": "trained on them, by the label future-native",
    "results": "two arms on the problems",
    "more-results": "a third",
}
GIVEN = {
    "README.md": "MODEL problems.jsonl",
    "docs/guides/collect.md": "MODEL problems.jsonl r1.jsonl qwen3.jsonl exaone.jsonl",
    "docs/guides/evaluation.md": "MODEL",
    "docs/guides/training.md": "MODEL traces.jsonl",
    "docs/results/collect_to_predictor.md": "MODEL problems.jsonl held_out.jsonl",
    "docs/tutorial.md": "",
}
"""What lies in a page's folder, besides the repository's benchmarks and sources. Pages that are not here have all."""

LOADED = """
from dynts.tiny import load_tiny_model, load_tiny_predictor
model, tokenizer = load_tiny_model()
predictor = load_tiny_predictor("answer")
config = dynts.CompressionConfig(budget=246, local_window=75, retention_ratio=0.667)
"""
"""What pages begin with that go on where README.md ends: a model and a predictor are loaded."""

MAKE = """
python benchmarks/embedded_problems.py all.jsonl --count 6
head -n 4 all.jsonl > problems.jsonl
tail -n 2 all.jsonl > held_out.jsonl
dynts collect --model MODEL --dataset problems.jsonl --out traces --temperature 0 --max-new-tokens 1000
dynts label --model MODEL --traces traces --out shards --labels answer,future,answer-native,future-native \
  --future-window 75
dynts train --shards shards --out predictor --label future-native --epochs 60 --batch-traces 1 --learning-rate 3e-3 \
  --transform linear
dynts eval --model MODEL --benchmark problems.jsonl --method full,dynts --predictor MODEL/answer --budget 246 \
  --local-window 75 --temperature 0 --samples 1 --max-new-tokens 1000 --out results
dynts eval --model MODEL --benchmark problems.jsonl --method window --budget 246 --local-window 75 \
  --temperature 0 --samples 1 --max-new-tokens 1000 --out more-results
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: as a path from the root.
        line: of its first line.
        language: what it is marked as.
        text: in it.
        reason: why it is not run, or None.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and self.reason is None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            comment = (
                NOT_RUN.match(before.content.strip()) if before is not None and before.type == "html_block" else None
            )
            assert token.map is not None
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, token.map[0] + 2, token.info.strip(), token.content, comment and comment[1]))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = sorted({block.page for block in BLOCKS if block.runs})


def test_every_block_says_what_it_is() -> None:
    assert not [str(block) for block in BLOCKS if block.language not in LANGUAGES]


def test_a_block_is_left_out_for_a_known_reason() -> None:
    assert {block.reason for block in BLOCKS if block.reason is not None} <= set(LEFT_OUT)
    assert not [str(block) for block in BLOCKS if block.reason and block.language not in ("bash", "python")]
    comments = sum(page.read_text(encoding="utf-8").count("\n<!-- not run") for page in PAGES)
    assert comments == sum(block.reason is not None for block in BLOCKS), "a comment stands right above its block"


def test_most_blocks_are_run() -> None:
    """As many are run as were, and no more are left out; who adds a block counts it here."""
    left_out = Counter(block.reason for block in BLOCKS if block.reason is not None)
    assert left_out == LEFT_OUT
    assert sum(block.runs for block in BLOCKS) >= 40


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.text)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("tools"))
    yield shell
    shell.close()


def lay_out(folder: Path) -> None:
    """Put the repository's folders that commands name, and the embedded model, into a folder."""
    for name in ("benchmarks", "examples", "src", "tests"):
        if (ROOT / name).is_dir():
            (folder / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module")
def parts(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that pages say one has."""
    folder = tmp_path_factory.mktemp("parts")
    lay_out(folder)
    shutil.copytree(ROOT / "src/dynts/tiny/weights", folder / "MODEL")
    code, printed, _ = shell.run(MAKE, folder)
    assert code == 0, printed
    rows = [
        {"question": trace.question, "response": trace.response, "answer": trace.answer}
        for trace in as_sets(folder / "traces")
    ]
    written = {
        "traces.jsonl": rows,
        "r1.jsonl": rows[: len(rows) // 2],
        "qwen3.jsonl": [row | {"response": "<think>" + row["response"]} for row in rows[len(rows) // 2 :]],
        "exaone.jsonl": [row | {"response": row["response"].replace("</think>", "</thought>")} for row in rows],
    }
    for name, lines in written.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN)
def test_blocks_run(page: str, shell: Shell, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    for name in GIVEN.get(page, " ".join(PARTS)).split():
        (shutil.copytree if (parts / name).is_dir() else shutil.copyfile)(parts / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"dynts": dynts}
    if page != "README.md":
        exec(LOADED, names)
    groups = []
    try:
        for block in (block for block in BLOCKS if block.page == page and block.runs):
            if block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
            else:
                code, printed, group = shell.run(block.text, tmp_path)
                groups.append(group)
                assert code == 0, f"{block}\n{block.text}\n{printed}"
    finally:
        for group in groups:
            end_group(group)
