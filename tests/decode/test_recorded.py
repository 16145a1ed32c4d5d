"""Recorded decode steps: those of the reference, recorded once, remembered, and plain where they cannot be recorded.

On CPUs nothing can be recorded, so a recording runs the same static step each time: the same inputs in the same memory.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

import dynts
from against_reference import CONFIG, check_row, reference_of
from decoding import TOLERANCE, converse, padded, predictor_for, random_tokens
from dynts.cache.interface import CACHE
from dynts.decode import checkpoint, recorded
from dynts.models import lengths
from dynts.models.attention import grouped_step
from dynts.models.cudnn import without_cudnn
from dynts.models.lengths import RowLengths, kernel_by_lengths
from joined_rows import check_joined, run_joining, some_stream
from method_table import CASES, EVERY, THRESHOLDS
from reference import Turn
from tiny import tiny_model

OPTIONS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}


class Recorder:
    """Takes the place of what records on a GPU."""

    def __init__(self) -> None:
        self.times = 0
        self.replays = 0

    def __call__(self, run: Callable[..., Any], running: Any) -> Callable[..., Any]:
        self.times += 1

        def replay(running: Any) -> Any:
            self.replays += 1
            return run(running)

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Steps on CPUs are recorded, and say every time why not."""
    found = Recorder()
    monkeypatch.setitem(recorded.RECORDERS, "cpu", found)
    checkpoint.say_once.cache_clear()
    yield found
    checkpoint.say_once.cache_clear()


def check_conversation(model: Any, name: str, config: dynts.CompressionConfig = CONFIG) -> None:
    """Two turns of a padded batch are those of the reference."""
    # a sliding window counts columns, so padding in the middle of a conversation takes room in it
    shorter = 3 if model.config.model_type == "gemma3_text" else 1
    rows, more = [random_tokens(4, 6), random_tokens(9, 7)], [random_tokens(3, 8), random_tokens(shorter, 9)]
    talk = converse(model, [(rows, 26), (more, 24)], CASES[name].method, config)
    for row in range(2):
        turns = [Turn(rows[row], 26), Turn(more[row], 24)]
        run = reference_of(model, name, turns, [tokens[row] for tokens in talk.tokens], config)
        assert name == "full" or len(run.compactions) >= 3
        check_row(talk, row, run)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("architecture", "attention"), [("qwen3", "sdpa"), ("gemma3", "eager")])
def test_recorded_steps_are_those_of_the_reference(
    recorder: Recorder, architecture: str, attention: str, name: str
) -> None:
    check_conversation(tiny_model(architecture, attn_implementation=attention), name)
    assert recorder.times == (0 if name == "full" else 1)
    assert name == "full" or recorder.replays == 25 + 24


@pytest.mark.parametrize("name", ["dynts, native", "h2o"])
def test_recorded_steps_under_a_threshold_are_those_of_the_reference(recorder: Recorder, name: str) -> None:
    check_conversation(tiny_model("qwen3"), name, replace(CONFIG, threshold=THRESHOLDS[name]))
    assert recorder.times == 1


@pytest.mark.parametrize("name", ["dynts", "dynts-all, native", "h2o, native", "snapkv", "rkv"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_rows_that_join_and_leave(recorder: Recorder, architecture: str, name: str) -> None:
    model, stream = tiny_model(architecture), some_stream()
    batch = run_joining(model, name, stream, rows=6, prefill_tokens=8)
    for each in stream:
        check_joined(model, name, each)
    assert set(batch.seen) == {1, 2, 4}, "rows are few numbers"
    assert set(batch.empty) == {0, 1}, "some hold nothing"
    assert recorder.times == 3, "each number is recorded once"


def by_formula(query: Tensor, key: Tensor, value: Tensor, rows: RowLengths, scaling: float | None) -> Tensor:
    """What `flash_by_lengths` computes, in double precision."""
    batch, _, slots, size = key.shape
    visible = torch.arange(slots) < rows.lengths[:, None]
    scale = size**-0.5 if scaling is None else scaling
    logits = torch.einsum("bhgd,bhsd->bhgs", query.view(batch, key.shape[1], -1, size).double(), key.double()) * scale
    weights = logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("bhgs,bhsd->bhgd", weights, value.double()).float().view(batch, -1, 1, size)


def flash_operator(query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> tuple[Tensor]:
    """What torch's operator computes of packed rows, by formula."""
    starts, key_starts, queries, slots, dropout, causal, _ = given
    lengths, attended = named["seqused_k"], torch.empty_like(query)
    assert (queries, dropout, causal) == (1, 0.0, False)
    assert starts.tolist() == list(range(len(query) + 1))
    assert all(tensor.dtype == torch.int32 for tensor in (starts, key_starts, lengths))
    for row, length in enumerate(lengths.tolist()):
        assert length <= slots
        own = slice(int(key_starts[row]), int(key_starts[row]) + length)
        one = by_formula(
            query[row][None, :, None],
            key[own].transpose(0, 1)[None],
            value[own].transpose(0, 1)[None],
            RowLengths(torch.tensor([length]), lengths, by_formula),
            named["scale"],
        )
        attended[row] = one[0, :, 0]
    return (attended,)


@pytest.mark.parametrize("name", ["dynts", "dynts, native", "h2o, native", "rkv"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("static", [False, True])
def test_slots_before_heads_and_attention_by_lengths(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, architecture: str, name: str, static: bool
) -> None:
    """As on a GPU, but for the operator, which is one by formula."""
    calls: list[tuple[int, ...]] = []

    def operator(*given: Any, **named: Any) -> tuple[Tensor]:
        calls.append(given[1].shape)
        return flash_operator(*given, **named)

    monkeypatch.setattr("dynts.cache.layer.stores_slots_first", lambda device: True)
    monkeypatch.setattr("dynts.models.attention.kernel_by_lengths", lambda *_: lengths.flash_by_lengths)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    if not static:
        monkeypatch.setenv(recorded.PLAIN, "1")
    check_conversation(tiny_model(architecture), name)
    assert calls
    assert recorder.times == static


@pytest.mark.quick
def test_the_kernel_is_chosen_by_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    choose, cuda, half = kernel_by_lengths.__wrapped__, torch.device("cuda:0"), torch.bfloat16
    assert choose(cuda, half, 128) is choose(cuda, torch.float16, 256) is lengths.flash_by_lengths
    for case in [(torch.device("cpu"), half, 128), (cuda, torch.float32, 128), (cuda, half, 264), (cuda, half, 100)]:
        assert choose(*case) is None
    capability = (7, 5)
    assert choose(cuda, half, 128) is None
    capability = (10, 0)
    assert choose(cuda, half, 128) is lengths.flash_by_lengths
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert choose(cuda, half, 128) is None


@pytest.mark.quick
def test_cudnn_stays_out_of_decode_steps_and_nothing_else(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    with ExitStack() as first, ExitStack() as second:  # as of two threads that do not leave in order
        first.enter_context(without_cudnn(torch.device("cuda:0")))
        second.enter_context(without_cudnn(torch.device("cuda:1")))
        first.close()
        assert not allowed()
        second.close()
    assert allowed()
    monkeypatch.setattr("dynts.decode.steps.without_cudnn", lambda device: without_cudnn(torch.device("cuda")))
    seen: list[tuple[int, bool]] = []

    def watched(attention: Callable[..., Any], place: int) -> Callable[..., Any]:
        def watching(*given: Any, **named: Any) -> Any:
            seen.append((given[place].shape[2], allowed()))
            return attention(*given, **named)

        return watching

    monkeypatch.setattr("dynts.models.attention.grouped_step", watched(grouped_step, 0))
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", watched(AttentionInterface()["sdpa"], 1))
    model = tiny_model("llama")
    with dynts.compress(model, "window", CONFIG):
        model.generate(**padded(random_tokens(5, 1)), max_new_tokens=4, do_sample=False)
    assert set(seen) == {(5, True), (1, False)}
    assert allowed()


def test_recordings_and_their_memory_are_remembered(recorder: Recorder) -> None:
    model = tiny_model("llama")
    batch, others = padded(random_tokens(5, 1), random_tokens(9, 2)), padded(random_tokens(7, 3), random_tokens(7, 4))

    def answer(inputs: dict[str, Tensor], config: dynts.CompressionConfig = CONFIG, compile: bool | None = None) -> Any:
        with dynts.compress(model, "dynts", config, predictor_for("dynts"), compile=compile):
            return model.generate(**inputs, max_new_tokens=40, **OPTIONS).logits

    def recordings(*given: Any) -> int:
        before = recorder.times
        for ours, plain in zip(answer(*given), answer(*given, compile=False), strict=True):
            torch.testing.assert_close(ours, plain, atol=TOLERANCE, rtol=0)
        return recorder.times - before

    def address() -> list[int]:
        return [pair[0].data_ptr() for memory in recorded._MEMORIES[model] for pair in memory.slots]

    assert recordings(batch) == 1
    where = address()
    assert recordings(others) == recordings(batch) == 0
    one = {name: tensor[1:] for name, tensor in batch.items()}
    assert recordings(one) == 1, "another number of rows"
    assert recordings(one) == recordings(batch) == 0
    smaller = dynts.CompressionConfig(budget=26, local_window=6, retention_ratio=0.4)
    assert recordings(batch, smaller) == 1
    assert address() == where, "all in the same memory"
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert recordings(batch) == 0, "the weights are read where they are"
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
    assert recordings(batch) == 1, "these lie elsewhere"
    larger = dynts.CompressionConfig(budget=36, local_window=6, retention_ratio=0.4)
    assert recordings(batch, larger) == 1
    assert len(recorded._MEMORIES[model]) == 1, "what was too small is gone"
    recorded.forget_steps(model)
    assert recordings(batch) == 1
    model.double()
    assert recordings(batch) == 1, "slots of another dtype are not in the way"
    assert recordings(batch) == 0


@pytest.mark.parametrize("turn", [False, True])
@torch.no_grad()
def test_a_cache_that_goes_on_with_other_weights_is_recorded_anew(recorder: Recorder, turn: bool) -> None:
    """In a new context, and within one at a new turn."""
    model, ids = tiny_model("llama"), torch.tensor([[9]])
    with dynts.compress(model, "window", CONFIG) as session:
        cache = session.new_cache()
        for _ in range(3):
            model(input_ids=ids, **{CACHE: cache})
        model.load_state_dict({name: weight * 1.1 for name, weight in model.state_dict().items()}, assign=True)
        if turn:
            model(input_ids=torch.tensor([[10, 11]]), **{CACHE: cache})
            model(input_ids=ids, **{CACHE: cache})
    for _ in range(2):
        with dynts.compress(model, "window", CONFIG):
            model(input_ids=ids, **{CACHE: cache})
    assert recorder.times == 2


@torch.no_grad()
def test_an_interrupted_recording_is_made_again(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(run: Any, running: Any) -> Any:
        raise KeyboardInterrupt

    model, ids = tiny_model("llama"), torch.tensor([[9]])
    with dynts.compress(model, "window", CONFIG) as session:
        cache = session.new_cache()
        model(input_ids=ids, **{CACHE: cache})
        with monkeypatch.context() as patch:
            patch.setitem(recorded.RECORDERS, "cpu", interrupt)
            with pytest.raises(KeyboardInterrupt):
                model(input_ids=ids, **{CACHE: cache})
        model(input_ids=ids, **{CACHE: cache})
    assert (recorder.times, recorder.replays) == (1, 2)


def test_memory_that_was_taken_up_without_gradients_serves_with_them(recorder: Recorder) -> None:
    model, ids = tiny_model("llama"), torch.tensor([[9]])
    for _ in range(2):  # the second cache takes up the first one's memory
        with dynts.compress(model, "window", CONFIG) as session:
            cache = session.new_cache()
            with torch.no_grad():
                for _ in range(3):
                    model(input_ids=ids, **{CACHE: cache})
            model(input_ids=ids, **{CACHE: cache})
        del cache
    assert recorder.times == 1


@torch.no_grad()
def test_a_decoder_that_is_being_recorded_shows_its_own_parameters(recorder: Recorder) -> None:
    """What its layers get is told by them."""
    model = tiny_model("llama")
    parameters = inspect.signature(model.get_decoder().forward)
    with dynts.compress(model, "window", CONFIG):
        assert inspect.signature(model.get_decoder().forward) == parameters


def test_two_caches_at_a_time_have_memory_of_their_own(recorder: Recorder) -> None:
    model = tiny_model("gemma3")
    first, second = padded(random_tokens(6, 1)), padded(random_tokens(8, 2))
    turn = torch.tensor([random_tokens(3, 3)])

    def talk(between: bool) -> list[Tensor]:
        with dynts.compress(model, "window", CONFIG):
            output = model.generate(**first, max_new_tokens=30, **OPTIONS)
            if between:
                model.generate(**second, max_new_tokens=30, **OPTIONS)
            ids = torch.cat([output.sequences, turn], dim=1)
            more = {"attention_mask": torch.ones_like(ids), CACHE: output[CACHE]}
            return list(model.generate(ids, **more, max_new_tokens=20, **OPTIONS).logits)

    for one, other in zip(talk(between=True), talk(between=False), strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def plain_because(caplog: pytest.LogCaptureFixture, model: Any, why: str, **options: Any) -> None:
    """A call gives what it gives without recorded steps, and one line says why."""
    batch = padded(random_tokens(5, 1), random_tokens(9, 2))

    def answer(compile: bool | None) -> Any:
        with dynts.compress(model, "window", CONFIG, compile=compile):
            return model.generate(**batch, max_new_tokens=30, **OPTIONS, **options).logits

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for one, other in zip(answer(compile=None), answer(compile=False), strict=True):
                torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
    lines = [record.message for record in caplog.records if "not recorded" in record.message]
    assert len(lines) == bool(why)
    assert all(why in line for line in lines)


def test_what_cannot_be_recorded_is_plain(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    heard: list[None] = []
    hook = model.get_decoder().layers[1].register_forward_hook(lambda *_: heard.append(None))
    plain_because(caplog, model, "hooks")
    hook.remove()
    assert len(heard) == 4 * 30
    caplog.clear()
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    plain_because(caplog, model, "mixtures of experts")
    monkeypatch.undo()
    assert not recorder.times


def test_steps_that_give_more_or_fail_to_be_recorded_are_plain(
    caplog: pytest.LogCaptureFixture, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_because(caplog, tiny_model("llama"), "hidden_states", output_hidden_states=True)
    caplog.clear()

    def refuse(run: Any, running: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(recorded.RECORDERS, "cpu", refuse)
    plain_because(caplog, tiny_model("llama"), "not permitted")
    caplog.clear()

    def wrong(run: Any, running: Any) -> Any:
        output = run(running)
        output.hidden.mul_(1.01)
        return lambda running: output

    monkeypatch.setitem(recorded.RECORDERS, "cpu", wrong)
    plain_because(caplog, tiny_model("llama"), "differs from the plain one")


def test_nobody_records_where_it_is_not_wanted(
    caplog: pytest.LogCaptureFixture, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(recorded.PLAIN, "1")
    model = tiny_model("llama")
    forward = model.get_decoder().forward
    plain_because(caplog, model, "")
    assert not recorder.times
    assert model.get_decoder().forward == forward
    assert "forward" not in vars(model.get_decoder())


def fail(*_: Any, **__: Any) -> None:
    """Take the place of something that fails."""
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("dynts", "observe_hidden"),
        ("dynts", "score"),
        ("h2o, native", "remember_attention"),
        ("h2o, native", "score"),
        ("snapkv", "remember_attention"),
    ],
)
@torch.no_grad()
def test_a_recorded_step_that_fails_leaves_no_trace(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, name: str, failing: str
) -> None:
    model, method = tiny_model("gemma3"), CASES[name].method
    batch = padded(random_tokens(3, 1), random_tokens(8, 2))

    def talk(fails: bool) -> tuple[list[Tensor], int]:
        logits, failed = [], 0
        with dynts.compress(model, method, CONFIG, predictor_for(method)) as session:
            cache, mask, ids = session.new_cache(), batch["attention_mask"], batch["input_ids"]
            for _ in range(40):
                kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, CACHE: cache}
                if fails:
                    with monkeypatch.context() as patch:
                        patch.setattr(type(cache.method), failing, fail)
                        patch.setattr(type(cache.compactor), "write", fail)  # steps that do not ask for this fail later
                        with pytest.raises(RuntimeError, match="out of memory"):
                            model(**kwargs)
                    failed += 1
                logits.append(model(**kwargs).logits[:, -1])
                cache.check_integrity()
                ids = logits[-1].argmax(-1, keepdim=True)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return logits, failed

    expected, _ = talk(fails=False)
    ours, failed = talk(fails=True)
    assert failed == 40
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


class HostSees(TorchDispatchMode):
    """Counts what makes the host wait for a device, or send it something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(function) for word in ("_local_scalar", "nonzero", "lift_fresh", "is_nonzero", "equal")):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["dynts", "dynts, native", "h2o", "snapkv", "rkv"])
@pytest.mark.parametrize("lengths_differ", [False, True])
@torch.no_grad()
def test_a_step_never_waits_for_the_device(recorder: Recorder, name: str, lengths_differ: bool) -> None:
    model, method = tiny_model("llama"), CASES[name].method
    rows = padded(random_tokens(4 if lengths_differ else 8, 1), random_tokens(8, 2))
    for compile in (None, False):
        with dynts.compress(model, method, CONFIG, predictor_for(method), compile=compile) as session:
            cache, token = session.new_cache(), torch.tensor([[9], [10]])
            model(**rows, **{CACHE: cache})
            for _ in range(3):  # what is looked up once is looked up
                model(input_ids=token, **{CACHE: cache})
            with HostSees() as host:
                for _ in range(5):
                    model(input_ids=token, **{CACHE: cache})
            assert host.found == []
            assert not cache.stats.compactions
            with HostSees() as host:
                while not cache.stats.compactions:
                    model(input_ids=token, **{CACHE: cache})
            waits = [found for found in host.found if "lift_fresh" not in found]
            assert len(waits) <= 1, "a compaction asks once, which slots move at all"
