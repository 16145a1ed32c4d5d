"""`dynts analyze pareto`."""

from pathlib import Path
from typing import Annotated

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
    PredictorName,
    Revision,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    chat_options,
    check_chat,
)


def pareto(
    *,
    model: Annotated[str, typer.Option(help="Answers, and labels the traces: a folder or the id of a Hub repository.")],
    traces: Annotated[list[Path], typer.Option(help="Traces as for `dynts label`; may be repeated.")],
    out: WorkOut,
    predictor: PredictorName = None,
    label: Annotated[
        Label | None,
        typer.Option(help="What counts as true importance (default: what the predictor predicts, or answer)."),
    ] = None,
    shares: Annotated[str, typer.Option(help="Percentages of the thinking tokens to keep.")] = (
        "0,2,5,10,20,30,40,50,60,70,80,90,100"
    ),
    max_answer_tokens: Annotated[int, typer.Option(help="Stop an answer after this many tokens.")] = 1024,
    batch: Annotated[
        int, typer.Option(help="Answers generated at a time; memory is at most 1 + this many caches of a trace.")
    ] = 8,
    limit: Limit = None,
    max_tokens: MaxTokens = 16_384,
    keep_incorrect: KeepIncorrect = False,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
    chunk: Chunk = 128,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    revision: Revision = None,
) -> None:
    """How few thinking tokens an answer needs: accuracy by the share of them that is kept.

    The model reads question and thinking, loses all but the question and the top, bottom, most recent or random part of the
    thinking, and answers. Top and bottom go by the true importance and, with --predictor, by the predicted one.
    """
    from dataclasses import asdict

    prepare(out)

    from dynts.analyze.measure import measure_traces
    from dynts.analyze.pareto import Pareto, ParetoOptions, curves, parse_shares, weights_sha256
    from dynts.config import ModelSource
    from dynts.grading.grader import Grader
    from dynts.predictor.label import FUTURE_WINDOW, shared_label
    from dynts.predictor.model import ImportancePredictor
    from dynts.report.folder import write_report
    from dynts.report.pareto import draw_pareto, pareto_page, pareto_record
    from dynts.store.progress import Display
    from dynts.traces.sets import as_sets
    from dynts.training.labeller import LabelOptions

    scorer = None if predictor is None else ImportancePredictor.from_pretrained(predictor)
    options = ParetoOptions(
        shares=parse_shares(shares),
        label=label or (shared_label(scorer.config.label) if scorer else "answer"),
        future_window=(scorer.config.future_window if scorer else None) or FUTURE_WINDOW,
        max_answer_tokens=max_answer_tokens,
        batch=batch,
        chunk=chunk,
        seed=seed,
    )
    chat = chat_options(False, think_start, think_end, template_arg)
    source = ModelSource(model, revision, gguf_file, dtype, device, chat=chat)
    fit = LabelOptions((options.label,), max_tokens=max_tokens, keep_incorrect=keep_incorrect, limit=limit)
    sets = as_sets(traces)
    made_by = "dynts analyze pareto"
    check_chat(source, opened=True)
    loaded, tokenizer = load(out, made_by, sets, source)
    experiment = Pareto(loaded, tokenizer, scorer and scorer.to(loaded.device), options)
    bounds = {"batch", "chunk"}  # of memory, not of what comes out
    settings = {
        **describe(loaded, source),
        **{name: value for name, value in asdict(options).items() if name not in bounds},
        "predictor": scorer and weights_sha256(scorer),
    }
    with Display("analysing") as display, Grader() as grader:
        rows, total = measure_traces(
            out,
            made_by,
            settings,
            sets,
            tokenizer,
            fit,
            lambda place, trace, tokens: experiment.measure(place, trace, tokens, grader),
            display.count,
            chat,
        )
    if complete(rows, total):
        found = curves(rows, options.shares)
        about = {"model": source.path, "traces": ", ".join(sets.names), "label": options.label}
        about |= {"predictor": predictor} if predictor else {}
        page = pareto_page(found, rows, about)
        write_report(out, "pareto", pareto_record(found, rows, about), page, draw_pareto(found, len(rows)))
        print(f"{len(rows)} traces, page and picture in {out}")
