"""What a user chooses: the model, how large its cache may grow and what a compaction keeps, how tokens are drawn; and the
file of settings."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.errors import DyntsError, check_count
from dynts.store.files import write_text_whole
from dynts.store.jsonlines import read_object


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model, from where, in which dtype, on which device, and how it is talked to.

    Args:
        name: a folder, or the id of a repository on the Hub.
        revision: branch, tag or commit of a Hub repository.
        gguf_file: name of a GGUF file in that folder or repository; its weights are de-quantised.
        dtype: such as "bfloat16"; None takes the checkpoint's own, and for quantised GGUF weights bfloat16 where the device
            computes in it, else float32.
        device: such as "cpu" or "cuda:1"; "auto" spreads the model over all devices; None is the CPU.
        attention: implementation such as "sdpa" or "eager"; None takes the model's default.
        chat: how the model is talked to.
    """

    name: str
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    chat: ChatOptions = DEFAULT_CHAT

    def __str__(self) -> str:
        return f"{self.name} ({self.gguf_file})" if self.gguf_file else self.name

    @property
    def path(self) -> str:
        """What manifests and pages call the model."""
        return f"{self.name}/{self.gguf_file}" if self.gguf_file else self.name

    def on_this_rank(self) -> "ModelSource":
        """Return the same model on the device that falls to this process among those of its job."""
        from dynts.store.torchrun import this_rank  # loads torch

        return self if self.device is None else replace(self, device=this_rank().device(self.device))

    def settings(self) -> dict[str, Any]:
        """Return what manifests record of the checkpoint, see `from_settings`."""
        return {"model": self.name, "revision": self.revision, "gguf_file": self.gguf_file, "dtype": self.dtype}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ModelSource":
        """Read the model that a manifest's settings name, see `settings`; folders of earlier versions lack some keys."""
        return cls(settings["model"], settings.get("revision"), settings.get("gguf_file"), settings.get("dtype"))


@dataclass(frozen=True, slots=True)
class CompressionConfig:
    """Budget of the KV cache and the schedule on which it is compacted (arXiv 2601.18383, section 4).

    Args:
        budget: B, the hard cap on the cached tokens of a sequence, question included. Reaching it triggers a compaction.
        local_window: W_l, how many of the most recent tokens every compaction keeps.
        retention_ratio: r, the share of the room left by the question and the local window that goes to selected tokens:
            `k = floor(r * (B - W_l - M))` for a question of M tokens. The rest of that room is filled before the next
            compaction.

    Raises:
        DyntsError: a value is outside its range.
    """

    budget: int = 5000
    local_window: int = 2000
    retention_ratio: float = 0.4

    def __post_init__(self) -> None:
        check_count("budget", self.budget, least=2)
        check_count("local_window", self.local_window)
        if self.local_window >= self.budget:
            raise DyntsError(
                f"local_window ({self.local_window}) must be smaller than the budget ({self.budget}): "
                "raise the budget or shrink the local window"
            )
        ratio = self.retention_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.0 < ratio < 1.0:
            raise DyntsError(f"retention_ratio must lie between 0 and 1, both excluded, got {ratio!r}")

    def describe(self) -> str:
        """For people."""
        return f"budget {self.budget}, local window {self.local_window}, retention ratio {self.retention_ratio:g}"

    def selected_tokens(self, question_tokens: int) -> int:
        """k: how many thinking tokens outside the local window survive a compaction, for a question of that length."""
        return math.floor(self.retention_ratio * (self.budget - self.local_window - question_tokens))

    def kept_tokens(self, question_tokens: int) -> int:
        """Cached tokens right after a compaction: question, selected tokens and local window."""
        return question_tokens + self.selected_tokens(question_tokens) + self.local_window

    def check_question(self, question_tokens: int) -> None:
        """Refuse a question that leaves no room for a single selected token.

        Raises:
            DyntsError: names the smallest budget that would do.
        """
        if self.selected_tokens(question_tokens) >= 1:
            return
        room = max(1, math.ceil(1 / self.retention_ratio) - 1)
        while math.floor(self.retention_ratio * room) < 1:  # 1 / r rounds either way
            room += 1
        smallest = question_tokens + self.local_window + room
        raise DyntsError(
            f"budget {self.budget} is too small for a question of {question_tokens} tokens, a local window of "
            f"{self.local_window} and one selected token at retention ratio {self.retention_ratio}: "
            f"use a budget of at least {smallest}, or a smaller local window"
        )


_CHAT = ("think_start", "think_end", "template_arg")
"""Settings that say how the model is talked to, in the file only where they are set."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens; the defaults are the paper's (section 4).

    Args:
        max_new_tokens: when to stop.
        temperature: 0 decodes greedily.
        top_p: sample from the smallest set of tokens with this probability.
        top_k: sample from this many tokens.
        seed: set anew for each question, so that an answer does not depend on the questions before.

    Raises:
        DyntsError: a value is outside its range.
    """

    max_new_tokens: int = 16_384
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise DyntsError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise DyntsError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DyntsError(f"top_p must lie above 0 and be at most 1, got {self.top_p}")
        if self.top_k < 1:
            raise DyntsError(f"top_k must be at least 1, got {self.top_k}")

    def options(self) -> dict[str, object]:
        """Keyword arguments for generate()."""
        if self.temperature == 0:
            # None takes back what the model's own generation config may say about sampling
            plain = {"temperature": None, "top_p": None, "top_k": None}
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, **plain}
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": True, **chosen}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a settings file holds: all that a compressed decode needs besides the model.

    Args:
        config: the budget and its schedule.
        method: name of a method, see `dynts.methods.METHODS`.
        predictor: folder or Hub id of the importance predictor, where the method needs one.
        granularity: "shared" or "native", see `dynts.cache.method.Method`; None leaves the method as it is by default.
        think_start: opens the thinking, as text, where it has to be told.
        think_end: closes it, likewise.
        template_arg: arguments of the chat template.
    """

    config: CompressionConfig
    method: str = "dynts"
    predictor: str | None = None
    granularity: str | None = None
    think_start: str | None = None
    think_end: str | None = None
    template_arg: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """As the file holds them: one flat object."""
        found = asdict(self)
        config = found.pop("config")
        told = {name: found.pop(name) for name in _CHAT}
        return {**found, **config, **{name: value for name, value in told.items() if value is not None}}


def save_settings(path: str | Path, settings: Settings) -> None:
    """Write a settings file, whole."""
    write_text_whole(Path(path), json.dumps(settings.values(), indent=2) + "\n")


def load_settings(path: str | Path) -> Settings:
    """Read a settings file, such as `{"method": "snapkv", "budget": 5000, "local_window": 2000, "retention_ratio": 0.4}`.

    Raises:
        DyntsError: the file cannot be read, a setting is missing, unknown or has a wrong value; it is named.
    """
    values = read_object(path)
    known = [*Settings(CompressionConfig()).values(), *_CHAT]
    if unknown := [name for name in values if name not in known]:
        raise DyntsError(f"{path}: unknown setting {', '.join(unknown)}: the settings are {', '.join(known)}")
    optional = ("predictor", "granularity", *_CHAT)
    if missing := [name for name in known if name not in values and name not in optional]:
        raise DyntsError(f"{path}: setting {', '.join(missing)} is missing")
    method, predictor, granularity = (values.pop(name, None) for name in ("method", "predictor", "granularity"))
    chat = {name: values.pop(name, None) for name in _CHAT}
    if not isinstance(method, str):
        raise DyntsError(f"{path}: method must be the name of a method, got {method!r}")
    if not isinstance(predictor, str | None):
        raise DyntsError(f"{path}: predictor must be a folder, a Hub id or null, got {predictor!r}")
    if granularity not in (None, "shared", "native"):
        raise DyntsError(f"{path}: granularity must be shared, native or null, got {granularity!r}")
    for name, kind, meant in (
        ("think_start", str, "a text"),
        ("think_end", str, "a text"),
        ("template_arg", dict, "an object"),
    ):
        if not isinstance(chat[name], kind | None):
            raise DyntsError(f"{path}: {name} must be {meant} or null, got {chat[name]!r}")
    try:
        return Settings(CompressionConfig(**values), method, predictor, granularity, **chat)
    except DyntsError as error:
        raise DyntsError(f"{path}: {error}") from error
