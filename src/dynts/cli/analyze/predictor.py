"""`dynts analyze predictor`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dynts.cli.analyze.common import Out, prepare


def predictor(
    *,
    predictor: Annotated[str, typer.Option(help="Importance predictor: a folder or the id of a Hub repository.")],
    shards: Annotated[list[Path], typer.Option(help="Folder written by `dynts label`; may be repeated.")],
    out: Out,
    split: Annotated[
        Literal["auto", "held-out", "all"],
        typer.Option(help="held-out: what training left out; auto: that, or all if it was trained on other traces."),
    ] = "auto",
    group_by: Annotated[
        str | None, typer.Option(help="Also by a column of the traces, or by folder (several --shards).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the predictor runs, such as cuda or cpu.")] = "cpu",
) -> None:
    """How well a predictor orders tokens: MSE, Kendall tau, overlap of top tokens, calibration; beside trivial predictors."""
    prepare(out)

    from dynts.analyze.prediction import choose_traces, measure_prediction
    from dynts.predictor.model import ImportancePredictor
    from dynts.report.folder import write_report
    from dynts.report.prediction import draw_prediction, prediction_page, prediction_record
    from dynts.training.shards import ShardFolder

    loaded = ImportancePredictor.from_pretrained(predictor).to(device)
    config = loaded.config
    folders = [ShardFolder.open(path) for path in shards]
    folds, words = choose_traces(folders, config, split, group_by)
    found = measure_prediction(loaded, folds, grouped=group_by is not None)
    source = {"predictor": predictor, "shards": ", ".join(map(str, shards)), "label": config.label}
    source |= {"transform": config.transform, "analysed": words}
    source |= {"grouped by": group_by} if group_by else {}
    drawing = draw_prediction(found, config.transform)
    write_report(out, "predictor", prediction_record(found, source), prediction_page(found, source), drawing)
    metrics = found.metrics["predictor"]
    print(
        f"{words}: Kendall tau {metrics['kendall_tau']:.3f}, top-30% overlap {metrics['top30_overlap']:.3f}; "
        f"page and picture in {out}"
    )
