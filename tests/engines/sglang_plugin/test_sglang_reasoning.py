"""dynts' reasoning parser in SGLang: thinking and answer, whole and in pieces, as its server splits them."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang_engines import needs_sglang

from made_tokenizers import byte_level

pytestmark = needs_sglang

TURN = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:OPENING{% endif %}"
LEFT = TURN.replace("OPENING", "")
OPENED = TURN.replace("OPENING", "<think>")
ON = TURN.replace(
    "OPENING",
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% else %}<think>{% endif %}",
)
LEFT_ON = TURN.replace(
    "OPENING", "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)
OFF = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}" + TURN.replace(
    "OPENING", "{% if thinking %}<think>{% else %}</think>{% endif %}"
)


def parser(template: str, **arguments: Any) -> Any:
    """As SGLang's server makes it for a request with these template arguments."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.parser.reasoning_parser import ReasoningParser
    from sglang.srt.parser.template_detection import detect_reasoning_pattern

    from dynts.engines.sglang.reasoning import register_parser

    register_parser()
    tokenizer = byte_level(["<think>", "</think>"], template)
    given = {"messages": [{"role": "user", "content": "?"}], "chat_template_kwargs": arguments}
    request = ChatCompletionRequest(model="m", **given)
    always, switch = detect_reasoning_pattern(template)
    serving = SimpleNamespace(
        reasoning_parser="dynts",
        template_manager=SimpleNamespace(reasoning_config=switch),
        _reasoning_detector=ReasoningParser("dynts", tokenizer=tokenizer).detector,
    )
    on = always or OpenAIServingChat._get_reasoning_from_request(serving, request)
    return ReasoningParser("dynts", True, on, request, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("template", "arguments", "text", "parts"),
    [
        (LEFT, {}, "<think>so</think>\n2", ("so", "\n2")),
        (LEFT, {}, "2", ("", "2")),
        (OPENED, {}, "so</think>\n2", ("so", "\n2")),
        (OPENED, {}, "so", ("so", "")),
        (LEFT_ON, {}, "<think>so</think>2", ("so", "2")),
        (LEFT_ON, {"enable_thinking": False}, "2", ("", "2")),
        (ON, {}, "so</think>2", ("so", "2")),
        (ON, {"enable_thinking": False}, "2", ("", "2")),
        (OFF, {}, "2", ("", "2")),
        (OFF, {"thinking": True}, "so</think>2", ("so", "2")),
    ],
)
def test_thinking_and_answer(template: str, arguments: dict[str, Any], text: str, parts: tuple[str, str]) -> None:
    assert parser(template, **arguments).parse_non_stream(text) == parts
    running = parser(template, **arguments)
    pieces = [*map(running.parse_stream_chunk, text), running.parse_stream_end()]
    assert tuple("".join(piece[part] for piece in pieces) for part in (0, 1)) == parts


def test_an_answer_that_goes_on_is_within_its_thinking_or_after_it() -> None:
    from dynts.engines.sglang.reasoning import ThinkDetector

    tokenizer = byte_level(["<think>", "</think>"], LEFT)
    for before, parts in {"<think>so": ("on", "2"), "<think>so</think>": ("", "on</think>2")}.items():
        detector = ThinkDetector(tokenizer, continue_final_message=True, previous_content=before)
        found = detector.detect_and_parse("on</think>2")
        assert (found.reasoning_text, found.normal_text) == parts
