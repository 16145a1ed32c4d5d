"""`dynts analyze pareto`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dynts.cli.analyze.common import FIT, WORK_OUT, complete, describe, load, prepare
from dynts.cli.checks import check_chat
from dynts.cli.console import Continues, show_page
from dynts.config import ModelSource
from dynts.options import option, part
from dynts.predictor.label import FUTURE_WINDOW, shared_label
from dynts.training.config import LabelOptions


@dataclass(kw_only=True)
class ParetoCommand(Continues):
    """What `dynts analyze pareto` is given."""

    source: ModelSource = part(
        name="Answers, and labels the traces: a folder or the id of a Hub repository.",
        attention=None,
        open_thinking=None,
    )
    traces: tuple[Path, ...] = option(help="Traces as for `dynts label`; may be repeated.")
    out: Path = option(help=WORK_OUT)
    predictor: str | None = option(None, help="Importance predictor: a folder or the id of a Hub repository.")
    label: Literal["answer", "future"] | None = option(
        None, help="What counts as true importance (default: what the predictor predicts, or answer)."
    )
    shares: str = option("0,2,5,10,20,30,40,50,60,70,80,90,100", help="Percentages of the thinking tokens to keep.")
    max_answer_tokens: int = option(1024, help="Stop an answer after this many tokens.")
    batch: int = option(8, help="Answers generated at a time; memory is at most 1 + this many caches of a trace.")
    fit: LabelOptions = part(**FIT, seed="Seed of the random choice.")


def pareto(given: ParetoCommand) -> None:
    """How few thinking tokens an answer needs: accuracy by the share of them that is kept.

    The model reads question and thinking, loses all but the question and the top, bottom, most recent or random part of
    the thinking, and answers. Top and bottom go by the true importance and, with --predictor, by the predicted one.
    """
    out, source = given.out, given.source
    prepare(out)

    from dynts.analyze.measure import measure_traces
    from dynts.analyze.pareto import Pareto, ParetoOptions, curves, parse_shares, weights_sha256
    from dynts.grading.grader import Grader
    from dynts.predictor.model import ImportancePredictor
    from dynts.report.folder import write_report
    from dynts.report.pareto import draw_pareto, pareto_page, pareto_record
    from dynts.store.progress import Display
    from dynts.traces.sets import as_sets

    scorer = None if given.predictor is None else ImportancePredictor.from_pretrained(given.predictor)
    options = ParetoOptions(
        shares=parse_shares(given.shares),
        label=given.label or (shared_label(scorer.config.label) if scorer else "answer"),
        future_window=(scorer.config.future_window if scorer else None) or FUTURE_WINDOW,
        max_answer_tokens=given.max_answer_tokens,
        batch=given.batch,
        chunk=given.fit.chunk,
        seed=given.fit.seed,
    )
    sets = as_sets(given.traces)
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
            given.fit,
            lambda place, trace, tokens: experiment.measure(place, trace, tokens, grader),
            display.count,
            source.chat,
        )
    if complete(rows, total):
        found = curves(rows, options.shares)
        about = {"model": source.path, "traces": ", ".join(sets.names), "label": options.label}
        about |= {"predictor": given.predictor} if given.predictor else {}
        page = pareto_page(found, rows, about)
        figure = draw_pareto(found, len(rows))
        show_page(write_report(out, "pareto", pareto_record(found, rows, about), page, figure))
