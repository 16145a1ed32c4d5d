"""`dynts train`: fit an importance predictor to labelled traces."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    shards: Annotated[Path, typer.Option(help="Folder written by `dynts label`.")],
    out: Annotated[Path, typer.Option(help="Folder for the predictor.")],
    label: Annotated[str, typer.Option(help="Which stored label to predict: answer or future.")] = "answer",
    transform: Annotated[
        str, typer.Option(help="How labels are scaled within a trace: rank, power, log or linear.")
    ] = "rank",
    compare_transforms: Annotated[
        bool,
        typer.Option(
            "--compare-transforms", help="Choose the transform on a validation split of the training questions."
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training traces; the last one is saved.")] = 15,
    batch_traces: Annotated[
        int | None,
        typer.Option(
            help="Traces per step (default: the paper's 256, fewer where an epoch would have under 100 steps)."
        ),
    ] = None,
    micro_traces: Annotated[int, typer.Option(help="Traces per forward pass; bounds memory only.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    held_out: Annotated[float, typer.Option(help="Share of the questions kept for the reported metrics.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and order.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where that is safe.")] = False,
    device: Annotated[
        str, typer.Option(help="Such as cuda or cpu; auto takes an accelerator if there is one.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a predictor in --out.")] = False,
) -> None:
    """Train an importance predictor and report its held-out metrics beside those of trivial predictors.

    Higher is better, except for mse, which is in units of the transformed label. Metrics are averaged over traces of
    questions that training never saw.
    """
    from dataclasses import replace

    import torch
    from rich.console import Console
    from rich.table import Table

    from dynts.training import train as training
    from dynts.training.saving import check_free, save_predictor
    from dynts.training.shards import ShardFolder

    check_free(out, overwrite)
    if device == "auto":
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    config = training.TrainConfig(
        label=label,
        transform=transform,
        epochs=epochs,
        batch_traces=batch_traces,
        micro_traces=micro_traces,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        held_out=held_out,
        seed=seed,
        bf16=bf16,
    )
    folder = ShardFolder.open(shards)
    progress, output = Console(stderr=True), Console()

    def show(title: str, metrics: dict[str, dict[str, float]]) -> None:
        names = list(next(iter(metrics.values())))
        table = Table(title=title)
        table.add_column(no_wrap=True)
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for row, values in metrics.items():
            table.add_row(row.replace("_", " "), *(f"{values[name]:.3f}" for name in names))
        output.print(table)

    def report(epoch: int, loss: float, metrics: dict[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        progress.print(f"epoch {epoch}/{epochs}  loss {loss:.4f}  held-out: {figures}", highlight=False, soft_wrap=True)

    if compare_transforms:
        compared = training.compare_transforms(folder, config, device=device)
        best = max(compared, key=lambda name: compared[name]["kendall_tau"])
        show("transforms, on the validation split", compared)
        config = replace(config, transform=best)
    result = training.train_predictor(folder, config, device=device, report=report)
    save_predictor(result.predictor, out, overwrite=overwrite)
    title = f"{label}, {config.transform}: {result.train_traces} training and {result.held_out_traces} held-out traces"
    show(title, result.metrics)
    output.print(f"predictor saved in {out}", soft_wrap=True, highlight=False)
