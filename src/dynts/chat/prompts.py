"""The prompt: question and instruction in the model's chat template, the same for training and for decoding."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from dynts.chat.options import DEFAULT_CHAT, RESERVED_ARGUMENTS, ChatOptions
from dynts.errors import DyntsError, check_text

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class ChatPrompt(NamedTuple):
    """What a model reads, as text.

    Attributes:
        text: the prompt.
        thinks: whether the model goes on within its thinking: True where the prompt ends within it, False where the
            prompt has closed it, so that all that follows is the answer; None where that is left to the model.
    """

    text: str
    thinks: bool | None


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str, chat: ChatOptions = DEFAULT_CHAT) -> str:
    """Return the text that a model reads before it thinks (arXiv 2601.18383, section 4), see `render_prompt`.

    Args:
        tokenizer: the model's.
        question: without the instruction.
        chat: how the model is talked to.
    """
    return render_prompt(tokenizer, [user_message(question)], chat).text


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], chat: ChatOptions = DEFAULT_CHAT
) -> ChatPrompt:
    """Return the prompt for the model's next turn in a conversation, as the chat template writes it.

    Args:
        tokenizer: without a chat template, messages stand for themselves.
        messages: of the conversation.
        chat: how the model is talked to.

    Raises:
        DyntsError: the chat template fails, does not know an argument, or closes the thinking that is to be opened.
    """
    format = chat.format(tokenizer)
    text = render_chat(tokenizer, messages, chat, add_generation_prompt=True)
    thinks = None
    if format.start in text or format.end in text:
        # what the template writes after the last message, whose text may hold markers too
        told = render_chat(tokenizer, messages, chat)
        same = next((at for at, (one, other) in enumerate(zip(text, told, strict=False)) if one != other), len(told))
        opening = text[same:]
        opened, closed = opening.rfind(format.start), opening.rfind(format.end)
        if not opening:  # not every template asks whether it is to open a turn
            opened, closed = (text.rstrip().endswith(marker) for marker in (format.start, format.end))
        thinks = None if opened == closed else opened > closed
    if not chat.open_thinking or thinks:
        return ChatPrompt(text, thinks)
    if thinks is False:
        raise DyntsError("the chat template closes the thinking in the prompt: have it left open (--template-arg)")
    return ChatPrompt(f"{text}{format.start}\n", True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, raw: bool = False) -> list[int]:
    """Return the token ids of a prompt, as the model reads it.

    A chat template writes special tokens such as BOS itself. To plain text the tokenizer adds those that it has been
    trained with: without BOS some models (Gemma) write nothing sensible.

    Args:
        tokenizer: the model's.
        prompt: from `chat_prompt` or `render_chat`.
        raw: the text did not go through `render_chat`, and is plain even where the tokenizer has a chat template.
    """
    plain = raw or not tokenizer.chat_template
    # a prompt that is too long gets an error of ours, not the tokenizer's warning
    return list(tokenizer.encode(prompt, add_special_tokens=plain, verbose=False))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads: its token ids, and whether it then goes on within its thinking, see `ChatPrompt`."""

    ids: list[int]
    thinks: bool | None = None


def encode_question(tokenizer: PreTrainedTokenizerBase, question: str, chat: ChatOptions) -> Prompt:
    """Return the prompt of a question, see `render_prompt` and `encode_prompt`.

    Args:
        tokenizer: the model's.
        question: without the instruction.
        chat: how the model is talked to.
    """
    text, thinks = render_prompt(tokenizer, [user_message(question)], chat)
    return Prompt(encode_prompt(tokenizer, text), thinks)


def user_message(question: str) -> dict[str, str]:
    """Return the question with the instruction, as a chat message."""
    return {"role": "user", "content": f"{question}\n{INSTRUCTION}"}


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    chat: ChatOptions = DEFAULT_CHAT,
    **options: Any,
) -> str:
    """Return messages in the chat template, or below one another without one.

    Args:
        tokenizer: the model's.
        messages: of the conversation.
        chat: how the model is talked to.
        options: further arguments of `apply_chat_template`.

    Raises:
        DyntsError: the chat template fails, does not know an argument, or is given what is no text.
    """
    template = str(tokenizer.chat_template or "")
    for name in chat.template_args:
        if not _looks_at(template, name):
            raise DyntsError(
                f"the chat template never looks at {name!r}: leave the argument out, or check its name"
                if template
                else f"there is no chat template that could look at {name!r}: leave the argument out"
            )
    if not template:
        text = "".join(f"{message['content']}\n" for message in messages)
    else:
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options, **chat.template_args))
        except Exception as error:  # templates are programs of other people and raise what they like
            name = tokenizer.name_or_path or "the tokenizer"
            raise DyntsError(f"the chat template of {name} failed: {error}") from error
    check_text("the prompt", text)
    return text


def known_arguments(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template arguments that the chat template looks at and dynts does not give itself.

    Args:
        tokenizer: the model's.
        given: arguments by name.
    """
    template = str(tokenizer.chat_template or "")
    return {
        name: value for name, value in given.items() if name not in RESERVED_ARGUMENTS and _looks_at(template, name)
    }


def _looks_at(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None
