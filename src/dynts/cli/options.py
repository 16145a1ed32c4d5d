"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer


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
            name: [value] if name in repeatable else value for name, value in values.items() if value is not None
        }
    return path


SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        callback=_take_settings,
        is_eager=True,
        help="Take method, predictor, budget, local window and retention ratio from this file, as `dynts tune` writes it; "
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
