"""vLLM's reasoning parser that knows all think markers that dynts knows: `--reasoning-parser dynts`."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser

from dynts.chat.options import ChatOptions
from dynts.chat.prompts import known_arguments, render_prompt, user_message
from dynts.chat.scanner import think_scanner
from dynts.chat.thinking import ReasoningSplit
from dynts.chat.written import hidden_tokens


class DyntsReasoningParser(ReasoningParser):
    """Tells thinking from answer as dynts' own server does.

    The markers are those of tokenizer and chat template, or of DYNTS_THINK_START and DYNTS_THINK_END.

    What a prompt does with the thinking is what its template does with any question and the request's template
    arguments.
    """

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        start, end = (os.environ.get(f"DYNTS_THINK_{name}") or None for name in ("START", "END"))
        # vLLM adds arguments of its own, and leaves it to templates which they look at
        arguments = known_arguments(tokenizer, kwargs.get("chat_template_kwargs") or {})
        chat = ChatOptions(False, start, end, arguments)
        self.format = chat.format(tokenizer)
        self.thinks = render_prompt(tokenizer, [user_message("question")], chat).thinks
        self.scanner = think_scanner(tokenizer, self.format)
        self.split = ReasoningSplit(self.thinks, self.format)

    @property
    def reasoning_start_str(self) -> str:
        """The opening marker."""
        return self.format.start

    @property
    def reasoning_end_str(self) -> str:
        """The closing marker."""
        return self.format.end

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Say whether the thinking is over after a prompt."""
        return self.thinks is False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Say whether the thinking is over after the tokens generated so far.

        Args:
            input_ids: all tokens so far.
            delta_ids: the latest of them.
        """
        if self.thinks is False or self.scanner is None:
            return self.thinks is False
        return bool(self.scanner.after_thinking(torch.tensor([[*input_ids, -1]]))[0, -1])

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the tokens after the thinking."""
        found = None if self.scanner is None else self.scanner.find_end(input_ids)
        return [] if found is None else list(input_ids[found[1] :])

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Count the generated tokens that are thinking, an opening marker included."""
        if self.thinks is False:
            return 0
        found = None if self.scanner is None else self.scanner.find_end(token_ids)
        return len(token_ids) if found is None else found[0]

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Split a whole text into thinking and answer.

        Args:
            model_output: the text.
            request: it answers.
        """
        reasoning, content = ReasoningSplit(self.thinks, self.format).whole(model_output)
        return reasoning or None, content or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Return what is certain of thinking and answer by now, and was not before.

        Args:
            previous_text: before this piece.
            current_text: with it.
            delta_text: the piece.
            previous_token_ids: before this piece.
            current_token_ids: with it.
            delta_token_ids: of the piece.
        """
        reasoning, content = self.split.feed(delta_text)
        return DeltaMessage(reasoning=reasoning or None, content=content or None) if reasoning or content else None

    def adjust_request(self, request: Any) -> Any:
        """Have markers written out that are special tokens, which vLLM would leave out of the text."""
        if set(self.model_tokenizer.all_special_ids) - hidden_tokens(self.model_tokenizer, (), self.format):
            request.skip_special_tokens = False
        return request
