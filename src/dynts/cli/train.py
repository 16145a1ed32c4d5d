"""`dynts train`: fit an importance predictor to labelled traces."""

from dataclasses import dataclass, replace
from pathlib import Path

import typer

from dynts.cli.console import load_libraries
from dynts.options import option, part
from dynts.training.config import TrainConfig


@dataclass(kw_only=True)
class TrainCommand:
    """What `dynts train` is given."""

    shards: tuple[Path, ...] = option(help="Folder written by `dynts label`; repeat to mix folders of the same model.")
    out: Path = option(help="Folder for the predictor. Run the same command again to continue.")
    config: TrainConfig = part()
    compare_transforms: bool = option(
        False, switch=True, help="Choose the transform on a validation split of the training questions."
    )
    group_by: str | None = option(
        None, help="Report held-out metrics by a column of the traces too, or by folder (the mixed folders)."
    )
    checkpoint_minutes: float = option(10, help="Minutes between checkpoints, besides one after each epoch.")
    device: str = option("auto", help="Such as cuda or cpu; auto takes an accelerator if there is one.")
    overwrite: bool = option(False, switch=True, help="Replace a predictor in --out.")


def train(given: TrainCommand) -> None:
    """Train an importance predictor and report its held-out metrics beside those of trivial predictors.

    Higher is better, except for mse, which is in units of the transformed label. Metrics are averaged over traces of
    questions that training never saw. For several processes: torchrun --nproc-per-node 2 -m dynts train ...
    """
    load_libraries("dynts.training.train")

    import torch

    from dynts.cli.train_display import TrainDisplay
    from dynts.models.threads import fit_threads
    from dynts.training.checkpoint import Checkpoint
    from dynts.training.processes import Processes
    from dynts.training.shards import ShardFolder
    from dynts.training.train import check_free, compare_transforms, save_predictor, train_predictor, work_folder

    check_free(given.out, given.overwrite)
    device, config = given.device, given.config
    if device == "auto":
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    folders = [ShardFolder.open(path) for path in given.shards]
    if device == "cpu":
        fit_threads(folders[0].manifest["settings"]["fingerprint"]["hidden_size"])
    checkpoint = Checkpoint(work_folder(given.out) / "checkpoint.pt", given.checkpoint_minutes)
    processes = Processes.join(torch.device(device))
    with TrainDisplay(config.epochs, visible=processes.is_main) as display:
        try:
            if given.compare_transforms:
                compared = compare_transforms(
                    folders, config, processes=processes, progress=display.step, checkpoint=checkpoint
                )
                display.table("transforms, on the validation split", compared)
                config = replace(config, transform=max(compared, key=lambda name: compared[name]["kendall_tau"]))
            result = train_predictor(
                folders,
                config,
                group_by=given.group_by,
                processes=processes,
                report=display.epoch,
                progress=display.step,
                checkpoint=checkpoint,
            )
        except KeyboardInterrupt as error:
            display.interrupted(checkpoint.path.parent)
            raise typer.Exit(130) from error
    if processes.is_main:
        save_predictor(result.predictor, given.out, overwrite=given.overwrite)
    counts = f"{result.train_traces} training and {result.held_out_traces} held-out traces"
    display.table(f"{config.label}, {config.transform}: {counts}", result.metrics)
    if given.group_by:
        rows = {
            f"{group} ({result.group_traces[group]}): {name}": values
            for group, metrics in result.groups.items()
            for name, values in metrics.items()
        }
        display.table(f"by {given.group_by} (held-out traces)", rows)
    display.line(f"predictor saved in {given.out}")
    processes.leave()
