"""Turn a trace into the token ids that the model would have read and written: question, thinking and answer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dynts.errors import DyntsError
from dynts.markers import END, START, find_format
from dynts.prompts import chat_prompt, encode_prompt, render_chat, user_message
from dynts.thinking import think_scanner
from dynts.training.traces import Trace


@dataclass(frozen=True, slots=True)
class TokenizedTrace:
    """Token ids of a trace: question [0, M), thinking [M, M+L), closing marker, answer [A, N).

    The closing marker belongs to neither side: it is no answer token (the paper averages over the tokens after it), and
    it gets no label because a decode stops scoring there. A token that merges the marker with text around it counts as
    marker.

    Args:
        ids: all N token ids.
        question_end: M, the length of the prompt, opening marker included.
        thinking_end: M+L, the end of the thinking tokens.
        answer_start: A, the first token after the closing marker.
    """

    ids: tuple[int, ...]
    question_end: int
    thinking_end: int
    answer_start: int


def split_response(response: str) -> tuple[str, str]:
    """The text before and after the closing think marker; an opening marker at the very start is dropped."""
    thinking, _, answer = response.partition(END)
    if thinking.lstrip().startswith(START):
        thinking = thinking.lstrip().removeprefix(START)
    return thinking, answer


def tokenize_trace(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> TokenizedTrace:
    """Tokenize prompt and response apart, as in generation, and append the token that ends the model's turn.

    Args:
        tokenizer: the model's.
        trace: must hold a closing think marker.

    Raises:
        DyntsError: the chat template fails, or the tokenizer cannot write the closing think marker.
    """
    prompt = encode_prompt(tokenizer, chat_prompt(tokenizer, trace.question, open_thinking=True))
    thinking, answer = split_response(trace.response)
    format = find_format(tokenizer)
    written = tokenizer.encode(thinking + format.end + answer, add_special_tokens=False)
    scanner = think_scanner(tokenizer, format)
    found = None if scanner is None else scanner.find_end(written)
    if found is None:
        raise DyntsError(f"trace {trace.id!r}: the tokenizer cannot write {format.end}, which ends the thinking")
    thinking_end, answer_start = found
    return TokenizedTrace(
        ids=(*prompt, *written, *_end_of_turn(tokenizer)),
        question_end=len(prompt),
        thinking_end=len(prompt) + thinking_end,
        answer_start=len(prompt) + answer_start,
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the model writes last: not always `eos_token` (Gemma 3 ends a turn with <end_of_turn>)."""
    answer = "ANSWER"
    turn = render_chat(tokenizer, [user_message("question"), {"role": "assistant", "content": answer}])
    closing = tokenizer.encode(turn.rpartition(answer)[2].lstrip(), add_special_tokens=False)[:1]
    if closing and closing[0] in tokenizer.added_tokens_decoder:
        return tuple(closing)
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
