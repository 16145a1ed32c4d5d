"""Contexts in, responses out: what a harness asks for, generated under a budget."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import dynts
from dynts.cache.lengths import CacheUse
from dynts.chat.prompts import encode_prompt, render_chat, render_prompt
from dynts.chat.spelling import RowText, Spelling
from dynts.chat.streaming import StopStrings
from dynts.chat.thinking import ReasoningSplit, answer_of
from dynts.cli.checks import check_chat, load_session, resolve
from dynts.collect.plan import arm_settings, model_files
from dynts.config import Sampling
from dynts.decode.checkpoint import stop_strings
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.sampling import NOT_FINITE
from dynts.decode.tasks import RowTask, RowToken
from dynts.errors import DyntsError
from dynts.harness.settings import HarnessSettings
from dynts.models import end_tokens
from dynts.store.progress import Display
from dynts.store.torchrun import this_rank

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """One response that is asked for.

    Args:
        context: the prompt, few-shot examples and chat template included.
        sampling: how to draw tokens, and when to stop.
        until: strings that end the response and are left out of it. They count after the thinking only.
    """

    context: str
    sampling: Sampling
    until: tuple[str, ...] = ()


@dataclass(slots=True)
class ResponseTotals:
    """What all responses so far cost.

    Attributes:
        samples: how many there are.
        finished: of these, how many ended before the limit of new tokens.
        without_answer: how many never ended their thinking, and are empty.
        prompt_tokens: that were read.
        generated_tokens: that were written.
        compactions: of all sequences.
        evicted_tokens: likewise.
        peak_tokens: most cached tokens of a sequence.
    """

    samples: int = 0
    finished: int = 0
    without_answer: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    compactions: int = 0
    evicted_tokens: int = 0
    peak_tokens: int = 0


class Answerer:
    """A model that answers under a budget: any method, rows that join and leave.

    Args:
        settings: model, method and budget.
        batch: rows at a time.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        counters: of all responses so far.

    Raises:
        DyntsError: one of several processes, or model, predictor or method cannot be had, or do not fit together.
        UnsupportedError: the model cannot be compressed exactly.
    """

    def __init__(self, settings: HarnessSettings, batch: int) -> None:
        if this_rank().world > 1:
            raise DyntsError("one process evaluates, got several (torchrun): start one, device=auto takes all GPUs")
        self.settings = settings
        self.batch = batch
        self.arm = resolve(settings.chosen)
        check_chat(settings.source)
        self.session, self.model, self.tokenizer = load_session(settings.source, self.arm)
        self.format = settings.source.chat.format(self.tokenizer)
        self.counters = ResponseTotals()
        self._spelling = Spelling(self.tokenizer, end_tokens(self.model), self.format)
        self._special = {
            token.content: index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }

    @property
    def vocabulary(self) -> int:
        """How many tokens there are to choose from: a top-k of it leaves none out."""
        return int(self.model.config.get_text_config().vocab_size)

    def render(self, messages: list[dict[str, str]], *, complete: bool = True) -> str:
        """Return messages in the model's chat template.

        Args:
            messages: of the conversation.
            complete: whether the model begins a turn; else it goes on with the last message.

        Raises:
            DyntsError: the chat template fails.
        """
        chat = self.settings.source.chat
        if complete:
            return render_prompt(self.tokenizer, messages, chat).text
        return render_chat(self.tokenizer, messages, chat, add_generation_prompt=False, continue_final_message=True)

    def encode(self, context: str) -> list[int]:
        """Return the token ids of a context.

        One with special tokens in it, as chat templates write them, is read as it is. To plain text the tokenizer adds
        its own, such as BOS.
        """
        return encode_prompt(self.tokenizer, context, raw=not any(token in context for token in self._special))

    def answer(self, asked: Sequence[Asked], tell: Callable[[int, str], object] = lambda *_: None) -> list[str]:
        """Return the responses, in the order in which they are asked for.

        Args:
            asked: all of them.
            tell: told of each as it is there, by its place.

        Raises:
            DyntsError: the budget has no room for a context; before anything is generated.
        """
        prompts = [self.encode(each.context) for each in asked]
        if self.arm.schedule is not None:
            self.arm.schedule.check_question(max(map(len, prompts), default=0))
        found: dict[int, str] = {}
        with self.session as session, Display("generating") as display:
            batch = ContinuousBatch(session, self.batch)

            def ended(place: int, row: _Row) -> None:
                found[place] = row.response
                self._count(row)
                tell(place, row.response)
                display.count(len(found), len(asked))

            display.count(0, len(asked))
            waiting = deque(enumerate(zip(asked, prompts, strict=True)))
            while waiting or not batch.idle:
                while waiting and batch.free:
                    place, (each, prompt) = waiting.popleft()
                    batch.add(self._row(each, prompt, partial(ended, place)).task)
                batch.step()
        return [found[place] for place in range(len(asked))]

    def describe(self) -> dict[str, Any]:
        """Return what made the responses and what they cost, for a harness' results."""
        arm, source = self.arm, self.settings.source
        budget = {} if arm.schedule is None else arm.schedule.settings()
        settings = {
            "method": arm.method.name,
            "granularity": arm.method.granularity,
            "protect_question": arm.method.protect_question,
            "predictor": arm.predictor,
            **budget,
            "thinking": self.settings.thinking,
            "max_gen_toks": self.settings.max_gen_toks,
            "batch": self.batch,
            "device": str(self.model.device),
            **source.settings(),
            **source.chat.settings(),
        }
        return {"version": dynts.__version__, "settings": settings, "counters": asdict(self.counters)}

    def identity(self) -> dict[str, Any]:
        """Return what decides the responses: the settings without the batch and the device, and the files read."""
        settings = self.describe()["settings"]
        files = {
            "model_files": model_files(self.settings.source.name),
            "predictor_files": arm_settings(self.arm)["predictor_files"],
        }
        return {name: value for name, value in settings.items() if name not in ("batch", "device")} | files

    def _row(self, asked: Asked, prompt: list[int], ended: "Callable[[_Row], object]") -> "_Row":
        split = ReasoningSplit(self._thinks(asked.context), self.format) if self.settings.thinking else None
        tokens = {self._special[text] for text in asked.until if text in self._special}
        own = StopStrings(stop_strings(self.model))
        return _Row(asked, prompt, self._spelling, own, split, tokens, ended)

    def _thinks(self, context: str) -> bool | None:
        """Return whether a context ends within the thinking, see `dynts.chat.prompts.ChatPrompt`."""
        told = context.rstrip()
        opened, closed = told.endswith(self.format.start), told.endswith(self.format.end)
        return None if opened == closed else opened

    def _count(self, row: "_Row") -> None:
        so_far, cache = self.counters, row.cache
        so_far.samples += 1
        so_far.finished += row.finished
        so_far.without_answer += row.thinking
        so_far.prompt_tokens += len(row.task.prompt)
        so_far.generated_tokens += row.generated_tokens
        so_far.compactions += len(cache.compactions)
        so_far.evicted_tokens += cache.evicted_tokens
        so_far.peak_tokens = max(so_far.peak_tokens, cache.peak_tokens)


class _Row:
    """A response under way.

    Args:
        asked: what is asked for.
        prompt: token ids.
        spelling: of the model's tokens.
        own: the checkpoint's stop strings.
        split: tells the thinking from the answer; None where all counts.
        tokens: ids that end it, besides those that end a turn.
        ended: told when it has ended.

    Attributes:
        task: what the decode loop is given.
        cache: what its cache did.
        generated_tokens: so far.
        finished: whether it ended before the limit of new tokens.
        response: once it has ended.
    """

    def __init__(
        self,
        asked: Asked,
        prompt: list[int],
        spelling: Spelling,
        own: StopStrings,
        split: ReasoningSplit | None,
        tokens: Collection[int],
        ended: "Callable[[_Row], object]",
    ) -> None:
        self.task = RowTask(prompt, asked.sampling, self._take, self._fail)
        self.cache = CacheUse()
        self.generated_tokens = 0
        self.finished = False
        self.response = ""
        self._text = RowText(spelling, continues=False)
        self._ends = frozenset((*spelling.end_tokens, *tokens))
        self._own = own
        self._split = split
        self._until = StopStrings(asked.until)
        self._ended = ended

    @property
    def thinking(self) -> bool:
        """Whether it has begun to think, and not ended that."""
        return self._split is not None and bool(self._split.thinks)

    def _take(self, token: RowToken) -> bool:
        self.cache.observe(token.cached, token.fed)
        if token.failed:
            log.error("%s after %d tokens of a response; it counts as unfinished", NOT_FINITE, self.generated_tokens)
        else:
            self.generated_tokens += 1
            self._write(self._own.feed(self._text.feed(token.token)))
            self.finished = token.token in self._ends or self._own.found or self._until.found
        if not (token.failed or self.finished or self.generated_tokens == self.task.sampling.max_new_tokens):
            return False
        if not self._until.found:
            self._close()
        if self._split is not None:
            answer = answer_of(self.response, self._split.format.end)
            self.response = self.response if answer is None else answer.lstrip()
        self._ended(self)
        return True

    def _write(self, text: str) -> None:
        """Take more text."""
        if self._split is not None:
            text = self._split.feed(text).content
        self._answer(text)

    def _close(self) -> None:
        """Take what was held back, as nothing more comes."""
        if not self._own.found:
            self._write(self._own.feed(self._text.flush()) + self._own.flush())
        if self._split is not None:
            self._answer(self._split.flush().content)
        self.response += self._until.flush()

    def _answer(self, text: str) -> None:
        """Take more of what counts; white space between thinking and answer, which may be a stop string, does not."""
        if self._split is not None and self._split.closed and not self.response:
            text = text.lstrip()
        if not self._until.found:
            self.response += self._until.feed(text)

    def _fail(self, error: Exception) -> None:
        raise error


def greedy_or_drawn(given: Mapping[str, Any], vocabulary: int, seed: int) -> Sampling:
    """Return how to draw tokens, as harnesses say it: what they do not say limits nothing.

    Args:
        given: `max_gen_toks`, and possibly `do_sample`, `temperature`, `top_p` and `top_k`.
        vocabulary: how many tokens there are.
        seed: of the sample.

    Raises:
        DyntsError: a value is outside its range, or a temperature is missing.
    """
    temperature = float(given.get("temperature") or 0.0)
    drawn = given.get("do_sample")
    if drawn and temperature == 0:
        raise DyntsError("do_sample=true needs a temperature above 0: give one, such as temperature=0.6")
    limits = {} if given.get("top_p") is None else {"top_p": float(given["top_p"])}
    top_k = given.get("top_k")
    return Sampling(
        int(given["max_gen_toks"]),
        temperature if drawn else 0.0,
        limits.get("top_p", 1.0),
        vocabulary if top_k in (None, 0, -1) else int(top_k),
        seed,
    )
