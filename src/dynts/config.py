"""What a user chooses: the model, how large its cache may grow, how tokens are drawn; and the file of settings."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.errors import DyntsError, check_count
from dynts.options import build, option, options_of, part, read_settings
from dynts.store.files import write_text_whole

MEMORY_RESERVE = 0.1
"""Share of a device's memory that planning leaves to all but weights and cache."""
MAX_TOKENS = 16_384
"""The longest trace that is learned from, question and answer included."""
PREFILL_TOKENS = 512
"""Tokens of prompts, padding included, that are read between two decode steps: so long running rows wait."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model, from where, in which dtype, on which device, and how it is talked to.

    Args:
        name: a folder, or the id of a repository on the Hub.
        revision: branch, tag or commit of a Hub repository.
        gguf_file: name of a GGUF file in that folder or repository; its weights are de-quantised.
        dtype: such as "bfloat16"; None takes the checkpoint's own, and for quantised GGUF weights bfloat16 where the
            device computes in it, else float32.
        device: such as "cpu" or "cuda:1"; "auto" spreads the model over all devices; None is the CPU.
        attention: implementation such as "sdpa" or "eager"; None takes the model's default.
        chat: how the model is talked to.
    """

    name: str = option(flag="--model", help="A folder or the id of a Hub repository.")
    revision: str | None = option(None, help="Branch, tag or commit of a Hub repository.")
    gguf_file: str | None = option(None, help="GGUF file inside the model folder or repository.")
    dtype: str | None = option(
        None,
        help="dtype to run the model in (default: the checkpoint's; quantised GGUF weights are unpacked to bfloat16 "
        "where the device has it).",
    )
    device: str | None = option(
        None, command_line="auto", help="Such as cuda or cpu; auto spreads over all devices there are."
    )
    attention: str | None = option(None, help="Attention implementation, such as sdpa (default: the model's).")
    chat: ChatOptions = part(DEFAULT_CHAT)

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

    def checkpoint(self) -> dict[str, str | None]:
        """Return what `from_pretrained` takes, besides the name, to find the checkpoint's files."""
        return {"revision": self.revision, "gguf_file": self.gguf_file}

    def settings(self) -> dict[str, Any]:
        """Return what manifests record of the checkpoint, see `from_settings`."""
        return {"model": self.name, **self.checkpoint(), "dtype": self.dtype}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ModelSource":
        """Read the model that a manifest's settings name; folders of earlier versions lack some keys."""
        return cls(settings["model"], settings.get("revision"), settings.get("gguf_file"), settings.get("dtype"))


@dataclass(frozen=True, slots=True)
class CompressionConfig:
    """Budget of the KV cache and the schedule on which it is compacted (arXiv 2601.18383, section 4).

    Args:
        budget: B, the hard cap on the cached tokens of a sequence, question included. Reaching it triggers a
            compaction.
        local_window: W_l, how many of the most recent tokens every compaction keeps.
        retention_ratio: r, the share of the room left by the question and the local window that goes to selected
            tokens: `k = floor(r * (B - W_l - M))` for a question of M tokens. The rest of that room is filled before
            the next compaction.
        threshold: if given, every compaction evicts what scores no more than this, and one is due whenever as many
            tokens have come as the schedule takes in between two. At the budget no more than k tokens stay, as without
            a threshold.

    Raises:
        DyntsError: a value is outside its range.
    """

    budget: int = option(5000, help="Most cached tokens, question included.")
    local_window: int = option(2000, help="Most recent tokens that every compaction keeps.")
    retention_ratio: float = option(0.4, help="Share of the remaining room that selected tokens keep at a compaction.")
    threshold: float | None = option(
        None,
        help="Keep only what the method scores above this, so that easy texts take less than the budget (default: keep "
        "as many as fit).",
    )

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
        if self.threshold is None:
            return
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise DyntsError(f"threshold must be a number, got {self.threshold!r}")
        if not math.isfinite(self.threshold):
            raise DyntsError(f"threshold must be a finite number, got {self.threshold!r}; without one, leave it out")
        if self.local_window == 0:
            raise DyntsError("a threshold needs a local_window of at least 1 token: it may leave nothing else")

    def describe(self) -> str:
        """Return the schedule in words."""
        words = f"budget {self.budget}, local window {self.local_window}, retention ratio {self.retention_ratio:g}"
        return words if self.threshold is None else f"{words}, threshold {self.threshold:g}"

    def settings(self) -> dict[str, Any]:
        """Return what files record of it: all fields, the threshold only where there is one."""
        found = asdict(self)
        if self.threshold is None:
            del found["threshold"]
        return found

    def selected_tokens(self, question_tokens: int) -> int:
        """Return k, how many thinking tokens outside the local window survive a compaction."""
        return math.floor(self.retention_ratio * (self.budget - self.local_window - question_tokens))

    def kept_tokens(self, question_tokens: int) -> int:
        """Return the cached tokens right after a compaction at the budget, the most if there is a threshold."""
        return question_tokens + self.selected_tokens(question_tokens) + self.local_window

    def next_compaction(self, kept: int, question_tokens: int) -> int:
        """Return at how many cached tokens a sequence is compacted next: at the budget, or with a threshold earlier.

        Args:
            kept: tokens that the latest compaction has left; before the first one, question and local window.
            question_tokens: M.
        """
        if self.threshold is None:
            return self.budget
        return min(self.budget, kept + self.budget - self.kept_tokens(question_tokens))

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

    max_new_tokens: int = option(16_384, help="Stop after this many tokens.")
    temperature: float = option(0.6, help="Sampling temperature; 0 decodes greedily.")
    top_p: float = option(0.95, help="Sample from the smallest set with this probability.")
    top_k: int = option(20, help="Sample from this many tokens.")
    seed: int = option(0, help="Seed of the sampling, for each question anew.")

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
        """Return the keyword arguments for generate()."""
        if self.temperature == 0:
            # None takes back what the model's own generation config may say about sampling
            plain = {"temperature": None, "top_p": None, "top_k": None}
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, **plain}
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": True, **chosen}


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """A method and its budget, by their names, as a user gives them.

    Args:
        method: name of a method, see `dynts.methods.METHODS`.
        predictor: folder or Hub id of the importance predictor, where the method needs one.
        config: the budget and its schedule.
        granularity: "shared" or "native", see `dynts.cache.method.Method`; None leaves the method as it is by default.
        protect_question: keep the question where the method would not by itself.
    """

    method: str = option("dynts", help="What to keep; `full` keeps everything.")
    predictor: str | None = option(None, help="Importance predictor: a folder or the id of a Hub repository.")
    config: CompressionConfig = part(CompressionConfig())
    granularity: Literal["shared", "native"] | None = option(
        None,
        help="h2o, snapkv, rkv, random, keydiff, vase, and dynts with a predictor of a native label: one set of tokens "
        "for all heads (shared; the default but for random), or one per layer and KV head (native).",
    )
    protect_question: bool = option(False, help="Keep the question even where the method as published would not.")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `dynts tune` finds: all that a compressed decode needs besides the model.

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
        """Return what the file holds, one flat object; how the model is talked to only where it is said."""
        found = asdict(self)
        del found["config"]
        config = self.config.settings()
        told = {name: found.pop(name) for name in ("think_start", "think_end", "template_arg")}
        return {**found, **config, **{name: value for name, value in told.items() if value is not None}}


def save_settings(path: str | Path, settings: Settings) -> None:
    """Write a settings file, whole.

    Args:
        path: the file.
        settings: what it will hold.
    """
    write_text_whole(Path(path), json.dumps(settings.values(), indent=2) + "\n")


def load_settings(path: str | Path) -> Settings:
    """Read a settings file.

    It holds an object such as `{"method": "snapkv", "budget": 5000, "local_window": 2000, "retention_ratio": 0.4}`.

    Raises:
        DyntsError: the file cannot be read, a setting is missing, unknown or has a wrong value; it is named.
    """
    options = options_of(MethodOptions) | options_of(ChatOptions)
    for name in ("protect_question", "open_thinking"):
        del options[name]
    values = read_settings(path, options)
    if missing := [name for name, own in options.items() if name not in values and not own.optional]:
        raise DyntsError(f"{path}: setting {', '.join(missing)} is missing")
    try:
        chosen, chat = build(MethodOptions, values), build(ChatOptions, values)
    except DyntsError as error:
        raise DyntsError(f"{path}: {error}") from error
    markers = (chat.think_start, chat.think_end, dict(chat.template_args) or None)
    return Settings(chosen.config, chosen.method, chosen.predictor, chosen.granularity, *markers)
