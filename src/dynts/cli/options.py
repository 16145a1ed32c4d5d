"""Options that several commands have."""

from typing import Annotated

import typer

GgufFile = Annotated[str | None, typer.Option(help="GGUF file inside the model folder or repository.")]
Dtype = Annotated[str | None, typer.Option(help="dtype to run the model in (default: the checkpoint's).")]
Device = Annotated[str, typer.Option(help="Such as cuda or cpu; auto spreads over all devices there are.")]
Attention = Annotated[str | None, typer.Option(help="Attention implementation, such as sdpa (default: the model's).")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]

PredictorName = Annotated[
    str | None, typer.Option(help="Importance predictor: a folder or the id of a Hub repository.")
]
Budget = Annotated[int, typer.Option(help="Most cached tokens, question included.")]
LocalWindow = Annotated[int, typer.Option(help="Most recent tokens that every compaction keeps.")]
RetentionRatio = Annotated[
    float, typer.Option(help="Share of the remaining room that selected tokens keep at a compaction.")
]

Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 decodes greedily.")]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set with this probability.")]
TopK = Annotated[int, typer.Option(help="Sample from this many tokens.")]
OpenThinking = Annotated[
    bool, typer.Option(help="Open the thinking in the prompt where the chat template leaves that to the model.")
]
