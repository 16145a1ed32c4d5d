"""Decode steps recorded once and replayed: on CUDA as a graph of the plain step's kernels, without a compiler.

Of a plain step most is the host launching kernels. A recording takes a fraction of a second, and is remembered with the
memory that it works on, for all contexts and calls of the process that decode with the same model at the same size.
"""

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.method import Method, Observed
from dynts.cache.selection import live_slots
from dynts.cache.step import Ring
from dynts.decode.checkpoint import say_once
from dynts.decode.forward import ForwardPass, Observer, decoder_arguments
from dynts.models.attention import OBSERVABLE, implementation_of

PLAIN = "DYNTS_PLAIN_STEPS"
"""Environment variable: if it is set, no step is recorded."""

_CAPTURING = "transformers.utils.output_capturing"
_MISSING = object()
_MOST = 64
"""Recordings of one memory: more would be made by an argument that changes with every step."""
_TOLERANCE = {torch.float32: 1e-4}
"""How far a replayed step may differ from the plain one, relative to its length; half precision: 2e-2."""


@dataclass(frozen=True, slots=True)
class _Output:
    """What a step gives: the last hidden state [batch, 1, hidden size], and what a method has seen of each layer."""

    hidden: torch.Tensor
    seen: dict[int, Observed]


_Run = Callable[[ForwardPass], _Output]


def _record_graph(run: _Run, running: ForwardPass) -> _Run:
    """Capture a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(running.model.device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what libraries set up at their first call must not be captured
            run(running)
        torch.cuda.current_stream().wait_stream(side)
        # on that stream: torch's own one is shared by all threads, and lies on the device that was current first
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = run(running)
    output.hidden.fill_(torch.nan)  # so that the check sees a replay that does nothing

    def replay(_: ForwardPass) -> _Output:
        graph.replay()
        return output

    return replay


RECORDERS: dict[str, Callable[[_Run, ForwardPass], _Run]] = {"cuda": _record_graph}
"""How a type of device records a step. It gives what does the step again, on the same memory."""


@dataclass(slots=True, eq=False)
class _Memory:
    """Slots of one cache at a time, and the steps that were recorded on them.

    Attributes:
        weights: which weights the recordings read.
        cache: whose slots these are; a dead reference if nobody's.
        slots: keys and values of each full-attention layer, as they were allocated; none before the first step.
        rings: of each sliding-window layer, by the number of rows.
        recorded: steps by what distinguishes them; None where recording has failed.
    """

    weights: tuple[Any, ...]
    cache: "weakref.ref[BudgetCache]"
    slots: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    rings: dict[int, Sequence[tuple[torch.Tensor, torch.Tensor] | None]] = field(default_factory=dict)
    recorded: dict[tuple[Any, ...], "_Recorded | None"] = field(default_factory=dict)

    def shown(self, rows: int, slots: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return that many slots of that many rows in this memory, of each layer; none if they do not fit."""
        if any(each.numel() < rows * slots * each.shape[1] * each.shape[3] for pair in self.slots for each in pair):
            return []
        return [(_reshaped(keys, rows, slots), _reshaped(values, rows, slots)) for keys, values in self.slots]

    def use_rings(self, cache: BudgetCache) -> None:
        """Let the sliding-window layers of a cache keep their tokens in this memory's rings."""
        rings = self.rings.get(cache.batch, [None] * len(cache.sliding_layers))
        for layer, ring in zip(cache.sliding_layers, rings, strict=True):
            layer.enter_ring(ring)
        if cache.batch not in self.rings:
            self.rings[cache.batch] = [(layer.keys, layer.values) for layer in cache.sliding_layers]


_MEMORIES: "weakref.WeakKeyDictionary[PreTrainedModel, list[_Memory]]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def forget_steps(model: PreTrainedModel) -> None:
    """Free the recorded steps of a model and their memory, but what caches in use still hold."""
    with _LOCK:
        _MEMORIES.pop(model, None)


def can_record(model: PreTrainedModel, method: Method) -> bool:
    """Return whether steps of a model are recorded by default: on CUDA, under a budget, unless `PLAIN` is set.

    Args:
        model: the model.
        method: by which it decodes.
    """
    return model.device.type in RECORDERS and method.evicts and not os.environ.get(PLAIN)


def _why_plain(model: PreTrainedModel, cache: BudgetCache) -> str | None:
    """Return why the steps of a cache cannot be recorded; None if they can."""
    implementation, decoder = implementation_of(model), model.get_decoder()
    reasons = {
        "the model's weights lie on several devices": len({weight.device for weight in model.parameters()}) > 1,
        f"attention implementation {implementation!r} sees no fixed shape": implementation not in OBSERVABLE,
        "the model is in training mode": model.training,
        "the model chooses by values what to compute, as some mixtures of experts do": (
            not getattr(model, "_can_compile_fullgraph", True)
        ),
        "rotary positions change with the length of the text (dynamic or longrope scaling)": _rope_types(decoder)
        & {"dynamic", "longrope"},
        "sliding-window layers of one model have windows of different sizes": (
            len({layer.sliding_window for layer in cache.sliding_layers}) > 1
        ),
        "layers keep a state, and each step puts another in its place": bool(cache.state_layers),
        "hooks or replaced forward functions in the model's layers would not be called": _is_watched(decoder),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class RecordedSteps:
    """Runs the decode steps of a model's caches of fixed shape, recorded where that is possible.

    Args:
        model: the model.
        forward: its decoder's own forward function.
    """

    def __init__(self, model: PreTrainedModel, forward: Callable[..., Any]) -> None:
        self.model = model
        self.forward = forward
        self._renewed: weakref.WeakSet[BudgetCache] = weakref.WeakSet()

    def lend(self, cache: BudgetCache, rows: int) -> None:
        """Offer memory to a cache before its first forward pass, so that steps recorded on it can be replayed.

        A cache whose steps cannot be recorded gets none, and slots as they are needed.

        Args:
            cache: it.
            rows: of the pass.
        """
        why, capacity = _why_plain(self.model, cache), cache.occupancy.capacity
        if why is not None:
            _tell(why)
            cache.occupancy.fixed_shape = False
            return
        assert capacity is not None
        weights = _fingerprint(self.model)
        with _LOCK:
            memories = _MEMORIES.setdefault(self.model, [])
            free = [memory for memory in memories if memory.cache() is None or memory.cache() is cache]
            # other weights may be of another dtype, or on another device
            fitting = [memory for memory in free if memory.weights == weights and memory.shown(rows, capacity)]
            chosen = fitting[0] if fitting else _Memory(weights, weakref.ref(cache))
            # what does not fit goes before something else is allocated
            memories[:] = [chosen, *(memory for memory in memories if memory not in free)]
            chosen.cache = weakref.ref(cache)
        for layer, pair in zip(cache.budget_layers, chosen.shown(rows, capacity), strict=False):
            # a view made without gradients could not be written with them
            layer.offered = pair[0].zero_().detach(), pair[1].zero_().detach()

    def renew(self, cache: BudgetCache) -> None:
        """Forget the steps of a cache that goes on after the model's weights were replaced, or adapters switched.

        Args:
            cache: it.
        """
        memory, weights = self._memory(cache), _fingerprint(self.model)
        if memory is not None and memory.weights != weights:
            memory.weights, memory.recorded = weights, {}
        self._renewed.add(cache)

    def step(self, running: ForwardPass) -> Any:
        """Run a generated token of each row through the decoder, and return its output.

        Args:
            running: the forward pass.
        """
        if running.cache not in self._renewed:
            self.renew(running.cache)
        memory = self._memory(running.cache)
        if memory is None or torch.is_grad_enabled() or torch.is_autocast_enabled(self.model.device.type):
            return self.forward(**running.arguments())
        inputs, others = _inputs(running)
        key = (
            *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()),
            *others,
            running.cache.occupancy.capacity,
            self.model.config._attn_implementation,
            repr(running.cache.method) if running.cache.method.observes_attention else None,
        )
        if memory.recorded.get(key, _MISSING) is None:
            return self.forward(**running.arguments())
        memory.use_rings(running.cache)
        recorded = memory.recorded.get(key) or self._record(memory, key, running, inputs)
        if recorded is None:
            return self.forward(**running.arguments())
        output = recorded(running, inputs)
        running.observer.seen = {
            layer: replace(seen, told=None if seen.told is None else seen.told.clone())
            for layer, seen in output.seen.items()
        }
        return recorded.kind(last_hidden_state=output.hidden.clone(), **{CACHE: running.cache})

    def _memory(self, cache: BudgetCache) -> _Memory | None:
        """Return the memory that a cache has taken up; None if its slots lie elsewhere."""
        with _LOCK:
            memory = next((memory for memory in _MEMORIES.get(self.model, ()) if memory.cache() is cache), None)
        if memory is None:
            return None
        if not memory.slots:
            memory.slots = [layer.memory for layer in cache.budget_layers]
            for layer, pair in zip(cache.budget_layers, memory.slots, strict=True):
                layer.offered = pair
        if any(layer.offered is None or layer.memory[0] is not layer.offered[0] for layer in cache.budget_layers):
            return None
        return memory

    def _record(
        self, memory: _Memory, key: tuple[Any, ...], running: ForwardPass, inputs: dict[str, torch.Tensor]
    ) -> "_Recorded | None":
        """Record a step and compare it with the plain one; None if that fails, and the user is told."""
        if len(memory.recorded) >= _MOST:
            _tell(f"{_MOST} forms of the step have been recorded, of other sizes or arguments, and each takes memory")
            return None
        try:
            recorded = _Recorded(self.forward, running, inputs)
            recorded.check(running, inputs)
        except (RuntimeError, _Unfit) as error:
            _tell(error)
            memory.recorded[key] = None
            return None
        memory.recorded[key] = recorded
        return recorded


class _Unfit(Exception):
    """A step that cannot be recorded; says why."""


class _Recorded:
    """A recorded step and its inputs, which lie where the recording reads them.

    Args:
        forward: of the decoder.
        running: the forward pass to record.
        inputs: its tensors.

    Attributes:
        kind: class of the decoder's output.
    """

    def __init__(self, forward: Callable[..., Any], running: ForwardPass, inputs: dict[str, torch.Tensor]) -> None:
        with torch.inference_mode(False):
            self.inputs = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in inputs.items()}
        self.kind: type[ModelOutput] = ModelOutput
        run = self._runner(forward)
        self.plain = run(running)
        self._replay = RECORDERS[running.model.device.type](run, running)

    def __call__(self, running: ForwardPass, inputs: dict[str, torch.Tensor]) -> _Output:
        """Do the step with other inputs, of the same names and shapes."""
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        return self._replay(running)

    def check(self, running: ForwardPass, inputs: dict[str, torch.Tensor]) -> None:
        """Compare the recording with the plain step.

        Raises:
            _Unfit: they differ.
        """
        plain, replayed = self.plain.hidden.float().nan_to_num(), self(running, inputs).hidden.float().nan_to_num()
        apart, length = (replayed - plain).norm().item(), plain.norm().item()
        if apart > _TOLERANCE.get(running.model.dtype, 2e-2) * length:
            raise _Unfit(f"a replayed step differs from the plain one by {apart:.2g} of {length:.2g}")
        del self.plain

    def _runner(self, forward: Callable[..., Any]) -> _Run:
        """Return what runs a pass on the inputs that lie still, and on the slots of its own cache."""
        inputs = self.inputs

        def run(running: ForwardPass) -> _Output:
            cache, slots = running.cache, inputs["slots"]
            assert cache.occupancy.capacity is not None
            step = replace(
                running.step,
                positions=inputs["position_ids"],
                slots=(torch.arange(len(slots), device=slots.device), slots),
                live=live_slots(slots + 1, cache.occupancy.capacity),
                ring=Ring(inputs["column"], inputs["shown"]) if "column" in inputs else None,
            )
            observer = Observer(cache, step)
            kwargs = {name: inputs.get(name, value) for name, value in running.kwargs.items()}
            cache.occupancy.step = step
            try:
                output = forward(**decoder_arguments(running.model, cache, step, kwargs, observer))
            finally:
                cache.occupancy.step = running.step
            hidden = self._hidden(output, cache)
            return _Output(hidden, observer.seen)

        return run

    def _hidden(self, output: Any, cache: BudgetCache) -> torch.Tensor:
        """Return the last hidden state, if a step gives nothing else."""
        if not isinstance(output, ModelOutput):
            raise _Unfit(f"the decoder returns {type(output).__name__}")
        others = {name for name, value in output.items() if value is not cache} - {"last_hidden_state"}
        if others:
            raise _Unfit(f"the decoder is asked for {', '.join(sorted(others))} too")
        self.kind = type(output)
        return output["last_hidden_state"]


def _inputs(running: ForwardPass) -> tuple[dict[str, torch.Tensor], tuple[Any, ...]]:
    """Return the tensors that a step reads, by name, and all else that it is called with."""
    assert running.step.slots is not None
    cache, mask = running.cache, running.kwargs.get("attention_mask")
    kwargs = {
        name: value
        for name, value in running.kwargs.items()
        if value is not None and value is not cache and name != "attention_mask"
    }
    tensors = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    others = tuple((name, repr(value)) for name, value in kwargs.items() if name not in tensors)
    rows = running.step.slots[1]
    tensors |= {"position_ids": running.step.positions.expand(len(rows), 1), "slots": rows}
    if cache.sliding_layers:
        column, window = cache.occupancy.columns, cache.sliding_layers[0].sliding_window
        # the column of the token in each slot of the ring
        held = column - (column - torch.arange(window, device=cache.device)) % window
        shown = (held >= 0).expand(len(running.step.coming), -1)
        if mask is not None and mask.shape[1] == column + 1:
            shown = shown & mask.to(cache.device, torch.bool)[:, held.clamp(min=0) - column - 1]
        tensors |= {"column": held[column % window].view(1), "shown": shown}
    return tensors, others


def _reshaped(slots: torch.Tensor, rows: int, count: int) -> torch.Tensor:
    """Return slots [rows, heads, count, size] in the memory of others, stored in the same order."""
    heads, size = slots.shape[1], slots.shape[3]
    elements = rows * count * heads * size
    if slots.stride(1) < slots.stride(2):  # slots before heads
        return slots.transpose(1, 2).reshape(-1)[:elements].view(rows, count, heads, size).transpose(1, 2)
    return slots.reshape(-1)[:elements].view(rows, heads, count, size)


def _tell(why: object) -> None:
    say_once(f"dynts: decode steps are not recorded but plain, and slower: {why}")


def _rope_types(decoder: torch.nn.Module) -> set[str]:
    """Return how a decoder's rotary positions are scaled; models with layers of several kinds have a table of them."""
    found = [vars(part)["rope_type"] for part in decoder.modules() if "rope_type" in vars(part)]
    return {kind for each in found for kind in (each.values() if isinstance(each, dict) else [each])}


def _is_watched(decoder: torch.nn.Module) -> bool:
    """Return whether some part of a decoder calls more than its class's own forward function."""
    parts = [part for part in decoder.modules() if part is not decoder]
    hooks = [hook for part in parts for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]
    # transformers leaves hooks behind once it was asked for hidden states, which do nothing unless it is asked again
    return any("forward" in vars(part) for part in parts) or any(hook.__module__ != _CAPTURING for hook in hooks)


def _fingerprint(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return what tells whether a recording still reads the model's weights, and does what its layers do.

    Values that change in place are read anew by every replay. Adapters of PEFT are switched by attributes.
    """
    adapters = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
    return (
        *((name, weight.data_ptr(), weight.dtype) for name, weight in model.named_parameters()),
        *((name, value.data_ptr()) for name, value in model.named_buffers()),
        *(
            (name, repr([vars(part)[each] for each in adapters if each in vars(part)]))
            for name, part in model.named_modules()
            if "_active_adapter" in vars(part)
        ),
    )
