"""`dynts analyze importance`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynts.cli.analyze.common import (
    Chunk,
    KeepIncorrect,
    Label,
    Limit,
    MaxTokens,
    WorkOut,
    complete,
    describe,
    load,
    prepare,
)
from dynts.cli.options import (
    Device,
    Dtype,
    GgufFile,
    Revision,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    chat_options,
    check_chat,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynts.analyze.importance import Importance
    from dynts.config import ModelSource


def importance(
    *,
    out: WorkOut,
    shards: Annotated[
        list[Path] | None, typer.Option(help="Folder written by `dynts label`; may be repeated. Thinking tokens only.")
    ] = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(help="Instead: traces as for `dynts label`, which --model labels with their question."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Labels --traces; of --shards its tokenizer spells the tokens.")
    ] = None,
    label: Annotated[Label, typer.Option(help="Which stored label of --shards.")] = "answer",
    limit: Limit = None,
    max_tokens: MaxTokens = 16_384,
    keep_incorrect: KeepIncorrect = False,
    chunk: Chunk = 128,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    revision: Revision = None,
) -> None:
    """How importance is spread: above the mean, top tokens, question and thinking, position, which tokens.

    From labelled shards; or from traces and a model, which takes a pass per trace and knows about the question too. The
    options from --limit on are for --traces.
    """
    from dynts.config import ModelSource
    from dynts.errors import DyntsError

    prepare(out)
    if (shards is None) == (traces is None):
        raise DyntsError("give either --shards, or --traces with the --model that labels them")
    if shards is not None:
        _importance_of_shards(shards, label, out, None if model is None else ModelSource(model, revision, gguf_file))
        return
    if model is None:
        raise DyntsError("--traces need --model: its attention says how important a token is")
    if label != "answer":
        raise DyntsError(f"question tokens have the answer label only: leave out --label {label}, or give --shards")

    from dynts.analyze.importance import Importance, describe_with_question
    from dynts.analyze.measure import measure_traces
    from dynts.store.progress import Display
    from dynts.traces.sets import as_sets
    from dynts.training.labeller import LabelOptions

    chat = chat_options(False, think_start, think_end, template_arg)
    source = ModelSource(model, revision, gguf_file, dtype, device, chat=chat)
    options = LabelOptions(("answer",), max_tokens=max_tokens, keep_incorrect=keep_incorrect, limit=limit, chunk=chunk)
    sets = as_sets(traces or [])
    made_by = "dynts analyze importance"
    check_chat(source, opened=True)
    loaded, tokenizer = load(out, made_by, sets, source)
    with Display("analysing") as display:
        rows, total = measure_traces(
            out,
            made_by,
            describe(loaded, source),
            sets,
            tokenizer,
            options,
            lambda place, trace, tokens: describe_with_question(loaded, tokens, chunk),
            display.count,
            chat,
        )
    if complete(rows, total):
        about = {"model": source.path, "traces": ", ".join(sets.names), "label": "answer"}
        _write_importance(out, Importance.of(rows), about, tokenizer)


def _importance_of_shards(paths: list[Path], label: str, out: Path, source: "ModelSource | None") -> None:
    from dynts.analyze.importance import Importance, describe_shards
    from dynts.models import load_tokenizer
    from dynts.training.shards import ShardFolder

    folders = [ShardFolder.open(path) for path in paths]
    tokenizer = None if source is None else load_tokenizer(source)
    found = Importance.of(describe_shards(folders, label))
    _write_importance(out, found, {"shards": ", ".join(map(str, paths)), "label": label}, tokenizer)


def _write_importance(
    out: Path, found: "Importance", source: dict[str, Any], tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    from dynts.report.folder import write_report
    from dynts.report.importance import draw_importance, importance_page, importance_record

    def spell(token: int) -> str:
        return f"#{token}" if tokenizer is None else str(tokenizer.decode([token]))

    page = importance_page(found, source, spell)
    write_report(out, "importance", importance_record(found, source, spell), page, draw_importance(found, spell))
    print(
        f"{found.traces} traces: {found.above_mean:.1%} of the thinking tokens above the mean, "
        f"the top 20% hold {found.mass_of(0.2):.1%} of the importance; page and picture in {out}"
    )
