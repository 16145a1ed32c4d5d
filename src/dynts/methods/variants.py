"""The settings in which methods are compared: granularity, and whether the question is kept."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace

from dynts.cache.method import Granularity
from dynts.errors import DyntsError
from dynts.methods import Method, resolve_method
from dynts.predictor.config import PredictorConfig


def configure(method: Method, granularity: Granularity | None = None, protect_question: bool = False) -> Method:
    """Return a method with the settings given.

    Args:
        method: as it is by default.
        granularity: None leaves it.
        protect_question: False leaves it.

    Raises:
        DyntsError: the method has no such setting.
    """
    changes = {"granularity": granularity} if granularity is not None else {}
    if protect_question:
        changes["protect_question"] = True  # type: ignore[assignment]
    for name in changes:
        if name not in _options(method):
            raise DyntsError(f"method {type(method).__name__} has no option {name}: drop it")
    return replace(method, **changes)  # type: ignore[type-var]


def scored_variants(
    name: str,
    granularities: Collection[Granularity],
    predictors: Mapping[str, PredictorConfig],
    *,
    protect_question: bool,
) -> list[tuple[Method, str | None]]:
    """Return a method in each granularity, with the predictor that it scores by: None where it needs none.

    A method without a choice comes once, as it is; one that needs a predictor comes with each that serves it. A
    predictor that has one score for all layers and heads serves shared granularity only; one that was trained on
    thinking tokens only does not serve a method that scores all tokens.

    Args:
        name: of the method.
        granularities: "shared", "native" or both; none leaves each method as it is by default.
        predictors: by any name.
        protect_question: keep the question where the method would not by itself. One that has another name when it
            does, such as `window`, stays as it is.

    Raises:
        DyntsError: there is no method of that name, none of the predictors serves it, or one has one score for all
            layers and heads, and native granularity alone is asked for.
    """
    plain = resolve_method(name)
    options = _options(plain)
    if protect_question and "protect_question" in options and plain.keeping_question is None:
        plain = configure(plain, protect_question=True)

    def in_each(granularities: Collection[Granularity]) -> list[Method]:
        if "granularity" not in options or not granularities:
            return [plain]
        return [configure(plain, each) for each in granularities]

    if not plain.needs_predictor:
        return [(method, None) for method in in_each(granularities)]
    fit = {each: config for each, config in predictors.items() if config.all_tokens or not plain.scores_all_tokens}
    if not fit:
        raise DyntsError(
            f"method {name!r} scores question and answer tokens, and no predictor given was trained on them: label "
            "with `dynts label --all-tokens` and train one"
        )
    for each, config in fit.items():
        if "granularity" in options and set(granularities) == {"native"} and not config.native:
            raise DyntsError(
                f"method {name!r} in granularity native: the predictor {each} has one score for all layers and heads "
                f"(label {config.label}): give shared,native to have it once in shared, or train one with `dynts label "
                "--labels future-native`"
            )
    return [
        (method, each)
        for each, config in fit.items()
        for method in in_each(granularities if config.native else ["shared"])
    ]


def _options(method: Method) -> set[str]:
    """Return the names of a method's settings."""
    return {field.name for field in fields(method)}  # type: ignore[arg-type]
