"""What commands look at before they work for minutes, and what they make of options."""

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynts.config import CompressionConfig, MethodOptions, ModelSource
    from dynts.decode.arm import Arm
    from dynts.decode.compress import Session


def separated(values: Iterable[str]) -> list[str]:
    """Return what was given with commas or by repeating the option, each once."""
    return list(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))


def check_folder(path: Path | None) -> None:
    """Refuse a file whose folder does not exist, or takes no file.

    Raises:
        DyntsError: names the file.
    """
    from dynts.errors import DyntsError

    if path is not None and not path.parent.is_dir():
        raise DyntsError(f"the folder of {path} does not exist: make it or choose another place")
    if path is not None and not os.access(path.parent, os.W_OK):
        raise DyntsError(f"the folder of {path} is not writable: choose another place")


def check_figure(path: Path | None) -> None:
    """Refuse a picture that could not be drawn.

    Raises:
        DyntsError: matplotlib is missing, the folder does not exist, or the ending names no picture format.
    """
    from dynts.extras import need

    if path is None:
        return
    check_folder(path)
    need("matplotlib", "plot", "a picture")
    from dynts.report.figures import check_format

    check_format(path)


def check_chat(source: "ModelSource", *, opened: bool = False) -> None:
    """Refuse what a model's tokenizer and chat template cannot do, before the model is loaded.

    Args:
        source: the model, and how it is talked to.
        opened: the thinking is opened in any case, as in labelling.

    Raises:
        DyntsError: an argument that the template does not know, a marker that the tokenizer cannot write, and the like.
    """
    from dynts.chat.options import DEFAULT_CHAT
    from dynts.chat.prompts import render_prompt, user_message
    from dynts.models import load_tokenizer

    if source.chat != DEFAULT_CHAT:
        tokenizer = load_tokenizer(source)
        opening = replace(source.chat, open_thinking=source.chat.open_thinking or opened)
        render_prompt(tokenizer, [user_message("question")], opening)


def question_length(load: "Callable[[], PreTrainedTokenizerBase]") -> Callable[[str], int]:
    """Return what counts the tokens of a question, by a tokenizer that is loaded when it is needed first."""
    tokenizer = functools.cache(load)
    return lambda question: len(tokenizer().encode(question))


def schedules_of(
    budgets: Iterable[int], local_window: int | None, retention_ratio: float, question: int
) -> "list[CompressionConfig]":
    """Return the schedules of budgets.

    Args:
        budgets: B, in tokens.
        local_window: W_l, in tokens; None takes 40% of each budget.
        retention_ratio: r.
        question: tokens of a question.

    Raises:
        DyntsError: one is outside its range, or too small for the question.
    """
    from dynts.config import CompressionConfig

    found = []
    for budget in budgets:
        window = round(0.4 * budget) if local_window is None else local_window
        found.append(CompressionConfig(budget, window, retention_ratio))
        found[-1].check_question(question)
    return found


def resolve(chosen: "MethodOptions") -> "Arm[str]":
    """Return the method and its budget that options name.

    Raises:
        DyntsError: there is no such method, it has no such setting, or it needs a predictor.
    """
    from dynts.decode.arm import Arm
    from dynts.methods import check_predictor, resolve_method
    from dynts.methods.variants import configure

    method = configure(resolve_method(chosen.method), chosen.granularity, chosen.protect_question)
    check_predictor(method, chosen.predictor)
    return Arm(method, chosen.config, chosen.predictor)


def load_session(source: "ModelSource", arm: "Arm[str]") -> "tuple[Session, PreTrainedModel, PreTrainedTokenizerBase]":
    """Load predictor, model and tokenizer, and return the session in which the model decodes under the budget.

    Args:
        source: the model.
        arm: method, budget and predictor.

    Raises:
        DyntsError: one of them cannot be loaded, or does not fit the model.
    """
    from dynts.decode.checkpoint import check_checkpoint
    from dynts.decode.compress import compress
    from dynts.models import load_model
    from dynts.predictor.model import ImportancePredictor

    name = arm.predictor
    predictor = None if name is None else ImportancePredictor.from_pretrained(name)
    model, tokenizer = load_model(source)
    check_checkpoint(model)
    markers = source.chat.format(tokenizer)
    session = compress(model, arm.method, arm.config, predictor, tokenizer=tokenizer, markers=markers)
    return session, model, tokenizer
