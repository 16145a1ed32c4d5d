"""The plugin's settings: from `--additional-config '{"dynts": {...}}'`, else from DYNTS_* environment variables."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from dynts.chat.options import ChatOptions
from dynts.config import CompressionConfig
from dynts.errors import DyntsError

if TYPE_CHECKING:
    from dynts.decode.arm import Arm
    from dynts.methods import DynTS

KEY = "dynts"
LOGGER = "vllm.dynts"
"""Below vLLM's own logger, which is the only one that its processes show."""
PARSER = "dynts"
"""The name of dynts' reasoning parser in vLLM."""
MIDDLEWARE = "dynts.engines.vllm.replies.Replies"
"""What its server's answers go through."""
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
_GIVEN = tuple(_TYPES)


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
            DyntsError: vLLM does not have the method, or there is no such granularity.
        """
        from dynts.methods import DynTS, DynTSAll  # loads torch and transformers

        for kind in (DynTS, DynTSAll):
            if kind.name == self.method:
                return kind(granularity=self.granularity)  # type: ignore[arg-type]
        raise DyntsError(f"method must be {DynTS.name} or {DynTSAll.name} with vLLM, got {self.method!r}")

    @classmethod
    def of(cls, arm: "Arm[str]", chat: ChatOptions) -> Self:
        """From what a command was given.

        Args:
            arm: method, budget and predictor.
            chat: how the model is talked to.

        Raises:
            DyntsError: vLLM does not have the method, or there is no predictor.
        """
        method, config = arm.method, arm.config
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
        given = {name: getattr(self, name) for name in _GIVEN}
        return {_variable(name): str(value) for name, value in given.items() if value is not None}

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """From the object under "dynts" in vLLM's additional config.

        Raises:
            DyntsError: it is no object, a name is unknown, the predictor is missing, or a value is outside its range.
        """
        known = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping):
            raise DyntsError(f'additional config "{KEY}" must be an object with {", ".join(_GIVEN)}, got {values!r}')
        if unknown := sorted(set(values) - set(known)):
            raise DyntsError(
                f'additional config "{KEY}" has no setting {", ".join(unknown)}: it takes {", ".join(_GIVEN)}'
            )
        if "predictor" not in values:
            raise DyntsError(
                f'additional config "{KEY}" lacks a predictor: add a folder or Hub id, or leave "{KEY}" out to run '
                "plain vLLM"
            )
        return cls(**values)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """From DYNTS_PREDICTOR, DYNTS_BUDGET and so on; None if none is set.

        Raises:
            DyntsError: a value cannot be read or is outside its range, or the predictor is missing.
        """
        given = {name: environment[_variable(name)] for name in _GIVEN if environment.get(_variable(name))}
        if not given:
            return None
        if "predictor" not in given:
            raise DyntsError(
                f"{', '.join(map(_variable, given))} set without {_variable('predictor')}: set it to a folder or Hub "
                "id, "
                "or unset the others to run vLLM as it is"
            )
        return cls(**{name: _read(name, text) for name, text in given.items()})


def read_settings(additional_config: object, environment: Mapping[str, str] = os.environ) -> PluginSettings | None:
    """Read the settings; return None if there are none, and vLLM is to run as it is.

    Args:
        additional_config: vLLM's, which takes precedence; {"dynts": None} runs vLLM as it is.
        environment: for settings that are not there.

    Raises:
        DyntsError: a wrong setting; names it.
    """
    if isinstance(additional_config, Mapping) and KEY in additional_config:
        given = additional_config[KEY]
        return None if given is None else PluginSettings.from_dict(given)
    return PluginSettings.from_environment(environment)


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _read(name: str, text: str) -> Any:
    try:
        return _TYPES[name](text)
    except ValueError:
        kind = "a whole number" if _TYPES[name] is int else "a number"
        raise DyntsError(f"{_variable(name)} must be {kind}, got {text!r}") from None
