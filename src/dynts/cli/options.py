"""Options that several commands have."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from dynts.chat.options import ChatOptions
    from dynts.config import ModelSource


def _take_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Let a settings file give the defaults of the options of the same names, so that options given explicitly win."""
    if path is not None:
        from dynts.config import load_settings
        from dynts.errors import DyntsError

        try:
            values = load_settings(path).values()
        except DyntsError as error:
            raise typer.BadParameter(str(error)) from error
        repeatable = {option.name for option in context.command.params if getattr(option, "multiple", False)}
        context.default_map = {
            name: _listed(value) if name in repeatable else value for name, value in values.items() if value is not None
        }
    return path


def _listed(value: Any) -> list[str]:
    """A setting as an option takes it that may be repeated: an object as its NAME=VALUE."""
    return [f"{name}={json.dumps(item)}" for name, item in value.items()] if isinstance(value, dict) else [value]


SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        callback=_take_settings,
        is_eager=True,
        help="Take method, predictor, budget, think markers and the like from this file, as `dynts tune` writes it; "
        "options given explicitly win.",
    ),
]

GraderOption = Annotated[
    Literal["dynts", "math-verify"],
    typer.Option(
        "--grader",
        help="Whose verdicts count: dynts's rules, or math-verify, the library alone, as others use it. Both are kept.",
    ),
]
GgufFile = Annotated[str | None, typer.Option(help="GGUF file inside the model folder or repository.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="dtype to run the model in (default: the checkpoint's; quantised GGUF weights are unpacked to bfloat16 where "
        "the device has it)."
    ),
]
Device = Annotated[str, typer.Option(help="Such as cuda or cpu; auto spreads over all devices there are.")]
Attention = Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa (default: the model's).")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]

PredictorName = Annotated[
    str | None, typer.Option(help="Importance predictor: a folder or the id of a Hub repository.")
]
Budget = Annotated[int, typer.Option(help="Most cached tokens, question included.")]
LocalWindow = Annotated[int, typer.Option(help="Most recent tokens that every compaction keeps.")]
RetentionRatio = Annotated[
    float, typer.Option(help="Share of the remaining room that selected tokens keep at a compaction.")
]

Granularity = Annotated[
    Literal["shared", "native"] | None,
    typer.Option(
        help="h2o, snapkv, rkv, and dynts with a predictor of a native label: one set of tokens for all heads (shared, the "
        "default), or one per layer and KV head (native)."
    ),
]

Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 decodes greedily.")]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set with this probability.")]
TopK = Annotated[int, typer.Option(help="Sample from this many tokens.")]
OpenThinking = Annotated[
    bool, typer.Option(help="Open the thinking in the prompt where the chat template leaves that to the model.")
]
ThinkStart = Annotated[
    str | None,
    typer.Option(help="How the model opens its thinking, as text (default: found in tokenizer and chat template)."),
]
ThinkEnd = Annotated[
    str | None,
    typer.Option(help="How the model closes its thinking, as text (default: found in tokenizer and chat template)."),
]
TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE for the chat template, such as enable_thinking=false; JSON, or text; may be repeated."
    ),
]


def chat_options(
    open_thinking: bool, think_start: str | None, think_end: str | None, template_arg: list[str] | None
) -> "ChatOptions":
    """What the last four options say.

    Raises:
        DyntsError: a template argument without a name, or given twice; markers that are no markers.
    """
    from dynts.chat.options import ChatOptions
    from dynts.errors import DyntsError

    arguments: dict[str, Any] = {}
    for text in template_arg or []:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals:
            raise DyntsError(f"--template-arg takes NAME=VALUE, such as enable_thinking=false, got {text!r}")
        if name in arguments:
            raise DyntsError(f"--template-arg gives {name!r} twice: drop one")
        try:
            arguments[name] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[name] = value
    return ChatOptions(open_thinking, think_start, think_end, arguments)


def check_chat(source: "ModelSource", *, opened: bool = False) -> None:
    """Refuse what a model's tokenizer and chat template cannot do, before the model is loaded.

    Args:
        source: the model, and how it is talked to.
        opened: the thinking is opened in any case, as in labelling.

    Raises:
        DyntsError: an argument that the template does not know, a marker that the tokenizer cannot write, and the like.
    """
    from dynts.chat.options import DEFAULT_CHAT
    from dynts.chat.prompts import render_prompt, user_message
    from dynts.models import load_tokenizer

    if source.chat != DEFAULT_CHAT:
        tokenizer = load_tokenizer(source)
        opening = replace(source.chat, open_thinking=source.chat.open_thinking or opened)
        render_prompt(tokenizer, [user_message("question")], opening)
