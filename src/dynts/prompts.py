"""The prompt: question and instruction in the model's chat template, the same for training and for decoding."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from dynts.errors import DyntsError
from dynts.markers import START

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str, open_thinking: bool = False) -> str:
    """The text that a model reads before it thinks (arXiv 2601.18383, section 4).

    Args:
        tokenizer: without a chat template, question and instruction stand for themselves.
        question: the user's question.
        open_thinking: end with the opening think marker, where the chat template (DeepSeek-R1's does) has not put it.

    Raises:
        DyntsError: the chat template fails.
    """
    prompt = render_chat(tokenizer, [user_message(question)], add_generation_prompt=True)
    return with_open_thinking(prompt) if open_thinking else prompt


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, raw: bool = False) -> list[int]:
    """Token ids of a prompt, as the model reads it.

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


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends with the opening think marker, so that the model goes on within its thinking."""
    return prompt.rstrip().endswith(START)


def with_open_thinking(prompt: str) -> str:
    """The prompt with the opening think marker at its end, if it is not there already."""
    return prompt if opens_thinking(prompt) else f"{prompt}{START}\n"


def user_message(question: str) -> dict[str, str]:
    """The question with the instruction, as a chat message."""
    return {"role": "user", "content": f"{question}\n{INSTRUCTION}"}


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> str:
    """Messages in the chat template, or below one another without one.

    Raises:
        DyntsError: the chat template fails.
    """
    if not tokenizer.chat_template:
        return "".join(f"{message['content']}\n" for message in messages)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates are programs of other people and raise what they like
        raise DyntsError(f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} failed: {error}") from error
