"""Compress a model's KV cache while it generates: the context manager that users meet first."""

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import cache_in
from dynts.cache.lengths import GenerationStats
from dynts.cache.slots import History
from dynts.cache.step import Turn
from dynts.chat.markers import ThinkFormat, ThinkMarkers
from dynts.chat.scanner import ThinkScanner, scanner_of
from dynts.config import CompressionConfig, ModelSource
from dynts.decode.call import GenerateCall
from dynts.decode.checkpoint import say_once
from dynts.decode.forward import ForwardPass
from dynts.decode.recorded import RecordedSteps
from dynts.decode.refusals import check_compile, check_model, check_training, without_wrapper
from dynts.decode.steps import decode_steps, set_attribute
from dynts.errors import DyntsError
from dynts.methods import Method, Surroundings, check_threshold, resolve_method
from dynts.models import input_device, load_tokenizer
from dynts.models.attention import OBSERVABLE, observed_attention
from dynts.models.shape import full_attention_layers, kv_heads
from dynts.predictor.model import ImportancePredictor
from dynts.store.torchrun import heads_group

_CALL = "_compiled_call_impl"
"""The attribute of a module that torch calls, if set, in place of hooks and `forward`."""

Predictor = ImportancePredictor | Callable[[torch.Tensor], torch.Tensor]


def compress(
    model: PreTrainedModel,
    method: str | Method = "dynts",
    config: CompressionConfig | None = None,
    predictor: Predictor | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    markers: ThinkFormat | ThinkMarkers | None = None,
    record: bool = False,
    compile: bool | None = None,
) -> "Session":
    """Decode with a KV cache of fixed size: inside the returned context, `model.generate` evicts as it goes.

    Args:
        model: a loaded decoder-only transformers model, on any device or several; or one with adapters of PEFT, which
            stay active, and whose own `generate` is then under the budget too.
        method: name of a method (`dynts.methods.METHODS`), or a configured one such as `SnapKV(granularity="native")`.
        config: budget, local window and retention ratio; the default is that of `CompressionConfig`. `full` ignores it.
        predictor: importance predictor trained for this model; needed by `dynts`, `dynts-all` and `dynts-bottom`. It is
            moved to the model's device. Any other callable from hidden states [tokens, hidden size] to scores [tokens]
            does for `dynts`, unchecked.
        tokenizer: tells where thinking ends, and what separators are; the default is the tokenizer saved beside the
            model's weights, or in the folder's only GGUF file, if any. Nothing is downloaded.
        markers: what opens and closes the thinking, as text or as token ids; the default comes from the tokenizer, then
            from the predictor. Texts are found however they are cut into tokens. Without markers all generated tokens
            are treated as thinking.
        record: keep the positions that survive each compaction in `Session.kept_positions`.
        compile: how decode steps run. None, the default: on CUDA a step is recorded as a CUDA graph at the first one of
            its size, and replayed, at the shape of all slots of the budget; elsewhere, and where a step cannot be
            recorded, plain. False: plain. True: at that shape through `torch.compile`, on CUDA as CUDA graphs too; the
            first steps of a context then take a minute or more.

    Raises:
        DyntsError: a wrong setting, a missing or unsuitable predictor.
        UnsupportedError: the model or its attention implementation cannot be compressed exactly.
    """
    chosen = resolve_method(method)
    model = without_wrapper(model)
    check_model(model, chosen)
    chosen.check_model(model)
    config = config or CompressionConfig()
    check_threshold(chosen, config)
    if compile:
        check_compile(model, chosen)
    trained = predictor if isinstance(predictor, ImportancePredictor) else None
    if trained is not None:
        trained.check_model(model)
    if tokenizer is None:
        tokenizer = _tokenizer_beside(model)
    scanner = scanner_of(tokenizer, markers, None if trained is None else trained.config.markers)
    if markers is not None and scanner is None and tokenizer is None:
        raise DyntsError(
            f"markers={markers!r} need the tokenizer that writes them, and none lies beside the model: pass "
            "tokenizer=, or token ids as ThinkMarkers"
        )
    return Session(model, chosen, config, predictor, tokenizer, scanner, record, compile)


class Session:
    """A model under a budget, between `with` and the end of the block.

    Attributes:
        stats: one `GenerationStats` per finished generate() call.
        kept_positions: with `record=True`, for every compaction the logical positions that survived: int64
            [batch, kept], or [layers, batch, KV heads, kept] with native granularity, -1 for no token. Under tensor
            parallelism those of this process's heads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        method: Method,
        config: CompressionConfig,
        predictor: Predictor | None,
        tokenizer: PreTrainedTokenizerBase | None,
        scanner: ThinkScanner | None,
        record: bool,
        compile: bool | None,
    ) -> None:
        self.model = model
        self.method = method
        self.config = config
        self.predictor = predictor
        self.tokenizer = tokenizer
        self.scanner = scanner
        self.record = record
        self.compile = compile
        group = heads_group(model)
        self._surroundings = Surroundings(
            layers=full_attention_layers(model.config),
            kv_heads=kv_heads(model.config) // (1 if group is None else group.size()),
            heads_group=group,
            local_window=config.local_window,
            predictor=predictor,
            tokenizer=tokenizer,
        )
        # started once here, so that what is missing shows at once and what is looked up is looked up once
        self._started = method.start(self._surroundings)
        self._parameters = tuple(inspect.signature(model.get_decoder().forward).parameters)
        self._running = threading.local()
        self._recorded: RecordedSteps | None = None
        self._undo, self._generate = ExitStack(), cast(Callable[..., Any], model.generate)
        self.stats: list[GenerationStats] = []
        self.kept_positions: list[torch.Tensor] = []

    def __enter__(self) -> Self:
        model = self.model
        if "generate" in model.__dict__ and isinstance(getattr(model.generate, "__self__", None), Session):
            raise DyntsError("this model is compressed already: leave the other dynts context first")
        if isinstance(self.predictor, torch.nn.Module):
            self.predictor.to(input_device(model))
        with ExitStack() as undo:
            undo.callback(set_attribute, model, "generate", model.__dict__.get("generate"))
            self._generate = cast(Callable[..., Any], model.generate)
            looks = self.method.observes_attention or self.method.granularity == "native"
            if model.config._attn_implementation in (OBSERVABLE if looks else ("sdpa",)):
                undo.enter_context(observed_attention(model))
            self._recorded = undo.enter_context(decode_steps(model, self.method, self.compile, self._running_in))
            undo.callback(setattr, self, "_recorded", None)
            # Gemma 2 and 3 ask for a "hybrid" cache by default; a cache that is passed in must not compete with one
            undo.callback(
                setattr, model.generation_config, "cache_implementation", model.generation_config.cache_implementation
            )
            model.generation_config.cache_implementation = None
            if model.generation_config.use_cache is False:  # as fine-tuning leaves it
                undo.callback(setattr, model.generation_config, "use_cache", False)
                model.generation_config.use_cache = True
                say_once(
                    "dynts: the model's generation config says use_cache=False: overridden, there would be no cache to "
                    "compress"
                )
            decoder = model.get_decoder()
            undo.callback(decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True).remove)
            undo.callback(decoder.register_forward_hook(self._after_forward, with_kwargs=True).remove)
            for part in {model, decoder}:
                # hooks do: those of the user come after ours, and none is called when a user interrupts
                undo.callback(set_attribute, part, _CALL, part.__dict__.get(_CALL))
                part.__dict__[_CALL] = functools.partial(self._whole_call, part._compiled_call_impl or part._call_impl)
            model.__dict__["generate"] = self._compressed_generate
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def new_cache(self, *, decodes: bool = True) -> BudgetCache:
        """Return an empty cache for one conversation (batch), which generate() makes itself where none is passed.

        Pass it to the model as `cache`, before transformers 5.24 as `past_key_values`.

        Args:
            decodes: whether it is made for decode steps. One that only reads a prompt, for another cache to take its
                rows over, takes up no memory for later tokens.
        """
        method = self._started.start(self._surroundings)
        schedule = self.config if method.evicts else None
        history, device = History(self.scanner), input_device(self.model)
        record = self.kept_positions.append if self.record else None
        fixed = decodes and (bool(self.compile) or self._recorded is not None)
        return BudgetCache(self.model.config, method, schedule, history, device, record, fixed)

    def prepare(self, cache: BudgetCache, rows: int) -> None:
        """Let a new cache take up memory for its rows; its first forward pass does so, if it is one of the model.

        Args:
            cache: of this session.
            rows: of the batch.
        """
        if self._recorded is not None and cache.occupancy.fixed_shape:
            self._recorded.lend(cache, rows)

    def _compressed_generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        # generation_config and others may come by position, after inputs
        kwargs |= dict(zip(list(inspect.signature(self._generate).parameters)[1:], args, strict=False))
        call = GenerateCall(self.model, inputs, kwargs)
        cache = self.new_cache() if call.cache is None else call.cache
        fed, coming = cache.occupancy.columns, call.new_columns(cache, self.tokenizer)
        turn = Turn(fed, fed + coming, tuple(call.new_tokens(coming)))
        cache.check_turn(turn.tokens)
        cache.announced, stats = turn, cache.measure()
        try:
            output = self._generate(inputs, **call.arguments(cache))
        finally:
            cache.announced = None
        stats.prompt_tokens = max(turn.tokens)
        stats.generated_tokens = cache.occupancy.columns - turn.end + 1
        stats.peak_bytes = cache.peak_bytes
        self.stats.append(stats)
        return output

    def _whole_call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a call of the model or its decoder, hooks included. Its passes count once the outermost has succeeded."""
        if hasattr(self._running, "passes"):
            return call(*args, **kwargs)
        passes: list[ForwardPass] = []
        self._running.passes = passes
        try:
            output = call(*args, **kwargs)
            for running in passes:
                running.end()
            return output
        except BaseException:
            for running in passes:
                running.cache.drop()
            raise
        finally:
            del self._running.passes

    def _before_forward(
        self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        named = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        cache = cache_in(named)
        if not isinstance(cache, BudgetCache):
            return None
        if cache.method.observes_attention and not self.method.observes_attention:
            raise DyntsError(
                f"this cache was filled by {type(cache.method).__name__}, which looks at attention: "
                "continue it in a context of the same method"
            )
        check_training(self.model)
        running = ForwardPass(self.model, cache, named)
        self._running.passes.append(running)
        if not cache.occupancy.columns:
            self.prepare(cache, len(running.step.coming))
        elif self._recorded is not None and running.step.kind == "turn":
            self._recorded.renew(cache)
        # a recorded step makes its own arguments, where the recording reads them
        return (), running.kwargs if self._recorded is not None and running.fixed else running.arguments()

    def _after_forward(
        self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        running = self._running_in(kwargs)
        if running is not None:
            running.hidden = output[0]

    def _running_in(self, kwargs: Mapping[str, Any]) -> ForwardPass | None:
        """Return the latest pass on the cache that the decoder is called with; None if that is not ours."""
        passes = getattr(self._running, "passes", ())
        return next((each for each in reversed(passes) if each.cache is cache_in(kwargs)), None)


def _tokenizer_beside(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer beside the model's weights, or in their GGUF file, from disk only; None if there is none."""
    if not model.name_or_path:
        return None
    files = list(Path(model.name_or_path).glob("*.gguf"))
    try:
        if len(files) == 1:
            return load_tokenizer(ModelSource(model.name_or_path, gguf_file=files[0].name))
        return AutoTokenizer.from_pretrained(model.name_or_path, local_files_only=True)
    except (OSError, ValueError, KeyError):
        if files:
            warnings.warn(
                f"no tokenizer found beside the GGUF files in {model.name_or_path}: dynts does not know where thinking "
                "ends and takes answers for thinking; pass tokenizer= to compress",
                stacklevel=3,
            )
        return None
