"""dynts' reasoning parser in vLLM: thinking and answer, whole and in pieces."""

from types import SimpleNamespace
from typing import Any

import pytest

from made_tokenizers import byte_level

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'dynts-kv[vllm]'")

LEFT = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
OPENED = LEFT.replace("A:", "A:[THINK]")
CLOSED = LEFT.replace("A:", "A:{% if quick is defined %}[THINK][/THINK]{% endif %}")


def parser(template: str, **arguments: Any) -> Any:
    """As vLLM's server makes it for a request with these template arguments, to which it adds its own."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    from dynts.engines.vllm.plugin import register

    register()
    tokenizer = byte_level(["[THINK]", "[/THINK]"], template)
    request = ChatCompletionRequest(messages=[], chat_template_kwargs=arguments, reasoning_effort="low")
    given = request.build_chat_params(None, "auto").chat_template_kwargs
    return ReasoningParserManager.get_reasoning_parser("dynts")(tokenizer, chat_template_kwargs=given)


@pytest.mark.parametrize(
    ("template", "arguments", "text", "parts"),
    [
        (LEFT, {}, "[THINK]so[/THINK]\n2", ("so", "\n2")),
        (LEFT, {}, "2", (None, "2")),
        (OPENED, {}, "so[/THINK]\n2", ("so", "\n2")),
        (OPENED, {}, "so", ("so", None)),
        (CLOSED, {"quick": True}, "2", (None, "2")),
    ],
)
def test_thinking_and_answer(
    template: str, arguments: dict[str, Any], text: str, parts: tuple[str | None, str | None]
) -> None:
    whole, running = parser(template, **arguments), parser(template, **arguments)
    assert whole.extract_reasoning(text, None) == parts
    assert whole.is_reasoning_end([]) is bool(arguments)
    tokenizer = whole.model_tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = [running.extract_reasoning_streaming("", "", tokenizer.decode([token]), [], [], []) for token in ids]
    pieces = [piece for piece in found if piece is not None]
    assert ("".join(piece.reasoning or "" for piece in pieces) or None) == parts[0]
    assert ("".join(piece.content or "" for piece in pieces) or None) == parts[1]
    end = tokenizer.convert_tokens_to_ids("[/THINK]")
    for count in range(1, len(ids) + 1):
        ended = running.is_reasoning_end_streaming(ids[:count], ids[count - 1 : count])
        assert ended is (bool(arguments) or end in ids[:count])


def test_markers_that_are_special_tokens_are_written_out() -> None:
    tokenizer = parser(LEFT).model_tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    found = type(parser(LEFT))(tokenizer)
    assert found.adjust_request(SimpleNamespace(skip_special_tokens=True)).skip_special_tokens is False
