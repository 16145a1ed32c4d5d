"""`compress(compile=True)`: the same tokens as without, at one shape that is compiled once."""

import gc
import shutil
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AttentionInterface

import dynts
from decoding import TOLERANCE, padded, random_predictor, random_tokens
from dynts.cache.interface import CACHE
from dynts.cache.method import Granularity
from dynts.errors import UnsupportedError
from dynts.methods import DynTS
from dynts.models.attention import grouped_step, observed_attention
from dynts.models.lengths import RowLengths
from joined_rows import check_joined, run_joining, some_stream
from tiny import tiny_model

CONFIG = dynts.CompressionConfig(budget=40, local_window=8, retention_ratio=0.4)
OPTIONS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler on CPUs"
)


def check_same(ours: Any, expected: Any) -> None:
    """Same tokens, and logits that differ by no more than rounding."""
    assert torch.equal(ours.sequences, expected.sequences)
    for one, other in zip(ours.logits, expected.logits, strict=True):
        assert (one - other).abs().max() < TOLERANCE


@needs_compiler
@pytest.mark.parametrize(
    ("architecture", "attention", "granularity"),
    # biases in one, norms of queries and keys in the other; Llama, which has neither, in the next test
    [("qwen2", "eager", "shared"), ("qwen3", "sdpa", "native")],
)
def test_compiled_steps_equal_plain_ones(architecture: str, attention: str, granularity: Granularity) -> None:
    model = tiny_model(architecture, attn_implementation=attention)
    even, ragged = (
        padded(random_tokens(9, 1), random_tokens(9, 2)),
        padded(random_tokens(6, 3), random_tokens(10, 4)),
    )
    turn = torch.tensor([random_tokens(5, 5), random_tokens(5, 6)])
    forward = model.get_decoder().forward
    method, predictor = DynTS(granularity=granularity), random_predictor(native=granularity == "native")

    def talk(compile: bool) -> tuple[list[Any], dynts.Session]:
        with dynts.compress(model, method, CONFIG, predictor, record=True, compile=compile) as session:
            first = model.generate(**even, max_new_tokens=90, **OPTIONS)
            # neither compactions, nor other rows, nor another conversation or turn change the shape of a step
            torch.compiler.set_stance("fail_on_recompile" if compile else "default")
            try:
                second = model.generate(**ragged, max_new_tokens=90, **OPTIONS)
                ids = torch.cat([first.sequences, turn], dim=1)
                more = {"attention_mask": torch.ones_like(ids), CACHE: first[CACHE]}
                third = model.generate(ids, **more, max_new_tokens=30, **OPTIONS)
            finally:
                torch.compiler.set_stance("default")
        return [first, second, third], session

    expected, plain = talk(compile=False)
    ours, compiled = talk(compile=True)
    for one, other in zip(ours, expected, strict=True):
        check_same(one, other)
    assert compiled.stats == plain.stats
    assert all(stats.compactions for stats in compiled.stats)
    assert len(compiled.kept_positions) == len(plain.kept_positions)
    for one, other in zip(compiled.kept_positions, plain.kept_positions, strict=True):
        assert torch.equal(one, other)
    assert model.get_decoder().forward == forward
    assert "forward" not in vars(model.get_decoder())
    assert "forward" not in vars(model.get_output_embeddings())


@needs_compiler
def test_compiled_steps_attend_by_lengths_where_a_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is one by formula; on a GPU it is an operator of torch."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, rows: RowLengths, scaling: float | None) -> Tensor:
        assert scaling is not None
        shown = torch.arange(key.shape[2]) < rows.lengths[:, None]
        grouped = query.view(len(query), key.shape[1], -1, query.shape[3])
        logits = (grouped @ key.transpose(2, 3) * scaling).masked_fill(~shown[:, None, None], -torch.inf)
        zero = rows.starts(key.shape[2])[0]  # made once a step, while it is traced
        return (logits.softmax(dim=-1) @ value + zero).view_as(query)

    model, batch = tiny_model("llama", num_hidden_layers=2), padded(random_tokens(6, 3), random_tokens(10, 4))
    options = {**OPTIONS, "max_new_tokens": 45}
    with dynts.compress(model, "window", CONFIG):
        expected = model.generate(**batch, **options)
    monkeypatch.setattr("dynts.cache.layer.stores_slots_first", lambda device: True)
    monkeypatch.setattr("dynts.models.attention.kernel_by_lengths", lambda *_: kernel)
    monkeypatch.setattr("dynts.models.attention.grouped_step", None)
    with dynts.compress(model, "window", CONFIG, compile=True):
        check_same(model.generate(**batch, **options), expected)
        torch.compiler.set_stance("fail_on_recompile")
        try:
            check_same(model.generate(**batch, **options), expected)
        finally:
            torch.compiler.set_stance("default")


@needs_compiler
def test_weights_that_changed_since_an_earlier_context_count(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    batch = padded(random_tokens(9, 1))

    def answer(compile: bool) -> Any:
        with dynts.compress(model, "window", CONFIG, compile=compile):
            return model.generate(**batch, max_new_tokens=5, **OPTIONS)

    before = live_bytes()
    check_same(answer(compile=True), answer(compile=False))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    check_same(answer(compile=True), answer(compile=False))
    assert capfd.readouterr().err == "", "what the compiler tries is nothing for a user's terminal"
    # nor do the packed weights of a context stay when it ends
    assert live_bytes() - before < sum(weight.nbytes for weight in model.parameters()) / 2


def live_bytes() -> int:
    """Bytes of all tensors."""
    gc.collect()
    return sum(found.nbytes for found in gc.get_objects() if type(found) is Tensor)


def test_prompts_in_chunks_of_one_token_at_a_fixed_shape() -> None:
    """A prompt's chunk of one token is no decode step: nothing is compiled for it."""
    model = tiny_model("llama")
    batch = padded(random_tokens(5, 4), random_tokens(7, 5))
    options = {**OPTIONS, "max_new_tokens": 1}
    with dynts.compress(model, "dynts", CONFIG, random_predictor()):
        expected = model.generate(**batch, **options)
    with dynts.compress(model, "dynts", CONFIG, random_predictor(), compile=True):
        torch.compiler.set_stance("force_eager")
        try:
            check_same(model.generate(**batch, prefill_chunk_size=1, **options), expected)
        finally:
            torch.compiler.set_stance("default")


@pytest.mark.parametrize(
    ("architecture", "method", "message"),
    [("llama", "full", "budget"), ("llama", "h2o", "looks at"), ("gemma3", "window", "sliding")],
)
def test_what_has_no_fixed_shape_is_refused(architecture: str, method: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        dynts.compress(tiny_model(architecture), method, CONFIG, compile=True)


def test_flash_attention_is_refused() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="flash_attention_2"):
        dynts.compress(model, "window", CONFIG, compile=True)


@pytest.mark.quick
@pytest.mark.parametrize("kwargs", [{}, {"softcap": 5.0}, {"dropout": 0.1}], ids=str)
def test_what_grouped_steps_do_not_compute_is_left_to_the_model(
    monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, Any]
) -> None:
    model = tiny_model("llama")
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    grouped: list[None] = []
    monkeypatch.setattr("dynts.models.attention.grouped_step", lambda *_: grouped.append(None))
    with observed_attention(model):
        attention = AttentionInterface()[model.config._attn_implementation]
        with suppress(ValueError):  # recent transformers refuse a soft cap with sdpa
            attention(model.get_decoder().layers[0].self_attn, query, key, key, None, scaling=0.3, **kwargs)
    assert bool(grouped) == (kwargs == {})


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 2), (9, 3), (4, 4), (8, 1)])
@pytest.mark.parametrize("masked", ["no", "bool", "additive"])
@pytest.mark.parametrize("compiling", [False, True], ids=["sdpa", "spelled out"])
def test_grouped_attention_equals_expanded_heads(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, heads: int, kv_heads: int, masked: str, compiling: bool
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    generator = torch.Generator().manual_seed(heads)
    batch, keys, size = 3, 37, 16
    query = torch.randn(batch, heads, 1, size, generator=generator).to(dtype)
    # keys and values are the first slots of a longer tensor, as in the cache
    key, value = (torch.randn(batch, kv_heads, 50, size, generator=generator).to(dtype)[:, :, :keys] for _ in range(2))
    shown = torch.arange(keys) < torch.tensor([37, 20, 1])[:, None]
    mask = {
        "no": None,
        "bool": shown[:, None, None],
        "additive": torch.where(shown, 0.0, -1e4)[:, None, None].to(dtype),
    }
    ours, weights = grouped_step(query, key, value, mask[masked], scaling=0.3)
    expanded_key, expanded_value = (part.double().repeat_interleave(heads // kv_heads, dim=1) for part in (key, value))
    logits = (query.double() @ expanded_key.transpose(2, 3)) * 0.3
    if masked != "no":
        logits = logits.masked_fill(~shown[:, None, None], float("-inf"))
    expected = (logits.softmax(dim=-1) @ expanded_value).transpose(1, 2)
    assert weights is None
    assert ours.shape == (batch, 1, heads, size)
    assert (ours.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)


@needs_compiler
def test_rows_that_join_and_leave_share_one_compiled_shape() -> None:
    model, stream = tiny_model("llama"), some_stream()
    counters.clear()
    batch = run_joining(model, "dynts", stream, rows=3, prefill_tokens=8, compile=True)
    assert set(batch.seen) == {3}
    assert set(batch.empty) == {0, 1, 2}
    assert counters["stats"]["unique_graphs"] == 2, "one of the decoder, one of the head"
    for each in stream:
        check_joined(model, "dynts", each)
