"""`dynts analyze predictor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynts.cli.analyze.common import prepare
from dynts.cli.console import show, show_page
from dynts.options import option


@dataclass(kw_only=True)
class PredictorCommand:
    """What `dynts analyze predictor` is given."""

    predictor: str = option(help="Importance predictor: a folder or the id of a Hub repository.")
    shards: tuple[Path, ...] = option(help="Folder written by `dynts label`; may be repeated.")
    out: Path = option(help="Folder for page, numbers and picture (.md, .json, .png, .svg).")
    split: Literal["auto", "held-out", "all"] = option(
        "auto", help="held-out: what training left out; auto: that, or all if it was trained on other traces."
    )
    group_by: str | None = option(None, help="Also by a column of the traces, or by folder (several --shards).")
    device: str = option("cpu", help="Where the predictor runs, such as cuda or cpu.")


def predictor(given: PredictorCommand) -> None:
    """How well a predictor orders tokens: MSE, Kendall tau, overlap of top tokens, calibration; beside trivial
    predictors."""  # noqa: D205, D209 - the help text is one sentence
    prepare(given.out)

    from dynts.analyze.prediction import choose_traces, measure_prediction
    from dynts.predictor.model import ImportancePredictor
    from dynts.report.folder import write_report
    from dynts.report.prediction import draw_prediction, prediction_page, prediction_record
    from dynts.store.progress import bar
    from dynts.training.shards import ShardFolder

    loaded = ImportancePredictor.from_pretrained(given.predictor).to(given.device)
    config = loaded.config
    folders = [ShardFolder.open(path) for path in given.shards]
    folds, words = choose_traces(folders, config, given.split, given.group_by)
    with bar("measuring", sum(len(fold.analysed) for fold in folds)) as shown:
        found = measure_prediction(loaded, folds, grouped=given.group_by is not None, done=shown.advance)
    source = {"predictor": given.predictor, "shards": ", ".join(map(str, given.shards)), "label": config.label}
    source |= {"transform": config.transform, "analysed": words}
    source |= {"grouped by": given.group_by} if given.group_by else {}
    drawing = draw_prediction(found, config.transform)
    record, page = prediction_record(found, source), prediction_page(found, source)
    written = write_report(given.out, "predictor", record, page, drawing)
    metrics = found.metrics["predictor"]
    show(f"{words}: Kendall tau {metrics['kendall_tau']:.3f}, top-30% overlap {metrics['top30_overlap']:.3f}")
    show_page(written)
