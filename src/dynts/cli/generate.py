"""`dynts generate`: answer questions with a model under a KV cache budget."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dynts.cli.options import (
    Attention,
    Budget,
    Device,
    Dtype,
    GgufFile,
    Granularity,
    LocalWindow,
    OpenThinking,
    PredictorName,
    RetentionRatio,
    Revision,
    SettingsFile,
    Temperature,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    TopK,
    TopP,
    chat_options,
    check_chat,
)


def generate(
    question: Annotated[str | None, typer.Argument(help="The question, or - to read it from standard input.")] = None,
    *,
    model: Annotated[str, typer.Option(help="A folder or the id of a Hub repository.")],
    questions: Annotated[
        Path | None, typer.Option(help="Instead of a question: JSON Lines with `question` and an optional `id`.")
    ] = None,
    gguf_file: GgufFile = None,
    settings_file: SettingsFile = None,
    predictor: PredictorName = None,
    method: Annotated[str, typer.Option(help="What to keep; `full` keeps everything.")] = "dynts",
    budget: Budget = 5000,
    local_window: LocalWindow = 2000,
    retention_ratio: RetentionRatio = 0.4,
    granularity: Granularity = None,
    protect_question: Annotated[
        bool, typer.Option(help="Keep the question even where the method as published would not.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 16_384,
    temperature: Temperature = 0.6,
    top_p: TopP = 0.95,
    top_k: TopK = 20,
    seed: Annotated[int, typer.Option(help="Seed of the sampling, for each question anew.")] = 0,
    open_thinking: OpenThinking = False,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per question and nothing else.")] = False,
    dtype: Dtype = None,
    device: Device = "auto",
    attention: Attention = None,
    revision: Revision = None,
) -> None:
    """Answer a question while the KV cache stays within a budget; print the text, then what it cost."""
    from dynts.config import CompressionConfig, ModelSource, Sampling
    from dynts.decode.answers import answer_questions, read_questions
    from dynts.decode.checkpoint import check_checkpoint
    from dynts.decode.compress import compress
    from dynts.decode.sampling import NOT_FINITE
    from dynts.errors import DyntsError, check_text
    from dynts.methods import check_predictor, resolve_method
    from dynts.methods.variants import configure
    from dynts.models import load_model
    from dynts.predictor.model import ImportancePredictor

    if (question is None) == (questions is None):
        raise DyntsError("give either a question (or - for standard input) or --questions FILE")
    config = CompressionConfig(budget=budget, local_window=local_window, retention_ratio=retention_ratio)
    chosen = configure(resolve_method(method), granularity, protect_question)
    check_predictor(method, chosen, predictor)
    chat = chat_options(open_thinking, think_start, think_end, template_arg)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    if questions is not None:
        asked = read_questions(questions)
    else:
        try:
            text = sys.stdin.read() if question == "-" else str(question)
        except UnicodeDecodeError as error:
            raise DyntsError(f"standard input is no text: {error}; give it in UTF-8") from error
        check_text("the question", text)
        if not text.strip():
            raise DyntsError("the question is empty")
        asked = [("question", text)]
    source = ModelSource(model, revision, gguf_file, dtype, device, attention, chat)
    check_chat(source)
    loaded_predictor = None if predictor is None else ImportancePredictor.from_pretrained(predictor)
    loaded, tokenizer = load_model(source)
    check_checkpoint(loaded)
    failed = []
    with compress(
        loaded, chosen, config, loaded_predictor, tokenizer=tokenizer, markers=chat.format(tokenizer)
    ) as session:
        answers = answer_questions(session, tokenizer, asked, sampling, chat, stream=not json)
        for answer in answers:
            answer.print_json() if json else answer.print_stats()
            failed += [answer.id] * answer.failed
    if failed:
        raise DyntsError(f"{len(failed)} of {len(asked)} answers broke off ({', '.join(failed)}): {NOT_FINITE}")
