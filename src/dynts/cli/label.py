"""`dynts label`: label the thinking tokens of reasoning traces with a model's own attention."""

from pathlib import Path
from typing import Annotated

import typer


def label(
    model: Annotated[str, typer.Option(help="Base model: a folder or the id of a Hub repository.")],
    traces: Annotated[
        Path,
        typer.Option(help="JSON Lines with question, response (after the opening think marker), answer, optional id."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards. Run the same command again to continue.")],
    labels: Annotated[
        str,
        typer.Option(help="answer: mean attention from the answer; future: most attention from any later token."),
    ] = "answer,future",
    future_window: Annotated[
        int, typer.Option(help="The future label counts tokens more than this many positions later.")
    ] = 32,
    max_tokens: Annotated[int, typer.Option(help="Drop longer traces, prompt and answer included.")] = 16_384,
    keep_incorrect: Annotated[
        bool, typer.Option(help="Keep traces whose answer is wrong or cannot be graded.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Label the first fit traces only, this many.")] = None,
    tokens_per_trace: Annotated[
        int | None, typer.Option(help="Store hidden states of this many random thinking tokens a trace (default: all).")
    ] = None,
    store_dtype: Annotated[
        str | None, typer.Option(help="dtype of the stored hidden states (default: the model's).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the choice of tokens.")] = 0,
    chunk: Annotated[
        int, typer.Option(help="Rows of attention in memory at a time; does not change the result.")
    ] = 128,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file inside the model folder or repository.")] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype to run the model in (default: the checkpoint's).")] = None,
    device: Annotated[str, typer.Option(help="Such as cuda or cpu; auto spreads over all devices there are.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")] = None,
) -> None:
    """Label the thinking tokens of reasoning traces: the training data for `dynts train`.

    Keeps traces that finish their thinking, answer correctly (last boxed answer) and are no longer than --max-tokens,
    one per question. One teacher-forced forward per trace; attention is recomputed a few rows at a time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dynts.models import load_model, parse_dtype
    from dynts.training.labelling import label_traces
    from dynts.training.traces import read_traces

    stored = None if store_dtype is None else parse_dtype(store_dtype)
    read_traces(traces)  # a malformed line should not cost the loading of a model first
    loaded, tokenizer = load_model(model, gguf_file=gguf_file, dtype=dtype, device=device, revision=revision)
    console = Console(stderr=True)
    columns = (TextColumn("labelling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("labelling", total=None)
        folder = label_traces(
            loaded,
            tokenizer,
            traces,
            out,
            name=f"{model}/{gguf_file}" if gguf_file else model,
            labels=tuple(name.strip() for name in labels.split(",")),
            future_window=future_window,
            max_tokens=max_tokens,
            keep_incorrect=keep_incorrect,
            limit=limit,
            tokens_per_trace=tokens_per_trace,
            store_dtype=stored,
            seed=seed,
            chunk=chunk,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    dropped = ", ".join(f"{reason} {count}" for reason, count in folder.manifest["dropped"].items() if count)
    print(
        f"{len(folder.indices)} of {folder.manifest['traces']} traces labelled in {out}; dropped: {dropped or 'none'}"
    )
