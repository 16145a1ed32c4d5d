"""Collect with transformers, with any dynts method: rows join and leave, so that none waits for another's end."""

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from queue import SimpleQueue

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.lengths import CacheUse
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.chat.prompts import Prompt, encode_question
from dynts.chat.written import decode_text
from dynts.config import ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.decode.checkpoint import check_checkpoint, stop_criteria, stop_strings
from dynts.decode.compress import compress
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.sampling import NOT_FINITE
from dynts.decode.tasks import RowTask, RowToken
from dynts.engines.engine import FULL_CACHE, Completion, Request
from dynts.models import end_tokens, load_model
from dynts.predictor.model import ImportancePredictor

log = logging.getLogger(__name__)


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
    """Generates for a fixed number of rows; one whose sample has ended takes the next request.

    A thread generates, so that whoever takes the completions, grades and stores them meanwhile. It pulls a request when
    there is a row for it, and while at most two samples for each row are under way or wait to be taken.

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
        """Work through requests in their order, consecutive ones of the same arm in one run; see `Engine`."""
        handover = _Handover(2 * self.batch)
        thread = threading.Thread(target=self._work, args=(requests, handover), daemon=True)
        thread.start()
        try:
            while (sample := handover.take()) is not None:
                yield self._completion(sample)
        finally:
            handover.stop()
            thread.join()

    def _work(self, requests: Iterable[Request], handover: "_Handover") -> None:
        try:
            for arm, group in groupby(requests, key=attrgetter("arm")):
                with next(session for item, session in self.sessions if item == arm) as session:
                    run = _Run(ContinuousBatch(session, self.batch), self.tokenizer, self.sampling, handover)
                    run.work((item, self._prompt(item)) for item in group)
                if handover.stopped:
                    return
            handover.put(None)
        except BaseException as error:  # it belongs to the thread that waits for samples
            handover.put(error)

    def _prompt(self, request: Request) -> Prompt:
        return encode_question(self.tokenizer, request.problem.question, self.chat)

    def _completion(self, sample: "_Sample") -> Completion:
        run, prompt = sample.run, sample.prompt
        if sample.failed:
            name = sample.request.id
            log.error("%s: %s after %d tokens; it counts as unfinished", name, NOT_FINITE, len(sample.ids))
        return Completion(
            sample.request,
            decode_text(self.tokenizer, sample.ids, run.end_tokens, self.format),
            sample.finished,
            prompt.ids,
            sample.ids,
            sample.ended - sample.joined,
            run.name,
            sample.ended - run.started,
            sample.cache.lengths(),
            sample.peak_bytes,
            self.format,
            prompt.thinks,
        )


class _Run:
    """One run of the loop: it never stands still between its first request and its last.

    Args:
        batch: new, within its session's context.
        tokenizer: the model's.
        sampling: see `TransformersEngine`.
        handover: takes the samples that end.
    """

    def __init__(
        self, batch: ContinuousBatch, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, handover: "_Handover"
    ) -> None:
        self.batch = batch
        self.sampling = sampling
        self.handover = handover
        self.end_tokens = end_tokens(batch.session.model)
        self.stop = stop_criteria(batch.session.model, tokenizer)
        # a token that belongs to a stop string has one of its bytes at least
        self.window = max((len(text.encode()) for text in stop_strings(batch.session.model)), default=0)
        self.name, self.started = uuid.uuid4().hex, time.perf_counter()

    def work(self, requests: Iterator[tuple[Request, Prompt]]) -> None:
        """Pull requests as rows become free, until there are none and all samples have ended, or nobody waits."""
        exhausted = False
        while not self.handover.stopped:
            while not exhausted and self.batch.free and self.handover.place(wait=self.batch.idle):
                coming = next(requests, None)
                if coming is None:
                    exhausted = True
                    self.handover.give_back()
                else:
                    self._add(*coming)
            if self.batch.idle:
                return
            self.batch.step()

    def _add(self, request: Request, prompt: Prompt) -> None:
        sample = _Sample(self, request, prompt, time.perf_counter())
        sampling = replace(self.sampling, seed=request.sampling_seed)
        self.batch.add(RowTask(prompt.ids, sampling, sample.tell, _raise))

    def stops(self, sample: "_Sample") -> bool:
        """Return whether a sample ends with one of the checkpoint's stop strings, the prompt's text included."""
        if self.stop is None:
            return False
        latest = [*sample.prompt.ids[-self.window :], *sample.ids[-self.window :]][-self.window :]
        return bool(self.stop(torch.tensor([latest]), None))


@dataclass(eq=False, slots=True)
class _Sample:
    """A request under way, and how it ended.

    Attributes:
        joined: when it got its row, by `time.perf_counter`.
        ids: of the tokens that it got.
        finished: whether it ended its turn.
        failed: whether its logits failed instead.
        ended: when.
        peak_bytes: allocated for its row by then.
        cache: what it held.
    """

    run: _Run
    request: Request
    prompt: Prompt
    joined: float
    ids: list[int] = field(default_factory=list)
    finished: bool = False
    failed: bool = False
    ended: float = 0.0
    peak_bytes: int = 0
    cache: CacheUse = field(default_factory=CacheUse)

    def tell(self, token: RowToken) -> bool:
        """Take the next token; whether the sample has ended."""
        self.cache.observe(token.cached, token.fed)
        self.failed = token.failed
        if not token.failed:
            self.ids.append(token.token)
            self.finished = token.token in self.run.end_tokens or self.run.stops(self)
        ended = self.failed or self.finished or len(self.ids) == self.run.sampling.max_new_tokens
        if ended:
            self.ended, self.peak_bytes = time.perf_counter(), self.run.batch.bytes_per_row
            self.run.handover.put(self)
        return ended


class _Handover:
    """Where the thread that generates leaves the samples that have ended for whoever takes them.

    Args:
        most: samples that are under way or have ended and are not taken yet.

    Attributes:
        stopped: whether nobody takes any more.
    """

    def __init__(self, most: int) -> None:
        self.stopped = False
        self._ended: SimpleQueue[_Sample | BaseException | None] = SimpleQueue()
        self._places = threading.Semaphore(most)

    def place(self, wait: bool) -> bool:
        """Take a place for a sample that begins; whether there was one."""
        return self._places.acquire(blocking=wait) and not self.stopped

    def give_back(self) -> None:
        """Give back a place: its sample has been taken, or there was none to begin."""
        self._places.release()

    def put(self, found: _Sample | BaseException | None) -> None:
        """Leave a sample that has ended; an error, or None, where none will come any more."""
        self._ended.put(found)

    def take(self) -> _Sample | None:
        """Wait for the next sample; None if none will come.

        Raises:
            BaseException: that of the thread.
        """
        found = self._ended.get()
        if isinstance(found, BaseException):
            raise found
        self.give_back()
        return found

    def stop(self) -> None:
        """Let nothing more begin, and wake up who waits for a place."""
        self.stopped = True
        self._places.release()


def _raise(error: Exception) -> None:
    """End the run."""
    raise error
