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

from dynts.cache.lengths import GenerationStats
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.chat.prompts import encode_question
from dynts.chat.written import TextWriter, decode_text
from dynts.config import Sampling
from dynts.decode.checkpoint import plain_search, stop_criteria
from dynts.decode.compress import Session
from dynts.decode.sampling import NOT_FINITE, FailedRowsEnd, FiniteRows
from dynts.errors import DyntsError
from dynts.models import end_tokens, input_device
from dynts.store.cells import cell_text
from dynts.store.jsonlines import read_objects


@dataclass(frozen=True, slots=True)
class Answer:
    """An answered question.

    Attributes:
        id: the question's id.
        question: its text.
        text: what the model generated, see `dynts.chat.written`.
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

    def to_json(self) -> str:
        """Return one JSON object on one line."""
        row = asdict(self)
        stats = row.pop("stats")
        stats["compactions"] = [compaction._asdict() for compaction in self.stats.compactions]
        return json.dumps(
            {**row, **stats, "mean_tokens": self.stats.mean_tokens, "tokens_per_second": self.tokens_per_second},
            ensure_ascii=False,
        )

    def describe(self) -> str:
        """Return a few lines on how the answer ended, and what it cost."""
        stats = self.stats
        end = "ended its turn" if self.finished else "stopped at the limit of new tokens"
        end = f"failed: {NOT_FINITE}" if self.failed else end
        return (
            f"[{self.id}] {self.method}: {end}\n"
            f"  {stats.prompt_tokens} prompt + {stats.generated_tokens} generated tokens "
            f"in {self.seconds:.1f} s ({self.tokens_per_second:.1f} tokens/s, eviction included)\n"
            f"  peak cache {stats.peak_tokens} tokens, {stats.peak_bytes / 2**20:.1f} MiB; "
            f"mean {stats.mean_tokens:.0f} tokens; {len(stats.compactions)} compactions"
        )


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """Read ids and questions from JSON Lines: objects with `question` and an optional `id`; blank lines are skipped.

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
