"""Labels are made of the very token ids that were generated, whatever tokenizer and chat template a model has."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.chat.markers import ThinkFormat
from dynts.chat.prompts import INSTRUCTION
from dynts.chat.thinking import normalise
from dynts.collect.collect import grade
from dynts.config import Sampling
from dynts.engines.engine import Request
from dynts.engines.transformers import TransformersEngine
from dynts.grading.grader import Verdict
from dynts.traces.folder import TraceFolder
from dynts.traces.problems import Problem
from dynts.traces.sets import as_sets
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import Trace, TraceIds
from dynts.training.labelling import label_traces
from made_tokenizers import byte_fallback, byte_level, real_header, real_tokenizer
from scripted import writes
from shared_data import R1_TOKENIZER
from tiny import tiny_model

TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}user:{{ m.content }}{% else %}assistant:ANSWERED<eos>{% endif %}"
    "{% endfor %}"
)
OLDER_R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}user:{{ m.content }}{% else %}{% set content = m.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}assistant:{{ content "
    "}}<eos>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
ASKS = "{%% if add_generation_prompt %%}assistant:%s{%% endif %%}"
TEMPLATES = {
    "opens the thinking and a line": TURNS.replace("ANSWERED", "{{ m.content }}") + ASKS % "<think>\n",
    "opens the thinking": TURNS.replace("ANSWERED", "{{ m.content }}") + ASKS % "<think>",
    "leaves it to the model": TURNS.replace("ANSWERED", "{{ m.content }}") + ASKS % "",
    "R1's older": OLDER_R1,
    "Qwen3's": TURNS.replace("ANSWERED", "<think>\n\n</think>\n\n{{ m.content }}") + ASKS % "\n",
}
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "marker tokens": lambda: byte_level(["<think>", "</think>"]),
    "markers of several tokens": byte_level,
    "byte fallback": lambda: byte_fallback(["<think>", "</think>"]),
}
WRITTEN = {
    "opens the thinking and a line": ["2 and 2 is 4\n</think>\n\n\\boxed{4}", "\n2 is 2</think>\\boxed{4}"],
    "opens the thinking": ["\n2 and 2 is 4.</think>\n\n\\boxed{4}", "2 is 2\n</think>\n\n\\boxed{4}"],
}
OWN = [
    "<think>\n2 and 2 is 4\n</think>\n\n\\boxed{4}",
    "<think>\n\n2 is 2</think>\\boxed{4}",
    "<think>2.</think>\n\\boxed{4}",
]
"""What models write that open the thinking themselves."""
QUESTION = "2 + 2 = ?"
TEXT = "2 and 2 is 4\n</think>\n\n\\boxed{4}"


def prepare(make: Callable[[], PreTrainedTokenizerFast], template: str) -> PreTrainedTokenizerFast:
    tokenizer = make()
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    message = [{"role": "user", "content": f"{QUESTION}\n{INSTRUCTION}"}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))


def collect(tokenizer: PreTrainedTokenizerFast, generated: list[list[int]], out: Path) -> PreTrainedModel:
    """Collect traces of these generated ids, each of a question of its own; the model."""
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    requests = [Request(Problem(str(number), QUESTION, "4"), 0, 0) for number in range(len(generated))]
    engine = TransformersEngine(model, tokenizer, Sampling(200, temperature=0), batch=1)
    writer = TraceFolder.create(out, {}, {}).writer()
    # verdicts do not matter here, and a grader would start a process
    grader: Any = SimpleNamespace(grade=lambda *_: Verdict.CORRECT)
    with writes(model, *generated):
        for done in engine.generate(requests):
            writer.append(grade(done, grader, lambda *_: (None, True)))
    writer.close()
    return model


def check(tokenizer: PreTrainedTokenizerFast, generated: list[list[int]], out: Path) -> None:
    """The ids of the traces in a folder are those that were read and written."""
    traces = {int(trace.columns["problem_id"]): trace for trace in as_sets(out)}
    for number, ids in enumerate(generated):
        tokens = tokenize_trace(tokenizer, traces[number])
        assert list(tokens.ids[: tokens.question_end]) == prompt_ids(tokenizer)
        assert list(tokens.ids[tokens.question_end :]) == ids
        answer = tokenizer.decode(tokens.ids[tokens.answer_start :])
        assert "\\boxed{4}" in answer
        assert "think" not in answer


@pytest.mark.parametrize("made", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_collected_ids_are_labelled(made: str, template: str, tmp_path: Path) -> None:
    tokenizer = prepare(TOKENIZERS[made], template)
    generated = []
    for text in WRITTEN.get(template, OWN):
        # as the tokenizer cuts it, and as a model may where no piece is a token of its own
        for pieces in ([text], list(text)) if made == "markers of several tokens" else ([text],):
            ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
            generated.append([*ids, tokenizer.eos_token_id])
    collect(tokenizer, generated, tmp_path / "out")
    check(tokenizer, generated, tmp_path / "out")


@pytest.mark.skipif(not R1_TOKENIZER.exists(), reason=f"{R1_TOKENIZER.name} is not there")
def test_the_real_tokenizer_of_r1(tmp_path: Path) -> None:
    header = real_header()
    kinds = zip(header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"], strict=True)
    tokenizer = real_tokenizer([token for token, kind in kinds if kind in (3, 4)])
    tokenizer.chat_template = header["tokenizer.chat_template"]
    tokenizer.bos_token, tokenizer.eos_token = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    generated = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in OWN]
    model = collect(tokenizer, generated, tmp_path / "out")
    check(tokenizer, generated, tmp_path / "out")
    shards = label_traces(model, tokenizer, tmp_path / "out", tmp_path / "shards", labels=("answer",), all_tokens=True)
    [index] = shards.indices  # the others have the same question
    ids = shards.read(index).ids.tolist()
    assert ids in [prompt_ids(tokenizer) + written for written in generated]


IMPORTED = {
    "opens the thinking and a line": [(TEXT, TEXT), (TEXT, f"\n{TEXT}"), (TEXT, f"<think>\n{TEXT}")],
    "opens the thinking": [(f"\n{TEXT}", f"\n{TEXT}"), (f"\n{TEXT}", f"<think>\n{TEXT}"), (TEXT, TEXT)],
}
"""What a model wrote, and what is told of it: a response from just after the marker, or with it."""
OPENED = [(f"<think>\n{TEXT}", told) for told in (TEXT, f"\n{TEXT}", f"<think>\n{TEXT}")]
OPENED += [(f"<think>\n\n{TEXT}", told) for told in (f"\n\n{TEXT}", f"<think>\n\n{TEXT}")]


@pytest.mark.quick
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("made", ["marker tokens", "markers of several tokens"])
def test_of_an_imported_trace_what_the_prompt_writes_is_dropped(made: str, template: str) -> None:
    tokenizer = prepare(TOKENIZERS[made], template)
    for written, told in IMPORTED.get(template, OPENED):
        expected = [
            *prompt_ids(tokenizer),
            *tokenizer.encode(written, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        for response in (told, normalise(told, ThinkFormat())):
            tokens = tokenize_trace(tokenizer, Trace("t", QUESTION, response, "4"))
            assert list(tokens.ids) == expected, (written, response)


@pytest.mark.quick
def test_ids_of_another_tokenizer_are_not_used() -> None:
    one, other = (prepare(TOKENIZERS[made], "opens the thinking") for made in ("marker tokens", "byte fallback"))
    trace = Trace("t", QUESTION, TEXT, "4")
    ids = TraceIds((0, 1), (*one.encode(TEXT, add_special_tokens=False), one.eos_token_id))
    assert tokenize_trace(one, replace(trace, ids=ids)).ids == (*ids.prompt, *ids.generated)
    assert tokenize_trace(other, replace(trace, ids=ids)) == tokenize_trace(other, trace)
