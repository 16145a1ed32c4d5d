"""`dynts calibrate`: what method `triattention` has to know of a model's queries."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dynts.cli.checks import check_chat, check_folder
from dynts.cli.console import load_libraries, show
from dynts.config import ModelSource
from dynts.options import option, part


@dataclass(kw_only=True)
class CalibrateCommand:
    """What `dynts calibrate` is given."""

    source: ModelSource = part(
        name="Base model: a folder or the id of a Hub repository.", attention=None, open_thinking=None
    )
    traces: tuple[Path, ...] = option(
        help="A folder of traces, or JSON Lines with question, response (after the opening think marker), answer, "
        "optional id; several are mixed."
    )
    out: Path = option(help="Where to write the statistics, a safetensors file.")
    count: int = option(8, least=1, help="How many traces to read, the first ones that end their thinking.")


def calibrate(given: CalibrateCommand) -> None:
    """Take the statistics of a model's queries over a few traces, for the method triattention.

    Reads each trace in one pass. The file serves this model only, and is refused for another.
    """
    check_folder(given.out)
    load_libraries("dynts.training.calibrate")
    check_chat(given.source, opened=True)

    from dynts.chat.thinking import closes_thinking
    from dynts.models import load_model
    from dynts.store.progress import bar
    from dynts.traces.sets import as_sets
    from dynts.traces.tokens import tokenize_trace
    from dynts.training.calibrate import calibrate as statistics_of

    finished = (trace for trace in as_sets(given.traces) if closes_thinking(trace.response))
    traces = list(islice(finished, given.count))
    model, tokenizer = load_model(given.source)
    texts = [tokenize_trace(tokenizer, trace, given.source.chat).ids for trace in traces]
    with bar("reading", len(texts)) as shown:
        statistics_of(model, texts, shown.advance).save(given.out)
    show(f"{sum(map(len, texts))} tokens of {len(texts)} traces read: {given.out}")
