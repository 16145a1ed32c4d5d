"""An arm: a method with all that it takes to decode by it, and its name, which is made here and never read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dynts.cache.method import Granularity
from dynts.config import CompressionConfig
from dynts.methods import METHODS, Full, Method, check_predictor, check_threshold, resolve_method
from dynts.methods.variants import scored_variants
from dynts.predictor.config import PredictorConfig

P_co = TypeVar("P_co", covariant=True)
Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Arm(Generic[P_co]):
    """A method that is compared with others, or that an engine decodes by.

    Args:
        method: with its settings; the default keeps everything.
        config: the budget, which a method that never evicts ignores.
        predictor: the importance predictor where the method needs one: the folder or Hub id of one, or loaded, see
            `loaded`.
        label: which label tells this arm's predictor from those of other arms; None where nothing has to.

    Raises:
        UnsupportedError: the method's scores have no threshold.
    """

    method: Method = field(default_factory=Full)
    config: CompressionConfig = field(default_factory=CompressionConfig)
    predictor: P_co | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        check_threshold(self.method, self.config)

    @property
    def schedule(self) -> CompressionConfig | None:
        """The budget; None for the full cache."""
        return self.config if self.method.evicts else None

    @property
    def keeps_question(self) -> bool:
        """Whether the question is kept though the method would not keep it by itself."""
        usual = METHODS.get(self.method.name)
        return self.method.protect_question and usual is not None and not usual().protect_question

    def traits(self, *, question: bool = True) -> list[str]:
        """Return what tells the arm from others of its method, such as "native".

        Args:
            question: whether a question that is kept beyond the method's own rule is such a trait.
        """
        chosen = {
            f"{self.label} label": self.label is not None,
            "native": self.method.granularity == "native",
            "question kept": question and self.keeps_question,
        }
        if self.schedule is not None and self.schedule.threshold is not None:
            chosen[f"threshold {self.schedule.threshold:g}"] = True
        return [trait for trait, applies in chosen.items() if applies]

    def loaded(self: "Arm[str]", predictors: Mapping[str, Q], label: str | None = None) -> "Arm[Q]":
        """Return the arm with the predictor that it names.

        Args:
            predictors: by name.
            label: as in `Arm`.
        """
        return Arm(self.method, self.config, None if self.predictor is None else predictors[self.predictor], label)

    def name(self, *, question: bool = True) -> str:
        """Return the name for people: the method's, with its traits; see `traits`."""
        return ", ".join([self.method.name, *self.traits(question=question)])


def make_arms(
    names: Sequence[str],
    granularities: Collection[Granularity],
    predictors: Mapping[str, PredictorConfig],
    *,
    protect_question: bool,
) -> list[Arm[str]]:
    """Return the arms of methods, without a budget; a method that needs a predictor comes once for each that serves it.

    Args:
        names: of methods.
        granularities: "shared", "native" or both, for methods that have the choice; none for each method's default.
        predictors: what each says about itself, by any name, which becomes the arm's `predictor`.
        protect_question: keep the question where a method would not by itself.

    Raises:
        DyntsError: an unknown method, or one that needs a predictor where none serves it.
    """
    arms = []
    for name in names:
        check_predictor(resolve_method(name), predictors or None)
        for method, predictor in scored_variants(name, granularities, predictors, protect_question=protect_question):
            label = None if predictor is None else predictors[predictor].label
            arms.append(Arm(method, predictor=predictor, label=label))
    return arms
