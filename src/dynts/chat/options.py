"""How a model is talked to. Light: the command line reads it before torch or transformers are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynts.chat.markers import ThinkFormat, find_format
from dynts.errors import DyntsError
from dynts.options import option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED_ARGUMENTS = ("messages", "add_generation_prompt")
"""Arguments of a chat template that dynts itself gives."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How a model is talked to, where the user knows better than its tokenizer and chat template.

    Args:
        open_thinking: open the thinking in the prompt where the chat template leaves that to the model.
        think_start: opens the thinking, as text; None where `dynts.chat.markers.find_format` finds it.
        think_end: closes it, likewise.
        template_args: further variables of the chat template, such as {"enable_thinking": False}.

    Raises:
        DyntsError: both markers are the same or empty, or an argument has a name that is taken or no name.
    """

    open_thinking: bool = option(
        False, help="Open the thinking in the prompt where the chat template leaves that to the model."
    )
    think_start: str | None = option(
        None, help="How the model opens its thinking, as text (default: found in tokenizer and chat template)."
    )
    think_end: str | None = option(
        None, help="How the model closes its thinking, as text (default: found in tokenizer and chat template)."
    )
    template_args: Mapping[str, Any] = option(
        factory=dict,
        flag="--template-arg",
        kind=list[str],
        named=True,
        help="NAME=VALUE for the chat template, such as enable_thinking=false; JSON, or text; may be repeated.",
    )

    def __post_init__(self) -> None:
        if self.think_start is not None and self.think_end is not None:
            ThinkFormat(self.think_start, self.think_end)
        for name in self.template_args:
            if not name.isidentifier():
                raise DyntsError(f"{name!r} is no name that a chat template could look at: check it")
            if name in RESERVED_ARGUMENTS:
                raise DyntsError(f"the template argument {name!r} is what dynts itself gives: leave it out")

    def format(self, tokenizer: "PreTrainedTokenizerBase") -> ThinkFormat:
        """Return how the model writes its think markers: as the user says, else as its tokenizer shows.

        Raises:
            DyntsError: the tokenizer cannot write the user's.
        """
        from dynts.chat.scanner import think_scanner  # loads torch

        format = find_format(tokenizer, self.think_start, self.think_end)
        given = self.think_start is not None or self.think_end is not None
        if given and think_scanner(tokenizer, format) is None:
            raise DyntsError(f"the tokenizer cannot write the think marker {format.end!r}: check --think-end")
        return format

    def settings(self) -> dict[str, Any]:
        """Return what manifests record; what is not given is left out, so that folders of earlier versions continue."""
        found = {"open_thinking": self.open_thinking, "think_start": self.think_start, "think_end": self.think_end}
        arguments = {"template_args": dict(self.template_args)} if self.template_args else {}
        return {name: value for name, value in found.items() if value is not None} | arguments


DEFAULT_CHAT = ChatOptions()
