"""The methods and predictors to look at, from their names."""

from collections import Counter
from collections.abc import Mapping, Sequence

from dynts.decode.contender import Contender
from dynts.errors import DyntsError
from dynts.methods import resolve_method
from dynts.methods.base import Granularity
from dynts.methods.variants import scored_variants
from dynts.predictor.model import ImportancePredictor


def load_predictors(sources: Sequence[str]) -> dict[str, ImportancePredictor]:
    """Predictors by the label that they were trained on; by their source where two have the same.

    Raises:
        DyntsError: one is given twice, is missing, damaged, or not a predictor.
    """
    if len(set(sources)) < len(sources):
        raise DyntsError(f"a predictor is given twice: {', '.join(sources)}")
    loaded = {source: ImportancePredictor.from_pretrained(source) for source in sources}
    labels = Counter(predictor.config.label for predictor in loaded.values())
    return {
        predictor.config.label if labels[predictor.config.label] == 1 else source: predictor
        for source, predictor in loaded.items()
    }


def choose_methods(
    names: Sequence[str],
    predictors: Mapping[str, ImportancePredictor],
    *,
    native: bool = False,
    protect_question: bool = False,
) -> list[Contender]:
    """The methods of those names; one that needs a predictor comes once for each.

    Args:
        names: of methods.
        predictors: by name.
        native: those that can choose per layer and KV head come a second time, doing that.
        protect_question: keep the question where a method would not by itself.

    Raises:
        DyntsError: an unknown method, one given twice, or one that needs a predictor where there is none.
    """
    if len(set(names)) < len(names):
        raise DyntsError(f"a method is given twice: {', '.join(names)}")
    chosen = []
    configs = {label: predictor.config for label, predictor in predictors.items()}
    granularities: tuple[Granularity, ...] = ("shared", "native") if native else ("shared",)
    for name in names:
        if resolve_method(name).needs_predictor and not predictors:
            raise DyntsError(
                f"method {name!r} needs --predictor: train one with `dynts label` and `dynts train`, or choose methods "
                "that need none, such as --method question-window,rkv"
            )
        for method, label in scored_variants(name, granularities, configs, protect_question=protect_question):
            traits = [f"{label} predictor"] if label is not None and len(predictors) > 1 else []
            traits += ["native"] if method.granularity == "native" else []
            chosen.append(Contender(", ".join([name, *traits]), method, None if label is None else predictors[label]))
    return chosen
