"""Compression methods, one file each. A name stands for the method with its default settings."""

from dynts.cache.method import Method, Surroundings
from dynts.config import CompressionConfig
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods.dynts import DynTS, DynTSAll, DynTSBottom, DynTSRandom
from dynts.methods.h2o import H2O
from dynts.methods.keydiff import KeyDiff
from dynts.methods.random import Random
from dynts.methods.rkv import RKV
from dynts.methods.sepllm import SepLLM
from dynts.methods.snapkv import SnapKV
from dynts.methods.streaming_llm import StreamingLLM
from dynts.methods.triattention import TriAttention
from dynts.methods.vase import VaSE
from dynts.methods.window import Full, QuestionWindow, Window

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        Full,
        DynTS,
        DynTSAll,
        DynTSRandom,
        DynTSBottom,
        Window,
        StreamingLLM,
        QuestionWindow,
        SepLLM,
        H2O,
        SnapKV,
        RKV,
        Random,
        KeyDiff,
        VaSE,
    )
}


def resolve_method(method: str | Method) -> Method:
    """Return the method of that name with its defaults, or the given one.

    Raises:
        DyntsError: there is no method of that name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise DyntsError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}, or pass a method object")
    return METHODS[method]()


def check_threshold(method: Method, config: CompressionConfig) -> None:
    """Refuse a threshold on scores that have none.

    Args:
        method: the method.
        config: its schedule.

    Raises:
        UnsupportedError: names the threshold and the method.
    """
    if config.threshold is not None and method.evicts and method.ranks_places:
        raise UnsupportedError(
            f"threshold {config.threshold:g}: method {method.name!r} goes by the places of tokens, whose scores no "
            "threshold applies to: leave it out, or take a method that scores tokens, such as 'dynts'"
        )


def check_predictor(method: Method, predictor: object) -> None:
    """Refuse a method that needs a predictor where the user has given none.

    Args:
        method: the method.
        predictor: what was given, None if nothing.

    Raises:
        DyntsError: says how to come by one.
    """
    if method.needs_predictor and predictor is None:
        raise DyntsError(f"method {method.name!r} needs --predictor: train one with `dynts label` and `dynts train`")


__all__ = [
    "H2O",
    "METHODS",
    "RKV",
    "DynTS",
    "DynTSAll",
    "DynTSBottom",
    "DynTSRandom",
    "Full",
    "KeyDiff",
    "Method",
    "QuestionWindow",
    "Random",
    "SepLLM",
    "SnapKV",
    "StreamingLLM",
    "Surroundings",
    "TriAttention",
    "VaSE",
    "Window",
    "check_predictor",
    "check_threshold",
    "resolve_method",
]
