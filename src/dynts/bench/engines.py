"""What is compared: transformers' own cache, and dynts with a method.

Each can start at any length without a prefill.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from dynts.bench.machine import Stopwatch, seconds
from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.step import Turn
from dynts.config import CompressionConfig
from dynts.decode.compress import Predictor, Session, compress
from dynts.methods import Method, resolve_method
from dynts.models import input_device
from dynts.models.cudnn import without_cudnn
from dynts.models.shape import head_size, kv_heads

_OBSERVED = 32
"""Steps before a compaction that is timed, so that methods which look at the latest queries have them."""


class TimedEngine(ABC):
    """A way to decode with one model.

    Args:
        name: as shown.
        model: the model, in evaluation mode.
        schedule: the budget; None never evicts.
    """

    def __init__(self, name: str, model: PreTrainedModel, schedule: CompressionConfig | None = None) -> None:
        self.name = name
        self.model = model
        self.schedule = schedule
        self.device = input_device(model)

    @property
    def budget(self) -> int | None:
        """Most cached tokens of a row, if there is a limit."""
        return None if self.schedule is None else self.schedule.budget

    @abstractmethod
    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the model up for this engine, inside a context."""

    @abstractmethod
    def new_cache(self, tokens: int | None = None) -> Cache:
        """Return an empty cache.

        Args:
            tokens: most that a row will hold, which only a static cache has to know.
        """

    def generate_arguments(self, cache: Cache) -> dict[str, Any]:
        """Return the arguments by which `generate` uses a cache.

        Args:
            cache: an empty one of this engine.
        """
        return {CACHE: cache}

    def decode_call(self) -> Callable[..., object]:
        """Return what is called for a decode step."""
        return cast(Callable[..., object], self.model)

    @abstractmethod
    def fill(self, cache: Cache, prompt: int, tokens: int, batch: int) -> None:
        """Fill the cache up to a length with random keys and values, as if they had been read and generated.

        Args:
            cache: of this engine, empty or filled by it.
            prompt: how many of the tokens are the question's.
            tokens: cached tokens of each row afterwards.
            batch: rows.
        """

    @abstractmethod
    def kv_bytes(self, cache: Any) -> int:
        """Return the bytes allocated for keys and values."""

    def compaction(self, prompt: int, batch: int) -> dict[str, float]:
        """Time one compaction in the long run, by part; return nothing where nothing is evicted.

        Args:
            prompt: tokens of the question.
            batch: rows.
        """
        return {}

    @torch.no_grad()
    def step(self, cache: Cache, batch: int) -> float:
        """Time one decode step, cache bookkeeping included, in seconds.

        Args:
            cache: filled to some length.
            batch: rows.
        """
        tokens = torch.ones(batch, 1, dtype=torch.long, device=self.device)
        decode = self.decode_call()
        return seconds(lambda: decode(input_ids=tokens, **{CACHE: cache}, use_cache=True), self.device)

    @torch.no_grad()
    def prefill(self, prompt: int, batch: int) -> float:
        """Time the reading of a prompt, in seconds.

        Args:
            prompt: its tokens.
            batch: rows.
        """
        tokens = torch.ones(batch, prompt, dtype=torch.long, device=self.device)
        model, cache = cast(Callable[..., object], self.model), self.new_cache(prompt)
        return seconds(lambda: model(input_ids=tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=1), self.device)

    def _states(self, batch: int, tokens: int) -> torch.Tensor:
        """Random states [batch, KV heads, tokens, head size]; few distinct ones, since drawing them takes time."""
        config = self.model.config
        few = torch.randn(1, kv_heads(config), 64, head_size(config), dtype=self.model.dtype, device=self.device)
        return few.repeat(batch, 1, tokens // 64 + 1, 1)[:, :, :tokens]


class TimedTransformers(TimedEngine):
    """The full cache of transformers, as `generate` uses it by default.

    Args:
        name: as shown.
        model: the model.
        attention: attention implementation, such as "sdpa".
        cudnn: whether sdpa may take cuDNN on CUDA, as torch lets it.
    """

    def __init__(self, name: str, model: PreTrainedModel, attention: str, cudnn: bool = True) -> None:
        super().__init__(name, model)
        self.attention = attention
        self.cudnn = cudnn

    @contextmanager
    def running(self) -> Iterator[None]:
        """Switch the attention implementation."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(self.attention)
        try:
            with nullcontext() if self.cudnn else without_cudnn(self.device):
                yield
        finally:
            self.model.set_attn_implementation(before)

    def new_cache(self, tokens: int | None = None) -> Cache:
        """Return an empty `DynamicCache`, which grows."""
        return DynamicCache(config=self.model.config)

    def fill(self, cache: Cache, prompt: int, tokens: int, batch: int) -> None:
        """Fill the cache with one update a layer; see `TimedEngine.fill`.

        Arguments as in `TimedEngine`.
        """
        states = self._states(batch, tokens - int(cache.get_seq_length()))
        for layer in range(len(cache.layers)):
            cache.update(states, states, layer)

    def kv_bytes(self, cache: Any) -> int:
        """Return the bytes of all layers."""
        layers = (layer for layer in cache.layers if layer.is_initialized)
        tensors = (tensor for layer in layers for tensor in (layer.keys, layer.values))
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class TimedStatic(TimedTransformers):
    """The static cache of transformers, with which `generate` compiles decode steps on CUDA.

    It is the fastest that transformers itself offers there. Arguments as of `TimedTransformers`.
    """

    @contextmanager
    def running(self) -> Iterator[None]:
        """Switch the attention implementation; afterwards the model knows no compiled steps, as before."""
        with super().running():
            try:
                yield
            finally:
                # else another length would be compiled for any length, and get a cache as long as the longest so far
                vars(self.model).pop("_previous_max_cache_length", None)
                if vars(self.model).pop("_compiled_call", None) is not None:
                    torch.compiler.reset()

    def new_cache(self, tokens: int | None = None) -> Cache:
        """Return an empty `StaticCache` of that many slots."""
        assert tokens is not None, "a static cache has to know its size"
        return StaticCache(config=self.model.config, max_cache_len=tokens)

    def generate_arguments(self, cache: Cache) -> dict[str, Any]:
        """Return the argument by which `generate` makes such a cache itself."""
        return {"cache_implementation": "static"}

    def decode_call(self) -> Callable[..., object]:
        """Return what `generate` calls: on CUDA the model's compiled call, elsewhere the model."""
        return self.model.get_compiled_call(None) if self.device.type == "cuda" else super().decode_call()


class TimedDynTS(TimedEngine):
    """dynts with a method.

    Args:
        name: as shown.
        model: the model.
        schedule: the budget; ignored by the method `full`.
        method: a method or its name.
        predictor: needed by some methods.
        compile: how decode steps run, see `dynts.compress`.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        schedule: CompressionConfig,
        method: str | Method,
        predictor: Predictor | None = None,
        compile: bool | None = None,
    ) -> None:
        self.method = resolve_method(method)
        super().__init__(name, model, schedule if self.method.evicts else None)
        self.predictor = predictor
        self.compile = compile
        self.session: Session | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Enter a `compress` context."""
        with compress(self.model, self.method, self.schedule, self.predictor, compile=self.compile) as self.session:
            yield

    def new_cache(self, tokens: int | None = None) -> BudgetCache:
        """Return an empty cache of the session, which knows its size."""
        assert self.session is not None, "within running() only"
        return self.session.new_cache()

    def fill(self, cache: Cache, prompt: int, tokens: int, batch: int) -> None:
        """Feed the question, then generated tokens, through the cache's own bookkeeping.

        Arguments as in `TimedEngine`.
        """
        assert isinstance(cache, BudgetCache)
        if not cache.lengths:
            assert self.session is not None, "within running() only"
            self.session.prepare(cache, batch)
            cache.announced = Turn(0, prompt, (prompt,) * batch)
            self._feed(cache, prompt, batch)
        self._feed(cache, tokens - cache.lengths[0], batch)

    def kv_bytes(self, cache: Any) -> int:
        """Return the bytes that the cache counts."""
        return cache.allocated_bytes

    @torch.no_grad()
    def compaction(self, prompt: int, batch: int) -> dict[str, float]:
        """Time the second compaction: only the first one has the whole budget to score.

        Arguments as in `TimedEngine`.
        """
        if self.schedule is None:
            return {}
        cache, watch = self.new_cache(), Stopwatch(self.device)
        between = self.schedule.budget - self.schedule.kept_tokens(prompt)
        steps = min(_OBSERVED, between) if self.method.observes_attention else 1
        for _ in range(2):
            self.fill(cache, prompt, self.schedule.budget - steps, batch)
            for _ in range(steps - 1):
                self.step(cache, batch)
            watch.spent.clear()
            with (
                watch.watching(cache.method, score="scoring"),
                watch.watching(cache.compactor, keep="moving", compact="all"),
            ):
                self.step(cache, batch)
        spent = watch.spent
        return {
            "scoring": spent["scoring"],
            "selection": spent["all"] - spent["scoring"] - spent["moving"],
            "moving": spent["moving"],
        }

    def _feed(self, cache: BudgetCache, tokens: int, batch: int) -> None:
        if tokens < 1:
            return
        step = cache.plan(batch, tokens)
        states = self._states(batch, tokens)
        for layer in range(len(cache.layers)):
            cache.update(states, states, layer)
        ids = torch.ones(batch, tokens, dtype=torch.long, device=self.device)
        hidden = torch.randn(batch, tokens, self.model.config.hidden_size, dtype=self.model.dtype, device=self.device)
        cache.commit(step, ids, step.positions, hidden)
