"""Answer questions one after another within a session, and say what each cost."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList, set_seed

from dynts.cells import cell_text
from dynts.decode.checkpoint import plain_search, stop_criteria
from dynts.decode.compress import Session
from dynts.decode.finite import NOT_FINITE, FailedRowsEnd, FiniteRows
from dynts.decode.stats import GenerationStats
from dynts.errors import DyntsError
from dynts.jsonlines import read_objects
from dynts.models import end_tokens, input_device
from dynts.prompts import DEFAULT_CHAT, ChatOptions, encode_question
from dynts.written import TextWriter, decode_text


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens; the defaults are the paper's (section 4).

    Args:
        max_new_tokens: when to stop.
        temperature: 0 decodes greedily.
        top_p: sample from the smallest set of tokens with this probability.
        top_k: sample from this many tokens.
        seed: set anew for each question, so that an answer does not depend on the questions before.

    Raises:
        DyntsError: a value is outside its range.
    """

    max_new_tokens: int = 16_384
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise DyntsError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise DyntsError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DyntsError(f"top_p must lie above 0 and be at most 1, got {self.top_p}")
        if self.top_k < 1:
            raise DyntsError(f"top_k must be at least 1, got {self.top_k}")

    def options(self) -> dict[str, object]:
        """Keyword arguments for generate()."""
        if self.temperature == 0:
            # None takes back what the model's own generation config may say about sampling
            plain = {"temperature": None, "top_p": None, "top_k": None}
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, **plain}
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": True, **chosen}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answered question.

    Attributes:
        id: the question's id.
        question: its text.
        text: what the model generated, see `dynts.written`.
        finished: whether the model ended its turn before `max_new_tokens`.
        failed: whether it was stopped because the model's logits were not finite; the text is what came before.
        seconds: wall time, prefill, scoring and eviction included.
        stats: the generation's statistics.
        method: the method's name.
    """

    id: str
    question: str
    text: str
    finished: bool
    failed: bool
    seconds: float
    stats: GenerationStats
    method: str

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall time."""
        return self.stats.generated_tokens / self.seconds

    def print_json(self) -> None:
        """One JSON object on one line of standard output."""
        row = asdict(self)
        stats = row.pop("stats")
        stats["compactions"] = [compaction._asdict() for compaction in self.stats.compactions]
        print(json.dumps({**row, **stats, "tokens_per_second": self.tokens_per_second}, ensure_ascii=False), flush=True)

    def print_stats(self) -> None:
        """A few lines for people."""
        stats = self.stats
        end = "ended its turn" if self.finished else "stopped at the limit of new tokens"
        end = f"failed: {NOT_FINITE}" if self.failed else end
        print(f"\n[{self.id}] {self.method}: {end}")
        print(
            f"  {stats.prompt_tokens} prompt + {stats.generated_tokens} generated tokens "
            f"in {self.seconds:.1f} s ({self.tokens_per_second:.1f} tokens/s, eviction included)"
        )
        print(
            f"  peak cache {stats.peak_tokens} tokens, {stats.peak_bytes / 2**20:.1f} MiB; "
            f"{len(stats.compactions)} compactions",
            flush=True,
        )


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """Ids and questions from JSON Lines: objects with `question` and an optional `id`; blank lines are skipped.

    Raises:
        DyntsError: the file is missing or empty, or a line is malformed; the message names file and line.
    """
    questions = []
    for number, row in read_objects(path, Decimal):
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise DyntsError(f"{path}, line {number}: field 'question' must be a string that is not empty")
        identity = cell_text(row.get("id"), f"{path}, line {number}: field 'id'") or f"line {number}"
        questions.append((identity, text))
    if not questions:
        raise DyntsError(f"{path} holds no questions: it needs one JSON object per line with 'question'")
    return questions


def answer_questions(
    session: Session,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[tuple[str, str]],
    sampling: Sampling,
    chat: ChatOptions = DEFAULT_CHAT,
    stream: bool = False,
) -> Iterator[Answer]:
    """Answer questions in the session's context, one by one.

    Args:
        session: an entered `compress` context.
        tokenizer: the model's tokenizer.
        questions: pairs of id and text.
        sampling: how to draw tokens.
        chat: how the model is talked to.
        stream: write the text to standard output as it comes.
    """
    model = session.model
    ends, stop, format = end_tokens(model), stop_criteria(model, tokenizer), chat.format(tokenizer)
    for identity, question in questions:
        prompt = encode_question(tokenizer, question, chat).ids
        inputs = torch.tensor([prompt], device=input_device(model))
        streamer = TextWriter(tokenizer, ends, format) if stream else None
        finite = FiniteRows(1, inputs.device)
        set_seed(sampling.seed)
        started = time.perf_counter()
        with plain_search(model):
            output = cast(Any, model).generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                **sampling.options(),
                logits_processor=LogitsProcessorList([finite]),
                stopping_criteria=StoppingCriteriaList([FailedRowsEnd(finite)]),
                tokenizer=tokenizer,
                streamer=streamer,
            )
        seconds = time.perf_counter() - started
        generated, failed = output[0, len(prompt) :].tolist(), bool(finite.failed)
        if failed:
            generated.pop()
        finished = not failed and (generated[-1] in ends or (stop is not None and bool(stop(output, None))))
        name = type(session.method).__name__
        text = decode_text(tokenizer, generated, ends, format)
        yield Answer(identity, question, text, finished, failed, seconds, session.stats[-1], name)
