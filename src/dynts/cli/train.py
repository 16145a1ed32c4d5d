"""`dynts train`: fit an importance predictor to labelled traces."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    shards: Annotated[
        list[Path], typer.Option(help="Folder written by `dynts label`; repeat to mix folders of the same model.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the predictor. Run the same command again to continue.")],
    label: Annotated[
        str, typer.Option(help="Which stored label to predict; a native one for each layer and KV head.")
    ] = "answer",
    transform: Annotated[
        str, typer.Option(help="How labels are scaled within a trace: rank, power, log or linear.")
    ] = "rank",
    compare_transforms: Annotated[
        bool,
        typer.Option(
            "--compare-transforms", help="Choose the transform on a validation split of the training questions."
        ),
    ] = False,
    group_by: Annotated[
        str | None,
        typer.Option(help="Report held-out metrics by a column of the traces too, or by folder (the mixed folders)."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training traces; the last one is saved.")] = 15,
    batch_traces: Annotated[
        int | None,
        typer.Option(
            help="Traces per step (default: the paper's 256, fewer where an epoch would have under 100 steps)."
        ),
    ] = None,
    micro_traces: Annotated[int, typer.Option(help="Traces per forward pass of a process; bounds memory only.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    held_out: Annotated[float, typer.Option(help="Share of the questions kept for the reported metrics.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and order.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where that is safe.")] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Minutes between checkpoints, besides one after each epoch.")
    ] = 10,
    device: Annotated[
        str, typer.Option(help="Such as cuda or cpu; auto takes an accelerator if there is one.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a predictor in --out.")] = False,
) -> None:
    """Train an importance predictor and report its held-out metrics beside those of trivial predictors.

    Higher is better, except for mse, which is in units of the transformed label. Metrics are averaged over traces of
    questions that training never saw. For several processes: torchrun --nproc-per-node 2 -m dynts train ...
    """
    from dataclasses import replace

    import torch

    from dynts.cli.train_display import TrainDisplay
    from dynts.models.threads import fit_threads
    from dynts.training import train as training
    from dynts.training.checkpoint import Checkpoint
    from dynts.training.processes import Processes
    from dynts.training.shards import ShardFolder
    from dynts.training.train import check_free, save_predictor, work_folder

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
    folders = [ShardFolder.open(path) for path in shards]
    if device == "cpu":
        fit_threads(folders[0].manifest["settings"]["fingerprint"]["hidden_size"])
    checkpoint = Checkpoint(work_folder(out) / "checkpoint.pt", checkpoint_minutes)
    processes = Processes.join(torch.device(device))
    with TrainDisplay(epochs, visible=processes.is_main) as display:
        try:
            if compare_transforms:
                compared = training.compare_transforms(
                    folders, config, processes=processes, progress=display.step, checkpoint=checkpoint
                )
                display.table("transforms, on the validation split", compared)
                config = replace(config, transform=max(compared, key=lambda name: compared[name]["kendall_tau"]))
            result = training.train_predictor(
                folders,
                config,
                group_by=group_by,
                processes=processes,
                report=display.epoch,
                progress=display.step,
                checkpoint=checkpoint,
            )
        except KeyboardInterrupt as error:
            display.interrupted(checkpoint.path.parent)
            raise typer.Exit(130) from error
    if processes.is_main:
        save_predictor(result.predictor, out, overwrite=overwrite)
    counts = f"{result.train_traces} training and {result.held_out_traces} held-out traces"
    display.table(f"{label}, {config.transform}: {counts}", result.metrics)
    if group_by:
        rows = {
            f"{group} ({result.group_traces[group]}): {name}": values
            for group, metrics in result.groups.items()
            for name, values in metrics.items()
        }
        display.table(f"by {group_by} (held-out traces)", rows)
    display.line(f"predictor saved in {out}")
    processes.leave()
