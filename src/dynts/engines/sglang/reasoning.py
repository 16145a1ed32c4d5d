"""SGLang's reasoning parser that knows all think markers that dynts knows: `--reasoning-parser dynts`."""

import os
from typing import Any

from sglang.srt.parser.reasoning_parser import BaseReasoningFormatDetector, ReasoningParser, StreamingParseResult

from dynts.chat.markers import matching_formats
from dynts.chat.options import ChatOptions
from dynts.chat.prompts import render_prompt, user_message
from dynts.chat.thinking import Parts, ReasoningSplit
from dynts.engines.sglang.settings import PARSER


def register_parser() -> None:
    """Make the parser known to SGLang, in this process."""
    ReasoningParser.DetectorMap[PARSER] = ThinkDetector


class ThinkDetector(BaseReasoningFormatDetector):
    """Tells thinking from answer as dynts' own server does.

    The markers are those of tokenizer and chat template, or of DYNTS_THINK_START and DYNTS_THINK_END.

    What a prompt does with the thinking is what its template does with any question, unless SGLang reads from the
    request that it is switched.

    Args:
        tokenizer: the model's; SGLang gives it wherever it splits texts.
        force_reasoning: whether SGLang takes the thinking to be on.
        options: further ones of all of SGLang's detectors.
    """

    def __init__(self, tokenizer: Any = None, force_reasoning: bool | None = None, **options: Any) -> None:
        start, end = (os.environ.get(f"DYNTS_THINK_{name}") or None for name in ("START", "END"))
        if tokenizer is None:
            format, thinks = matching_formats(start, end)[0], None
        else:
            chat = ChatOptions(False, start, end)
            format, thinks = chat.format(tokenizer), render_prompt(tokenizer, [user_message("question")], chat).thinks
        # where SGLang finds no switch in the template it takes the thinking to be what this says
        default = "always" if thinks else "explicit_thinking"
        super().__init__(format.start, format.end, reasoning_default=default, **options)
        if thinks is not None and force_reasoning is not None:
            thinks = force_reasoning
        if format.end in self.previous_content:
            thinks = False
        elif format.start in self.previous_content:
            thinks = True
        self.split = ReasoningSplit(thinks, format)

    def detect_and_parse(self, text: str) -> StreamingParseResult:
        """Split a whole text."""
        return _result(self.split.whole(text))

    def parse_streaming_increment(self, new_text: str) -> StreamingParseResult:
        """Return what is certain of thinking and answer with a piece of text, and was not before."""
        return _result(self.split.feed(new_text))

    def finish(self) -> StreamingParseResult:
        """Return what was held back, once nothing more comes."""
        return _result(self.split.flush())


def _result(parts: Parts) -> StreamingParseResult:
    return StreamingParseResult(parts.content, parts.reasoning)
