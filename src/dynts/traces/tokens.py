"""Turn a trace into the token ids that the model would have read and written: question, thinking and answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from dynts.chat.markers import ThinkFormat
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.chat.prompts import chat_prompt, encode_prompt, render_chat, user_message
from dynts.chat.scanner import think_scanner
from dynts.chat.thinking import split_response
from dynts.chat.written import decode_text
from dynts.errors import DyntsError
from dynts.traces.traces import Trace, TraceIds


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


def tokenize_trace(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, chat: ChatOptions = DEFAULT_CHAT
) -> TokenizedTrace:
    """Return the token ids that a model read and wrote, as they were generated where that is known.

    Of other traces prompt and response are tokenized apart, as in generation, with the thinking opened, and the token
    that ends the model's turn is appended.

    Args:
        tokenizer: the model's. Ids that say something else to it than the trace's text are another tokenizer's, and not
            used.
        trace: must hold a closing think marker.
        chat: how the model is talked to; the thinking is opened in any case.

    Raises:
        DyntsError: the chat template fails or closes the thinking, or the tokenizer cannot write the closing think
            marker.
    """
    format = chat.format(tokenizer)
    ids = trace.ids
    if ids is None or not _says(tokenizer, ids.generated, trace.response, format):
        ids = _encode(tokenizer, trace, chat)
    scanner = think_scanner(tokenizer, format)
    found = None if scanner is None else scanner.find_end(ids.generated)
    if found is None:
        raise DyntsError(f"trace {trace.id!r}: the tokenizer cannot write {format.end}, which ends the thinking")
    thinking_end, answer_start = found
    return TokenizedTrace(
        ids=(*ids.prompt, *ids.generated),
        question_end=len(ids.prompt),
        thinking_end=len(ids.prompt) + thinking_end,
        answer_start=len(ids.prompt) + answer_start,
    )


def _says(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], response: str, format: ThinkFormat) -> bool:
    """Return whether ids are those of a response in dynts' form, with the token that ended the turn or without."""
    texts = (decode_text(tokenizer, tokens, format=format) for tokens in (ids, ids[:-1]))
    return any(split_response(text, format.start, format.end) == split_response(response) for text in texts)


def _encode(tokenizer: PreTrainedTokenizerBase, trace: Trace, chat: ChatOptions) -> TraceIds:
    """Return the ids of a trace whose text alone is known."""
    end, format = _end_of_turn(tokenizer, chat), chat.format(tokenizer)
    thinking, answer = split_response(trace.response)
    rendered = chat_prompt(tokenizer, trace.question, replace(chat, open_thinking=False))
    opened = chat_prompt(tokenizer, trace.question, replace(chat, open_thinking=True))
    if opened != rendered:
        # the model writes the marker, and the line break after it, which a response from just after the marker begins
        # with
        said = thinking if thinking[:1].isspace() else f"\n{thinking}"
        written = tokenizer.encode(f"{format.start}{said}{format.end}{answer}", add_special_tokens=False)
        for marker in range(1, len(written)):
            if str(tokenizer.decode(written[:marker])).lstrip().startswith(format.start):
                prompt = (*encode_prompt(tokenizer, rendered), *written[:marker])
                return TraceIds(prompt, (*written[marker:], *end))
    # what the prompt writes after the marker is not written again
    after = opened.rpartition(format.start)[2]
    written = tokenizer.encode(f"{thinking.removeprefix(after)}{format.end}{answer}", add_special_tokens=False)
    return TraceIds(tuple(encode_prompt(tokenizer, opened)), (*written, *end))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, chat: ChatOptions) -> tuple[int, ...]:
    """Return what the model writes last: not always `eos_token` (Gemma 3 ends a turn with <end_of_turn>)."""
    answer = "ANSWER"
    turn = render_chat(tokenizer, [user_message("question"), {"role": "assistant", "content": answer}], chat)
    closing = tokenizer.encode(turn.rpartition(answer)[2].lstrip(), add_special_tokens=False)[:1]
    if closing and closing[0] in tokenizer.added_tokens_decoder:
        return tuple(closing)
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
