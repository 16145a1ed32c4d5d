"""Collect with transformers, in batches, with any dynts method."""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.lengths import cache_lengths
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.chat.prompts import Prompt, encode_question
from dynts.chat.written import decode_text
from dynts.config import ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.decode.checkpoint import check_checkpoint, stop_criteria
from dynts.decode.compress import Session, compress
from dynts.decode.sampling import NOT_FINITE, FiniteRows
from dynts.decode.static_rows import generate_rows
from dynts.engines.engine import FULL_CACHE, Completion, Request
from dynts.models import end_tokens, input_device, load_model
from dynts.predictor.model import ImportancePredictor

log = logging.getLogger(__name__)

_WINDOW = 16
"""Batches that are sorted by prompt length together."""


@dataclass(frozen=True, slots=True)
class TransformersSpec:
    """How to start a `TransformersEngine`.

    Args:
        source: the model.
        sampling: how to draw tokens; its seed is not used, each request has one.
        arms: all that requests will ask for.
        batch: rows at a time.
    """

    source: ModelSource
    sampling: Sampling
    arms: tuple[Arm[str], ...]
    batch: int

    def start(self) -> "TransformersEngine":
        """Load model and predictors.

        Raises:
            DyntsError: one of them cannot be loaded, or does not fit the model.
            UnsupportedError: the model cannot be compressed exactly.
        """
        names = {item.predictor for item in self.arms} - {None}
        predictors = {name: ImportancePredictor.from_pretrained(name) for name in names if name is not None}
        model, tokenizer = load_model(self.source)
        return TransformersEngine(
            model,
            tokenizer,
            self.sampling,
            self.arms,
            predictors,
            batch=self.batch,
            chat=self.source.chat,
        )


class TransformersEngine:
    """`model.generate` in batches, each in a `dynts.compress` context.

    A batch runs until its longest row ends. A thread generates, so that whoever takes the completions, grades and
    stores them meanwhile.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        sampling: how to draw tokens; its seed is not used, each request has one.
        arms: all that requests will ask for.
        predictors: those that the arms name.
        batch: rows at a time.
        chat: how the model is talked to.

    Raises:
        DyntsError: a predictor does not fit the model.
        UnsupportedError: the model cannot be compressed exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        arms: Sequence[Arm[str]] = (FULL_CACHE,),
        predictors: Mapping[str, ImportancePredictor] | None = None,
        *,
        batch: int = 20,
        chat: ChatOptions = DEFAULT_CHAT,
    ) -> None:
        check_checkpoint(model)
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.batch = batch
        self.chat = chat
        self.format = chat.format(tokenizer)
        # made at once, so that what does not fit shows before hours of work on what does
        self.sessions = [
            (
                item,
                compress(
                    model,
                    item.method,
                    item.config,
                    (predictors or {}).get(item.predictor or ""),
                    tokenizer=tokenizer,
                    markers=self.format,
                ),
            )
            for item in arms
        ]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Work through requests, `batch` of the same arm at a time; see `Engine`."""
        for arm, group in groupby(requests, key=attrgetter("arm")):
            with next(session for item, session in self.sessions if item == arm) as session:
                while window := list(islice(group, self.batch * _WINDOW)):
                    yield from self._work(session, window)

    def _work(self, session: Session, requests: Sequence[Request]) -> Iterator[Completion]:
        """Several batches, each of prompts of similar length."""
        prompts = [encode_question(self.tokenizer, item.problem.question, self.chat) for item in requests]
        order = sorted(range(len(requests)), key=lambda index: len(prompts[index].ids))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            yield from self._run(session, [requests[index] for index in chosen], [prompts[index] for index in chosen])

    def _run(self, session: Session, requests: Sequence[Request], prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """One batch, through a queue that a thread fills."""
        cache = session.new_cache()
        ends, stop = end_tokens(self.model), stop_criteria(self.model, self.tokenizer)
        finite = FiniteRows(len(requests), input_device(self.model))
        rows = _Rows(finite, self.sampling.max_new_tokens, ends, stop, cache)
        batch = uuid.uuid4().hex
        thread = threading.Thread(
            target=self._generate, args=(requests, [prompt.ids for prompt in prompts], rows, cache), daemon=True
        )
        thread.start()
        try:
            for _ in requests:
                ended = rows.ended.get()
                if isinstance(ended, BaseException):
                    raise ended
                prompt = prompts[ended.row]
                if ended.failed:
                    name = requests[ended.row].id
                    log.error("%s: %s after %d tokens; it counts as unfinished", name, NOT_FINITE, len(ended.ids))
                yield Completion(
                    requests[ended.row],
                    decode_text(self.tokenizer, ended.ids, ends, self.format),
                    ended.finished,
                    prompt.ids,
                    ended.ids,
                    ended.seconds,
                    batch,
                    cache_lengths(len(prompt.ids), len(ended.ids), cache.schedule),
                    ended.peak_bytes // len(requests),
                    self.format,
                    prompt.thinks,
                )
        finally:
            rows.stopped = True
            thread.join()
            session.stats.clear()

    def _generate(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], rows: "_Rows", cache: BudgetCache
    ) -> None:
        samplings = [replace(self.sampling, seed=request.sampling_seed) for request in requests]
        try:
            criteria = StoppingCriteriaList([rows])
            generate_rows(
                self.model,
                self.tokenizer,
                prompts,
                samplings,
                rows.finite,
                stopping_criteria=criteria,
                **{CACHE: cache},
            )
            rows.end()
        except BaseException as error:  # it belongs to the thread that waits for rows
            rows.ended.put(error)


class _Ended(NamedTuple):
    """A row of a batch at its end.

    Its number, its tokens, whether it ended its turn, whether its logits failed instead, and what the batch had cost by
    then.
    """

    row: int
    ids: list[int]
    finished: bool
    failed: bool
    seconds: float
    peak_bytes: int


class _Rows(StoppingCriteria):
    """Puts each row of a batch into a queue when it ends."""

    def __init__(
        self,
        finite: FiniteRows,
        max_new_tokens: int,
        end_tokens: frozenset[int],
        stop: StopStringCriteria | None,
        cache: BudgetCache,
    ) -> None:
        self.finite = finite
        self.max_new_tokens = max_new_tokens
        self.end_tokens = end_tokens
        self.stop = stop
        self.cache = cache
        self.tokens: dict[int, list[int]] = {row: [] for row in range(len(finite.failed))}
        self.ended: queue.SimpleQueue[_Ended | BaseException] = queue.SimpleQueue()
        self.started = time.perf_counter()
        self.stopped = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows have ended. input_ids: int64 [rows, columns], the new token last."""
        if self.stopped:
            raise KeyboardInterrupt
        latest, failed = self.finite.latest(input_ids)
        stopped = [False] * len(latest) if self.stop is None else self.stop(input_ids, scores).tolist()
        for row in list(self.tokens):
            if failed[row]:
                self._end(row, failed=True)
                continue
            self.tokens[row].append(latest[row])
            if latest[row] in self.end_tokens or stopped[row]:
                self._end(row, finished=True)
            elif len(self.tokens[row]) >= self.max_new_tokens:
                self._end(row)
        ended = [row not in self.tokens for row in range(len(latest))]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]

    def end(self) -> None:
        """Whatever else ended the batch (the checkpoint's `max_time`) ended the rows that are left."""
        for row in list(self.tokens):
            self._end(row)

    def _end(self, row: int, *, finished: bool = False, failed: bool = False) -> None:
        seconds = time.perf_counter() - self.started
        self.ended.put(_Ended(row, self.tokens.pop(row), finished, failed, seconds, self.cache.peak_bytes))
