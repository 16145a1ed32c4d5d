"""The settings of the plugins for vLLM and SGLang, which DYNTS_* environment variables carry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dynts.chat.markers import find_format
from dynts.chat.options import ChatOptions
from dynts.chat.scanner import ThinkScanner, scanner_of
from dynts.config import CompressionConfig
from dynts.errors import DyntsError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from dynts.decode.arm import Arm
    from dynts.methods import DynTS
    from dynts.predictor.model import ImportancePredictor

_DEFAULTS = CompressionConfig()
PREFIX = "DYNTS_"
_TYPES: dict[str, Callable[[str], Any]] = {
    "predictor": str,
    "budget": int,
    "local_window": int,
    "retention_ratio": float,
    "granularity": str,
    "method": str,
    "think_start": str,
    "think_end": str,
}
NAMES = tuple(_TYPES)
"""What can be set."""


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """What to keep, and who tells.

    Args:
        predictor: folder or Hub id of an importance predictor.
        budget: see `CompressionConfig`.
        local_window: see `CompressionConfig`.
        retention_ratio: see `CompressionConfig`.
        granularity: "shared" or "native", see `dynts.methods.DynTS`.
        method: "dynts", or "dynts-all", where the question competes.
        think_start: opens the thinking, as text; None where the tokenizer tells, see `dynts.chat.markers.find_format`.
        think_end: closes it, likewise.

    Raises:
        DyntsError: a value is missing or outside its range.
    """

    predictor: str
    budget: int = _DEFAULTS.budget
    local_window: int = _DEFAULTS.local_window
    retention_ratio: float = _DEFAULTS.retention_ratio
    granularity: str = "shared"
    method: str = "dynts"
    think_start: str | None = None
    think_end: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, str) or not self.predictor:
            raise DyntsError(f"predictor must be a folder or the id of a Hub repository, got {self.predictor!r}")
        for name in ("think_start", "think_end"):
            if not isinstance(getattr(self, name), str | None):
                raise DyntsError(f"{name} must be a text, got {getattr(self, name)!r}")
        _ = self.schedule, self.policy

    @property
    def schedule(self) -> CompressionConfig:
        """Budget, local window and retention ratio."""
        return CompressionConfig(self.budget, self.local_window, self.retention_ratio)

    @property
    def policy(self) -> "DynTS":
        """The method, in its granularity.

        Raises:
            DyntsError: the plugins do not have the method, or there is no such granularity.
        """
        from dynts.methods import DynTS, DynTSAll  # loads torch and transformers

        for kind in (DynTS, DynTSAll):
            if kind.name == self.method:
                return kind(granularity=self.granularity)  # type: ignore[arg-type]
        raise DyntsError(f"method must be {DynTS.name} or {DynTSAll.name} with vLLM and SGLang, got {self.method!r}")

    @classmethod
    def of(cls, arm: "Arm[str]", chat: ChatOptions) -> Self:
        """From what a command was given.

        Args:
            arm: method, budget and predictor.
            chat: how the model is talked to.

        Raises:
            DyntsError: the plugins do not have the method, or there is no predictor.
            UnsupportedError: there is a threshold.
        """
        method, config = arm.method, arm.config
        if config.threshold is not None:
            raise UnsupportedError(
                f"threshold {config.threshold:g}: the plugins for vLLM and SGLang know when a request is compacted "
                "from its length alone: leave it out, or take --engine transformers"
            )
        return cls(
            arm.predictor or "",
            config.budget,
            config.local_window,
            config.retention_ratio,
            method.granularity,
            method.name,
            chat.think_start,
            chat.think_end,
        )

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads these settings from."""
        given = {name: getattr(self, name) for name in NAMES}
        return {_variable(name): str(value) for name, value in given.items() if value is not None}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """From DYNTS_PREDICTOR, DYNTS_BUDGET and so on; None if none is set, and the engine is to run as it is.

        Raises:
            DyntsError: a name is misspelt, a value cannot be read or is outside its range, or the predictor is missing.
        """
        _check_spelling(environment)
        given = {name: environment[_variable(name)] for name in NAMES if environment.get(_variable(name))}
        if not given:
            return None
        if "predictor" not in given:
            raise DyntsError(
                f"{', '.join(map(_variable, given))} set without {_variable('predictor')}: set it to a folder or Hub "
                "id, or unset the others to run the engine as it is"
            )
        return cls(**{name: _read(name, text) for name, text in given.items()})

    def resolve(self, config: "PreTrainedConfig") -> tuple[Self, "ImportancePredictor"]:
        """Return the settings as other processes need them, with an absolute path, and the predictor.

        Args:
            config: of the model.

        Raises:
            DyntsError: the predictor cannot be read, is for another model, or does not serve the method.
        """
        from dynts.predictor.model import ImportancePredictor  # loads torch and transformers

        folder = Path(self.predictor)
        name = str(folder.resolve()) if folder.is_dir() else self.predictor
        predictor = ImportancePredictor.from_pretrained(name)
        predictor.check_sizes(config)
        self.policy.check_scores(predictor)
        return replace(self, predictor=name), predictor

    def scanner(
        self, tokenizer: "PreTrainedTokenizerBase | None", predictor: "ImportancePredictor"
    ) -> ThinkScanner | None:
        """Return what finds where thinking ends, as for `dynts.compress`.

        Args:
            tokenizer: the model's; None for an engine without one.
            predictor: what it says about itself tells the markers where the tokenizer does not.

        Raises:
            DyntsError: markers are given that are not known, or of which the tokenizer would have to tell the tokens.
        """
        recorded = predictor.config.markers
        if tokenizer is not None:
            return scanner_of(tokenizer, find_format(tokenizer, self.think_start, self.think_end), recorded)
        if self.think_start or self.think_end:
            raise DyntsError("think_start and think_end are texts, which need the tokenizer: drop skip_tokenizer_init")
        return scanner_of(None, None, recorded)


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those of the settings, so that an engine runs as it is."""
    ours = set(map(_variable, NAMES))
    return {name: value for name, value in environment.items() if name not in ours}


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _read(name: str, text: str) -> Any:
    try:
        return _TYPES[name](text)
    except ValueError:
        kind = "a whole number" if _TYPES[name] is int else "a number"
        raise DyntsError(f"{_variable(name)} must be {kind}, got {text!r}") from None


def _check_spelling(environment: Mapping[str, str]) -> None:
    """Refuse what is nearly a setting: without it the engine would run under another budget, or none."""
    for variable in environment:
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in NAMES and (near := get_close_matches(name, NAMES, n=1)):
            raise DyntsError(
                f"{variable} is no setting, did you mean {_variable(near[0])}? There are "
                f"{', '.join(map(_variable, NAMES))}"
            )
