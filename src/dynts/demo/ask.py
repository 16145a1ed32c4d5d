"""Watch one question being answered with the full cache and then under a budget."""

import re
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from rich.console import Console
from rich.live import Live
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from dynts.cache.lengths import GenerationStats
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.chat.thinking import answer_of
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.decode.compress import Predictor, Session, compress
from dynts.demo.trace_view import ShownTrace, final_view, live_view, plain_view
from dynts.errors import DyntsError
from dynts.methods import Full
from dynts.tiny.question import AskedProblem
from dynts.tiny.solve import MAX_NEW_TOKENS, is_solved

_FRAME_SECONDS = 1 / 15


def ask(
    problem: AskedProblem,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    arm: Arm[Predictor],
    config: CompressionConfig,
    console: Console,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> None:
    """Answer a question greedily with the full cache and with a method, and show both.

    A terminal shows the words as they come, evicted ones dimmed; anything else gets plain text at the end.

    Args:
        problem: the question.
        model: the embedded model.
        tokenizer: its tokenizer, one token a word.
        arm: what to compare with the full cache.
        config: the budget.
        console: where to show it.
        max_new_tokens: when to stop.

    Raises:
        DyntsError: a method that evicts nothing, a missing predictor, a budget too small for the question.
    """
    if not arm.method.evicts:
        raise DyntsError("method 'full' is what the other methods are compared with here: choose one that evicts")
    prompt = encode_prompt(tokenizer, chat_prompt(tokenizer, problem.question))
    words = [str(word) for word in tokenizer.convert_ids_to_tokens(prompt)]
    inputs = torch.tensor([prompt], device=model.device)
    config.check_question(len(words))
    methods = {"full cache": Full(), f"{arm.name(question=False)}, budget {config.budget}": arm.method}
    runs = [
        (
            ShownTrace(title, list(words), len(words)),
            compress(model, method, config, arm.predictor, tokenizer=tokenizer, record=True),
        )
        for title, method in methods.items()
    ]
    traces = [trace for trace, _ in runs]

    def run_both(redraw: Callable[[], None]) -> None:
        for trace, session in runs:
            watcher = _Watcher(session, trace, tokenizer, redraw)
            with session:
                generate = cast(Any, model).generate
                generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    streamer=watcher,
                )
            trace.footer = footer(trace, problem, session.stats[-1], watcher.cached)

    if problem.warning is not None:
        console.out(f"Note: {problem.warning}.", highlight=False)
    if not console.is_interactive:
        run_both(lambda: None)
        console.out(plain_view(traces), highlight=False)
        return
    # the alternate screen crops what does not fit and comes through a resize; the watcher redraws it, no thread does
    with Live(
        get_renderable=lambda: live_view(traces, console), console=console, auto_refresh=False, screen=True
    ) as live:
        run_both(live.refresh)
    console.print(final_view(traces, console.width))


class _Watcher(BaseStreamer):
    """Adds the tokens of a run to its trace as they come, and notes which tokens before them have been evicted."""

    def __init__(
        self, session: Session, trace: ShownTrace, tokenizer: PreTrainedTokenizerBase, redraw: Callable[[], None]
    ) -> None:
        self.session = session
        self.trace = trace
        self.tokenizer = tokenizer
        self.redraw = redraw
        self.drawn = 0.0
        self.compactions = 0
        self.lost = 0
        # a token is fed to the model after it was streamed
        self.fed = trace.prompt_tokens - 1

    @property
    def cached(self) -> int:
        """Cached tokens, those of a KV head with native granularity."""
        return self.fed - self.lost

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt [1, tokens] first, then one token [1] at a time."""
        if value.dim() > 1:
            return
        self.fed += 1
        if len(self.session.kept_positions) > self.compactions:
            self.compactions = len(self.session.kept_positions)
            kept = self.session.kept_positions[-1]
            self.lost = self.fed - kept.shape[-1]
            row = kept[0] if kept.dim() == 2 else kept[:, 0]
            self.trace.evicted = set(range(self.fed)) - set(row.flatten().tolist())
        if value.item() != self.tokenizer.eos_token_id:
            self.trace.words.append(str(self.tokenizer.convert_ids_to_tokens(int(value))))
        generated = self.fed - self.trace.prompt_tokens + 1
        self.trace.footer = f"generated tokens: {generated}, cached tokens: {self.cached}"
        now = time.monotonic()
        if now - self.drawn >= _FRAME_SECONDS:
            self.drawn = now
            self.redraw()

    def end(self) -> None:
        """Nothing is left to flush."""


def footer(trace: ShownTrace, problem: AskedProblem, stats: GenerationStats, cached: int) -> str:
    """Lines about a finished run: its answer, and what it cost.

    Args:
        trace: the run.
        problem: the question.
        stats: of its generation.
        cached: tokens in the cache at the end.
    """
    text = " ".join(trace.words[trace.prompt_tokens :])
    boxed = re.findall(r"\\boxed\{ (.*?) \}", answer_of(text) or "")
    if not boxed:
        verdict = f"no answer; {problem.answer} is right"
    elif is_solved(text, problem.answer):
        verdict = f"answer {boxed[-1]}: right"
    else:
        verdict = f"answer {boxed[-1]}: wrong, {problem.answer} is right"
    return (
        f"{verdict}\n"
        f"generated tokens: {stats.generated_tokens}, compactions: {len(stats.compactions)}\n"
        f"cached tokens: {cached} at the end, peak {stats.peak_tokens} ({stats.peak_bytes / 1024:,.0f} KiB)"
    )
