"""How rows of a batch draw their tokens, each by settings of its own, and end when a model fails them."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
)

from dynts.config import Sampling
from dynts.decode.checkpoint import more_warpers, plain_search
from dynts.models import end_tokens, input_device

NOT_FINITE = "the model's logits are not finite (NaN or infinite)"
"""What is said of such a row; why is not known: weights or a dtype that overflow, as float16 does."""


class FiniteRows(LogitsProcessor):
    """Notes the rows without a finite largest logit, for good, and gives them logits that can be drawn from.

    It comes before all other processors. What such a row draws means nothing: whoever reads the tokens looks at
    `failed`, and ends the row.

    Args:
        rows: of the batch.
        device: of the input, where `generate` brings the logits.

    Attributes:
        failed: bool [rows].
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.failed = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [rows, vocabulary], `generate`'s own copy, set to zero in the rows that failed."""
        self.failed |= ~scores.amax(dim=-1).isfinite()  # NaN if there is one
        return scores.masked_fill_(self.failed[:, None], 0.0)  # type: ignore[return-value]

    def latest(self, input_ids: torch.Tensor) -> tuple[list[int], list[bool]]:
        """Return each row's latest token and whether the row has failed, fetched from the device at once.

        Args:
            input_ids: int64 [rows, columns].
        """
        tokens, failed = torch.stack([input_ids[:, -1], self.failed.long()]).tolist()
        return tokens, list(map(bool, failed))


class FailedRowsEnd(StoppingCriteria):
    """Ends the rows that `FiniteRows` has noted."""

    def __init__(self, finite: FiniteRows) -> None:
        self.finite = finite

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return which rows have ended: bool [rows]."""
        return self.finite.failed  # type: ignore[return-value]


_LARGEST = 1 - 2**-20
"""Below 1 by more than a sum of float32 probabilities can be off."""
_TIED = 200
"""Most tokens that are looked at beyond the k likeliest, for those that are as likely as the last of these."""


class RowSampling(LogitsProcessor):
    """Chooses each row's next token and gives it the highest score, for greedy search to pick.

    Top-k comes first, so that all else is done for a few candidates instead of the vocabulary. Tokens that tie with the
    last of the k are candidates too, as in transformers, up to `_TIED` of them.

    Args:
        samplings: of the rows: seed, temperature (0 is greedy), top-k and top-p.
        device: of the logits.
        more: further warpers, applied after those.
    """

    def __init__(
        self, samplings: Sequence[Sampling], device: torch.device, more: Sequence[LogitsProcessor] = ()
    ) -> None:
        rows_of: dict[tuple[int, float, float], list[int]] = {}
        for row, sampling in enumerate(samplings):
            if sampling.temperature:
                rows_of.setdefault((sampling.top_k, sampling.temperature, sampling.top_p), []).append(row)
        self.groups = []
        for (top_k, temperature, top_p), rows in rows_of.items():
            nucleus = [StableTopP(top_p)] if top_p < 1 else []
            warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), *nucleus, *more])
            self.groups.append((top_k, warpers, torch.tensor(rows, device=device)))
        # drawn at once and on the CPU: the same on every device, and no transfer at each step
        steps = max(sampling.max_new_tokens for sampling in samplings)
        draws = [
            torch.rand(steps, generator=torch.Generator().manual_seed(sampling.seed)).clamp(max=_LARGEST)
            for sampling in samplings
        ]
        self.draws = torch.stack(draws, dim=1).to(device)
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [rows, vocabulary], `generate`'s own copy, with those of the chosen tokens raised."""
        for top_k, warpers, rows in self.groups:
            of_rows = scores if len(rows) == len(scores) else scores[rows]
            tokens, logits = _candidates(of_rows, top_k)
            mass = warpers(input_ids, logits.float()).softmax(dim=-1).cumsum(dim=-1)
            point = self.draws[self.step, rows, None] * mass[:, -1:]
            chosen = torch.searchsorted(mass, point, right=True)
            if tokens is not None:
                chosen = tokens.gather(1, chosen)
            # a plain number would be copied to the device, and waited for
            scores[rows[:, None], chosen] = scores.new_full((), torch.finfo(scores.dtype).max)
        self.step += 1
        return scores


def _candidates(scores: torch.Tensor, top_k: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Find the tokens that top-k leaves, in the order of the vocabulary, which is the one that draws go by.

    Args:
        scores: [rows, vocabulary].
        top_k: how many tokens, beside those that tie with the last one.

    Returns:
        The tokens [rows, candidates], None for the whole vocabulary, and their scores, -inf where top-k leaves it out.
    """
    if top_k >= scores.shape[1]:
        return None, scores
    best, tokens = scores.topk(min(top_k + _TIED, scores.shape[1]))
    tokens, order = tokens.sort(dim=-1)
    least = best[:, top_k - 1 : top_k]
    best = best.gather(1, order)
    return tokens, best.masked_fill(best < least, -torch.inf)


class StableTopP(LogitsProcessor):
    """Keeps the smallest set of tokens with a probability, as `TopPLogitsWarper` of transformers does.

    Where tokens at its edge are equally likely, as they often are in half precision, it leaves out those that come
    first in the vocabulary. That one takes whichever the device's sort puts first.

    Args:
        top_p: the probability, below 1.
    """

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores [rows, tokens], -inf outside the set."""
        ascending, order = scores.sort(dim=-1, stable=True)
        outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        outside[:, -1] = False  # one is always left
        return scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)  # type: ignore[return-value]


class RowMinLength(LogitsProcessor):
    """Lets no row end before it has a length, prompt included and padding not.

    Args:
        length: in tokens.
        padding: int64 [rows, 1], tokens before each prompt.
        end_tokens: what ends a row.
    """

    def __init__(self, length: int, padding: torch.Tensor, end_tokens: Collection[int]) -> None:
        self.length = length
        self.padding = padding
        self.ends = torch.tensor(sorted(end_tokens), dtype=torch.long, device=padding.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [rows, vocabulary], `generate`'s own copy.

        Rows that are too short have -inf for what would end them.
        """
        short = input_ids.shape[1] - self.padding < self.length
        scores[:, self.ends] = scores[:, self.ends].masked_fill(short, -torch.inf)
        return scores


def generate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    finite: FiniteRows,
    **options: Any,
) -> None:
    """Call `model.generate` once, until the longest row ends; inside a `dynts.compress` context, under its budget.

    Args:
        model: a loaded model.
        tokenizer: its tokenizer, for the token that pads.
        prompts: token ids of each row.
        samplings: how to draw each row's tokens. All rows may go on until the largest `max_new_tokens` of them.
        finite: notes the rows that fail; whoever sees the tokens ends them.
        options: further arguments of `generate`: stopping criteria, to see the tokens as they come; they have to know
            the checkpoint's stop strings too (`dynts.decode.checkpoint`).
    """
    width, device = max(map(len, prompts)), input_device(model)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else next(iter(end_tokens(model)), 0)
    # what pads is masked, but penalties look at it: a row's own first token adds nothing to what they see
    ids = torch.tensor([[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    # the sampling is a logits processor of ours: to generate() the search is greedy
    plain: dict[str, Any] = {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "stop_strings": None,
    }
    processors = LogitsProcessorList([finite])
    assert model.generation_config is not None
    if least := model.generation_config.min_length:
        plain["min_length"] = 0  # generate() would count the padding
        processors.append(RowMinLength(least, (mask == 0).sum(dim=1, keepdim=True), end_tokens(model)))
    if any(sampling.temperature for sampling in samplings):
        processors.append(RowSampling(samplings, device, more_warpers(model)))
    with plain_search(model):
        cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(sampling.max_new_tokens for sampling in samplings),
            pad_token_id=pad,
            logits_processor=processors,
            **plain,
            **options,
        )
