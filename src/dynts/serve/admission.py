"""From a request to the rows that answer it: prompts, limits, settings."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dynts.chat.options import ChatOptions
from dynts.chat.prompts import Prompt, encode_prompt, render_prompt
from dynts.chat.written import ClosingWatch
from dynts.config import CompressionConfig, Sampling
from dynts.errors import DyntsError
from dynts.serve.protocol import ApiError, ChatRequest, CompletionRequest, GenerationRequest


@dataclass(frozen=True, slots=True)
class Admission:
    """What a server takes.

    Args:
        name: the model's, as clients call it.
        tokenizer: the model's.
        vocabulary: number of token ids that the model knows.
        positions: most tokens of prompt and completion that the model knows; None where it does not say.
        method: name of the method that the cache works by.
        schedule: the budget; None without one.
        defaults: sampling where a request leaves it open; its `max_new_tokens` is the limit for all.
        max_completions: of one request.
        chat: how the model is talked to.
        watch: told of every chat answer.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    positions: int | None
    method: str
    schedule: CompressionConfig | None
    defaults: Sampling
    max_completions: int
    chat: ChatOptions
    watch: ClosingWatch

    def model_card(self) -> dict[str, Any]:
        """Return what /v1/models says of the model."""
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "dynts"}
        return card | {"max_model_len": self.positions}

    def check_model(self, name: str) -> None:
        """Refuse another model than the one that is served.

        Raises:
            ApiError: names both.
        """
        if name != self.name:
            raise ApiError(
                404, f"the model {name!r} does not exist here: use {self.name!r}", "model", "model_not_found"
            )

    def prompts(self, request: GenerationRequest) -> list[Prompt]:
        """Return the prompts of a request, encoded.

        Raises:
            ApiError: another model is asked for, or a prompt is empty, too long or no prompt.
        """
        if request.model is not None:
            self.check_model(request.model)
        completions = (len(request.prompt) if isinstance(request, CompletionRequest) else 1) * (request.n or 1)
        if completions > self.max_completions:
            raise ApiError(
                400,
                f"{completions} completions were asked for, {self.max_completions} is the limit: ask for fewer",
                "n",
            )
        if request.stream_options is not None and not request.stream:
            raise ApiError(400, "stream_options are for streams: set stream, or leave them out", "stream_options")
        if isinstance(request, ChatRequest):
            field, prompts = "messages", [self._chat_prompt(request)]
        else:
            assert isinstance(request, CompletionRequest)
            field, prompts = "prompt", [self._plain_prompt(prompt) for prompt in request.prompt]
        for prompt in prompts:
            self._check_length(len(prompt.ids), field)
        return prompts

    def sampling(self, request: GenerationRequest, prompt: Prompt, sample: int) -> Sampling:
        """Return how to draw the tokens of one completion of a prompt.

        Args:
            request: what is asked.
            prompt: one of its prompts.
            sample: which of the prompt's completions.

        Raises:
            ApiError: more tokens are asked for than there may be.
        """
        given: dict[str, Any] = request.sampling
        given["seed"] = secrets.randbits(63) if "seed" not in given else given["seed"] + sample
        limit = self.defaults.max_new_tokens
        if self.positions is not None:
            limit = min(limit, self.positions - len(prompt.ids))
        field, asked = request.token_limit
        if asked is not None and asked > limit:
            raise ApiError(
                400,
                f"{asked} tokens were asked for; after a prompt of {len(prompt.ids)} tokens {limit} is the limit: "
                "lower it",
                field,
            )
        return replace(self.defaults, **given, max_new_tokens=asked or limit)

    def _chat_prompt(self, request: ChatRequest) -> Prompt:
        messages = [message.for_template() for message in request.messages]
        arguments = {**self.chat.template_args, **(request.chat_template_kwargs or {})}
        try:
            text, thinks = render_prompt(self.tokenizer, messages, replace(self.chat, template_args=arguments))
        except DyntsError as error:
            field = "chat_template_kwargs" if request.chat_template_kwargs else "messages"
            raise ApiError(400, str(error), field) from error
        return Prompt(encode_prompt(self.tokenizer, text), thinks)

    def _plain_prompt(self, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(encode_prompt(self.tokenizer, prompt, raw=True))
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise ApiError(400, f"token id {wrong} does not exist: ids go from 0 to {self.vocabulary - 1}", "prompt")
        return Prompt(prompt)

    def _check_length(self, tokens: int, field: str) -> None:
        if not tokens:
            raise ApiError(400, "the prompt is empty", field)
        if self.positions is not None and tokens >= self.positions:
            raise ApiError(
                400,
                f"the prompt has {tokens} tokens; the model knows {self.positions} positions, completion included: "
                "shorten it",
                field,
                "context_length_exceeded",
            )
        if self.schedule is not None:
            try:
                self.schedule.check_question(tokens)
            except DyntsError as error:
                raise ApiError(400, f"{error}, or a shorter prompt", field, "context_length_exceeded") from error
