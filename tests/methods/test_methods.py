"""The methods by themselves: settings, scores by hand, and what they look at."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.masking_utils import create_causal_mask, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import dynts
from decoding import TOLERANCE, padded, random_predictor, random_tokens
from dynts.cache.interface import CACHE
from dynts.cache.slots import History, Slots
from dynts.cache.step import Turn
from dynts.chat.markers import ThinkMarkers
from dynts.chat.scanner import ThinkScanner
from dynts.decode.forward import step_mask
from dynts.errors import DyntsError
from dynts.methods import (
    H2O,
    METHODS,
    RKV,
    DynTS,
    DynTSBottom,
    DynTSRandom,
    Method,
    QuestionWindow,
    SepLLM,
    SnapKV,
    StreamingLLM,
    Surroundings,
    Window,
    resolve_method,
    rkv,
)
from dynts.methods import dynts as dynts_method
from dynts.methods.dynts import random_scores
from dynts.methods.rkv import redundancy
from dynts.methods.sepllm import separator_ids
from dynts.methods.variants import scored_variants
from method_table import TABLE
from tiny import tiny_model

CONFIG = dynts.CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}
SURROUNDINGS = Surroundings(layers=[0, 1], kv_heads=2, local_window=5)


def slots_of(tokens: list[int], question: int, dead: int = 0, markers: ThinkMarkers | None = None) -> Slots:
    """One row that has evicted nothing; its first `dead` columns are padding."""
    history = History(markers and ThinkScanner.of_ids(markers))
    count = len(tokens)
    ids, positions = torch.tensor([tokens]), (torch.arange(count) - dead).clamp(min=0)[None]
    history.append(ids[:, :question], positions[:, :question], asked=True)
    history.append(ids[:, question:], positions[:, question:], asked=False)
    turns = (Turn(0, question, (question,)),)
    return Slots(torch.arange(count).view(1, 1, 1, -1), torch.arange(count)[None] >= dead, history, turns, [], [])


# --- settings


@pytest.mark.quick
def test_every_method_has_its_documented_defaults() -> None:
    assert list(TABLE) == list(METHODS)
    for name, row in TABLE.items():
        method = resolve_method(name)
        assert type(method) is METHODS[name]
        assert asdict(method) == row.defaults  # type: ignore[call-overload]


@pytest.mark.quick
def test_a_method_object_is_taken_as_it_is_and_settings_show_in_its_text() -> None:
    method = SnapKV(granularity="native", window=16, kernel=5)
    assert resolve_method(method) is method
    assert repr(method) == "SnapKV(granularity='native', protect_question=False, window=16, kernel=5)"
    assert Window() == Window()
    assert Window(protect_question=True) != Window()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (SnapKV, {"window": 0}, ["window", "at least 1", "0"]),
        (SnapKV, {"window": -3}, ["window", "-3"]),
        (SnapKV, {"window": 2.5}, ["window", "2.5"]),
        (SnapKV, {"kernel": 4}, ["kernel", "odd", "4"]),
        (SnapKV, {"kernel": 0}, ["kernel", "0"]),
        (SnapKV, {"kernel": -1}, ["kernel", "-1"]),
        (SnapKV, {"kernel": 3.0}, ["kernel", "3.0"]),
        (RKV, {"window": 0}, ["window", "0"]),
        (RKV, {"window": "8"}, ["window", "'8'"]),
        (RKV, {"kernel": 2}, ["kernel", "2"]),
        (RKV, {"mix": -0.1}, ["mix", "-0.1"]),
        (RKV, {"mix": 1.1}, ["mix", "1.1"]),
        (RKV, {"mix": math.nan}, ["mix", "nan"]),
        (RKV, {"mix": "a"}, ["mix", "'a'"]),
        (RKV, {"granularity": "head"}, ["granularity", "'head'", "native"]),
        (H2O, {"granularity": ""}, ["granularity", "''", "shared"]),
        (H2O, {"granularity": None}, ["granularity", "None"]),
        (DynTS, {"granularity": "head"}, ["granularity", "'head'", "native"]),
        (StreamingLLM, {"n_sink": -1}, ["n_sink", "-1"]),
        (StreamingLLM, {"n_sink": 2.5}, ["n_sink", "2.5"]),
        (SepLLM, {"n_initial": -1}, ["n_initial", "-1"]),
        (SepLLM, {"separators": (".",)}, ["separators", "'.'"]),
        (DynTSRandom, {"seed": 1.5}, ["seed", "1.5"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_bad_settings_are_named(method: type[Method], settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DyntsError) as caught:
        method(**settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("method", [DynTS(), DynTSBottom()])
def test_a_predictor_is_asked_for_at_the_start(method: Method) -> None:
    with pytest.raises(DyntsError, match=f"{type(method).__name__} needs an importance predictor"):
        method.start(SURROUNDINGS)
    started = method.start(Surroundings([0], 1, 5, predictor=random_predictor()))
    assert started is not method
    assert "predictor" not in vars(method)


@pytest.mark.quick
@pytest.mark.parametrize("method", [DynTS(granularity="native"), DynTSBottom(granularity="native")])
@pytest.mark.parametrize("predictor", [random_predictor(), lambda hidden: hidden.sum(dim=-1)])
def test_sets_for_each_head_need_scores_for_each_head(method: Method, predictor: Any) -> None:
    with pytest.raises(DyntsError, match=r"one score for all layers and heads.*--label answer-native.*'shared'"):
        dynts.compress(tiny_model("llama"), method, CONFIG, predictor)


@pytest.mark.quick
def test_all_tokens_are_scored_by_a_predictor_that_has_seen_them() -> None:
    thinking, every = random_predictor(all_tokens=False), random_predictor()
    with pytest.raises(DyntsError, match=r"trained on thinking tokens only.*--all-tokens.*'dynts'"):
        dynts.compress(tiny_model("llama"), "dynts-all", CONFIG, thinking)
    configs = {"thinking": thinking.config, "every": every.config}
    found = scored_variants("dynts-all", ["shared", "native"], configs, protect_question=True)
    assert [(each, method.protect_question) for method, each in found] == [("every", True)]
    assert not scored_variants("dynts-all", ["shared"], configs, protect_question=False)[0][0].protect_question
    with pytest.raises(DyntsError, match=r"'dynts-all' scores question and answer tokens.*--all-tokens"):
        scored_variants("dynts-all", ["shared"], {"thinking": thinking.config}, protect_question=False)


@pytest.mark.quick
def test_questions_are_scored_where_all_tokens_compete() -> None:
    model, predictor = tiny_model("llama"), random_predictor()
    with dynts.compress(model, "dynts-all", CONFIG, predictor) as session:
        watch = Watch(model, predictor)
        model.generate(torch.tensor([random_tokens(8, seed) for seed in range(2)]), **GREEDY)
    counts = [16 - 9 * (index > 0) for index in range(len(session.stats[0].compactions))]
    # the question at once, generated tokens when a compaction is due
    assert [tuple(scored.shape) for scored in watch.scored] == [(2 * count, 32) for count in (8, *counts)]
    assert torch.equal(watch.scored[0].view(2, 8, 32), watch.hidden[0])


@pytest.mark.quick
def test_a_predictor_of_every_head_serves_both_granularities() -> None:
    configs = {"one": random_predictor().config, "each": random_predictor(native=True).config}
    for name, protect in (("dynts", False), ("dynts-bottom", True)):
        found = scored_variants(name, ["shared", "native"], configs, protect_question=protect)
        assert [(method.granularity, each) for method, each in found] == [
            ("shared", "one"),
            ("shared", "each"),
            ("native", "each"),
        ]
        native = scored_variants(name, ["native"], {"each": configs["each"]}, protect_question=protect)
        assert [(method.granularity, each) for method, each in native] == [("native", "each")]
        with pytest.raises(DyntsError, match="in granularity native: the predictor one has one score for all layers"):
            scored_variants(name, ["native"], configs, protect_question=protect)
    assert [each for _, each in scored_variants("rkv", ["shared", "native"], configs, protect_question=True)] == [
        None
    ] * 2


# --- scores by hand


@pytest.mark.quick
def test_position_scores() -> None:
    slots = slots_of([0, 0, 9, 9, 9, 9, 9], question=4, dead=2)
    assert slots.positions.flatten().tolist() == [-1, -1, 0, 1, 2, 3, 4]
    assert Window().start(SURROUNDINGS).score(slots).flatten().tolist() == [-1, -1, 0, 1, 2, 3, 4]
    assert QuestionWindow().start(SURROUNDINGS).score(slots).flatten()[2:].tolist() == [0, 1, 2, 3, 4]
    sinks = StreamingLLM(n_sink=2).start(SURROUNDINGS).score(slots).flatten()[2:].tolist()
    assert sinks == [math.inf, math.inf, 2, 3, 4]
    none = StreamingLLM(n_sink=0).start(SURROUNDINGS).score(slots).flatten()[2:].tolist()
    assert none == [0, 1, 2, 3, 4]
    assert slots.question.flatten().tolist() == [False, False, True, True, False, False, False]


@pytest.mark.quick
def test_separator_scores() -> None:
    tokens = [50, 50, 11, 50, 10, 50, 11, 50]
    scores = SepLLM(separators=(10, 11), n_initial=2).start(SURROUNDINGS).score(slots_of(tokens, question=1))
    order = scores.flatten().argsort(descending=True).tolist()
    # initial tokens, then separators, then the rest, each from the latest back
    assert order == [1, 0, 6, 4, 2, 7, 5, 3]
    # without separators the latest stay
    scores = SepLLM(separators=(), n_initial=0).start(SURROUNDINGS).score(slots_of(tokens, question=1))
    assert scores.flatten().argsort(descending=True).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.quick
def test_separators_of_a_tokenizer() -> None:
    separators = [".", ",", "?", "!", ";", ":", "\n", "\n\n", " .", ". ", ".\n", " \n"]
    others = ["a", "a.", ".a", "..", "?!", " ", "\t", "-", "[UNK]", "[PAD]", "</s>"]
    words = ["<s>", *separators, *others]
    vocabulary = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=AddedToken("[PAD]"),
        unk_token="[UNK]",
    )
    assert [words[token] for token in separator_ids(tokenizer)] == ["<s>", *separators]
    started = SepLLM().start(Surroundings([0], 1, 5, tokenizer=tokenizer))
    assert started.separators == tuple(range(len(separators) + 1))
    with pytest.raises(DyntsError, match=r"tokenizer=.*separators="):
        SepLLM().start(SURROUNDINGS)


@pytest.mark.quick
@pytest.mark.parametrize("sets", [(), (2, 3)])
def test_random_scores_depend_on_seed_and_position_only(sets: tuple[int, ...]) -> None:
    scores = random_scores(3, 500, *sets)
    assert torch.equal(random_scores(3, 500, *sets), scores)
    for count in (1, 2, 7, 15, 16, 17, 64, 499):
        assert torch.equal(random_scores(3, count, *sets), scores[:count])
    assert not torch.equal(random_scores(4, 500, *sets), scores)
    assert scores.unique().numel() > 0.98 * scores.numel()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(random_scores(3, 500, *sets), scores)
    torch.set_rng_state(state)


@pytest.mark.quick
def test_random_choices_are_the_same_alone_and_in_a_batch() -> None:
    model = tiny_model("llama")
    row = random_tokens(6, 1)
    with dynts.compress(model, DynTSRandom(seed=2), CONFIG, record=True) as session:
        model.generate(torch.tensor([row]), **GREEDY)
        alone = [positions[0].tolist() for positions in session.kept_positions]
        session.kept_positions.clear()
        model.generate(**padded(random_tokens(6, 2), row), **GREEDY)
    assert [positions[1].tolist() for positions in session.kept_positions] == alone


@pytest.mark.quick
def test_pooling_takes_the_maximum_nearby() -> None:
    weights = torch.tensor([[[0.0, 1.0, 0.0, 0.0, 0.0, 5.0, 0.0]]])
    assert SnapKV(kernel=3).pool(weights).flatten().tolist() == [1, 1, 1, 0, 5, 5, 5]
    assert torch.equal(SnapKV(kernel=1).pool(weights), weights)


@pytest.mark.quick
def test_the_observation_window_lies_within_the_local_window() -> None:
    assert SnapKV().start(Surroundings([0], 1, local_window=9)).used_window == 9
    assert SnapKV().start(Surroundings([0], 1, local_window=100)).used_window == 32
    assert RKV().start(Surroundings([0], 1, local_window=100)).used_window == 8
    assert RKV().start(Surroundings([0], 1, local_window=0)).used_window == 1


def redundancy_by_definition(keys: Tensor, live: Tensor) -> Tensor:
    """R of one head: keys [slots, size], live [slots]."""
    slots = [slot for slot, alive in enumerate(live.tolist()) if alive]
    total = torch.zeros(len(live))
    for i in slots:
        similarity = {j: float(torch.cosine_similarity(keys[i], keys[j], dim=0)) if i != j else 0.0 for j in slots}
        above = [j for j in slots if similarity[j] > 0.5]
        for j in slots:
            total[j] += 0.0 if above and j == above[-1] else similarity[j]
    result = torch.zeros(len(live))
    result[slots] = (total[slots] / len(slots)).softmax(dim=0)
    return result


def keys_that_repeat(batch: int, heads: int, count: int, size: int) -> Tensor:
    """Groups of near copies, so that keys are exempted: [batch, heads, count, size]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(batch, heads, -(-count // 5), size, generator=generator)
    copies = centres.repeat(1, 1, 5, 1)[:, :, :count]
    return copies + 0.3 * torch.randn(batch, heads, count, size, generator=generator)


@pytest.mark.quick
@pytest.mark.parametrize("piece", [1, 3000, 1 << 24])
@pytest.mark.parametrize("count", [20, 70])
def test_redundancy_in_pieces(monkeypatch: pytest.MonkeyPatch, piece: int, count: int) -> None:
    keys = keys_that_repeat(2, 2, count, 6)
    live = torch.arange(count) >= torch.tensor([[0], [6]])
    monkeypatch.setattr(rkv, "piece_bytes", lambda _: piece)
    result = redundancy(keys, live)
    for row in range(2):
        for head in range(2):
            expected = redundancy_by_definition(keys[row, head], live[row])
            torch.testing.assert_close(result[row, head], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_redundancy_equals_the_formula_in_float64(dtype: torch.dtype) -> None:
    """In half precision the similarities, which decide who is exempted, are rounded; nothing else is."""
    count = 300
    keys = keys_that_repeat(1, 3, count, 16).to(dtype)
    unit = torch.nn.functional.normalize(keys[0].double(), dim=-1)
    similarity = unit @ unit.mT
    rounded = unit.to(dtype).double() @ unit.to(dtype).double().mT
    for matrix in (similarity, rounded):
        matrix.diagonal(dim1=1, dim2=2).zero_()
    last = torch.where(rounded.to(dtype) > rkv.SIMILAR, torch.arange(count), -1).amax(dim=-1)
    assert (last >= 0).any()
    for head, row in (last >= 0).nonzero().tolist():
        similarity[head, row, last[head, row]] = 0.0
    expected = similarity.mean(dim=1).softmax(dim=-1)
    result = redundancy(keys, torch.ones(1, count, dtype=torch.bool))[0]
    assert result.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(result.double(), expected, atol=0, rtol=tolerance)


@given(st.integers(1, 4000), st.integers(2, 150), st.integers(0, 1 << 30))
def test_redundancy_does_not_depend_on_the_pieces(piece: int, count: int, seed: int) -> None:
    keys = torch.randn(1, 2, count, 3, generator=torch.Generator().manual_seed(seed))
    live = torch.ones(1, count, dtype=torch.bool)
    whole = redundancy(keys, live)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rkv, "piece_bytes", lambda _: piece)
        torch.testing.assert_close(redundancy(keys, live), whole, atol=1e-6, rtol=1e-5)


# --- what the predictor is shown


class Watch:
    """What the decoder put out and what the predictor was given, in order."""

    def __init__(self, model: Any, predictor: Any) -> None:
        self.hidden: list[Tensor] = []
        self.scored: list[Tensor] = []
        self.handles = [
            model.get_decoder().register_forward_hook(lambda *call: self.hidden.append(call[2][0].detach().clone())),
            predictor.register_forward_hook(lambda *call: self.scored.append(call[1][0].detach().clone())),
        ]


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "dynts-bottom"])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_generated_token_is_scored_once_and_no_question(name: str, rows: int) -> None:
    model, predictor = tiny_model("llama"), random_predictor()
    with dynts.compress(model, name, CONFIG, predictor) as session:
        watch = Watch(model, predictor)
        model.generate(torch.tensor([random_tokens(8, seed) for seed in range(rows)]), **GREEDY)
    steps = [event.step for event in session.stats[0].compactions]
    # 24 - 8 tokens until the first compaction, 7 from one to the next, all rows in one call
    assert steps == [16, 23, 30, 37]
    assert [tuple(scored.shape) for scored in watch.scored] == [(rows * count, 32) for count in (16, 7, 7, 7)]
    assert watch.hidden[0].shape[1] == 8
    generated = torch.cat(watch.hidden[1:], dim=1)
    given = torch.cat([scored.view(rows, -1, 32) for scored in watch.scored], dim=1)
    # tokens after the last compaction need no score
    assert torch.equal(given, generated[:, :37])
    question = {tuple(hidden) for hidden in watch.hidden[0].flatten(0, 1).tolist()}
    assert not question & {tuple(hidden) for hidden in given.flatten(0, 1).tolist()}


@pytest.mark.quick
def test_no_question_is_scored_in_later_turns_or_chunks() -> None:
    model, predictor = tiny_model("llama"), random_predictor()
    with dynts.compress(model, "dynts", CONFIG, predictor):
        watch = Watch(model, predictor)
        first = model.generate(
            torch.tensor([random_tokens(3, 1)]),
            prefill_chunk_size=1,
            do_sample=False,
            max_new_tokens=12,
            return_dict_in_generate=True,
        )
        ids = torch.cat([first.sequences, torch.tensor([random_tokens(4, 2)])], dim=1)
        model.generate(ids, **{CACHE: first[CACHE]}, do_sample=False, max_new_tokens=30)
    hidden, scored = torch.cat(watch.hidden, dim=1)[0].tolist(), torch.cat(watch.scored).tolist()
    # 3 question tokens, 11 generated ones fed back, the 12th and 4 more as the new turn, 29 generated ones
    question = [*hidden[:3], *hidden[14:19]]
    assert not [state for state in scored if state in question]
    generated = [*hidden[3:14], *hidden[19:]]
    assert scored == generated[: len(scored)]
    assert len(scored) > 30


@pytest.mark.quick
def test_large_batches_of_hidden_states_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, predictor = tiny_model("llama"), random_predictor()
    ids = torch.tensor([random_tokens(8, seed) for seed in range(2)])
    with dynts.compress(model, "dynts", CONFIG, predictor, record=True) as session:
        expected = model.generate(ids, **GREEDY)
        kept = [positions.tolist() for positions in session.kept_positions]
        session.kept_positions.clear()
        monkeypatch.setattr(dynts_method, "piece_bytes", lambda _: 5 * 8 * model.config.hidden_size)
        watch = Watch(model, predictor)
        assert torch.equal(model.generate(ids, **GREEDY), expected)
    assert [positions.tolist() for positions in session.kept_positions] == kept
    assert max(len(scored) for scored in watch.scored) == 5
    assert sum(len(scored) for scored in watch.scored) == 2 * 37


@pytest.mark.quick
def test_bottom_reverses_the_order_in_every_head() -> None:
    model, predictor = tiny_model("llama"), random_predictor(native=True)
    prompt = torch.tensor([random_tokens(8, 1)])
    kept = {}
    for method in (DynTS(granularity="native"), DynTSBottom(granularity="native")):
        with dynts.compress(model, method, CONFIG, predictor, record=True) as session:
            model.generate(prompt, **GREEDY)
        kept[type(method)] = session.kept_positions[0]
    top, bottom = kept[DynTS], kept[DynTSBottom]
    assert top.shape == bottom.shape == (2, 1, 2, CONFIG.kept_tokens(8))
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        question_and_recent = {*range(8), *range(24 - CONFIG.local_window, 24)}
        chosen = [set(positions[layer, 0, head].tolist()) - question_and_recent for positions in (top, bottom)]
        assert chosen[0]
        assert not chosen[0] & chosen[1]
    # heads do not all choose the same
    assert len({tuple(top[layer, 0, head].tolist()) for layer in range(2) for head in range(2)}) > 1


@pytest.mark.quick
def test_bottom_keeps_what_dynts_evicts() -> None:
    predictor = random_predictor()
    slots = slots_of([9] * 12, question=2)
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
    scores = []
    for method in (DynTS(), DynTSBottom()):
        started = method.start(Surroundings([0], 1, 2, predictor=predictor))
        started.observe_hidden(hidden[:, :2], generated=False)
        for token in range(2, 12):
            started.observe_hidden(hidden[:, token : token + 1], generated=True)
        with torch.no_grad():
            scores.append(started.score(slots).flatten())
    assert torch.equal(scores[0], -scores[1])
    with torch.no_grad():
        torch.testing.assert_close(scores[0][2:], predictor(hidden[0, 2:]))


# --- FlashAttention, whose kernels need no mask but must know which slots are dead


def flash_model(architecture: str = "llama") -> Any:
    """A tiny model that believes it runs FlashAttention."""
    model = tiny_model(architecture)
    model.config._attn_implementation_internal = "flash_attention_2"
    return model


@pytest.mark.quick
def test_flash_masks_are_the_live_slots() -> None:
    model = tiny_model("llama")
    with dynts.compress(model, "window", CONFIG):
        out = model.generate(**padded(random_tokens(3, 1), random_tokens(8, 2)), return_dict_in_generate=True, **GREEDY)
    cache = out[CACHE]
    model.config._attn_implementation_internal = "flash_attention_2"
    width = cache.occupancy.length + 1
    assert min(cache.lengths) < cache.occupancy.length
    shown = cache.plan(2, 1).live
    assert shown is not None
    mask = step_mask(model, shown)
    assert mask.dtype == torch.bool
    assert mask.shape == (2, width)
    # each row's own tokens and the new one
    assert mask.sum(dim=1).tolist() == [length + 1 for length in cache.lengths]
    assert bool((mask[:, 1:] <= mask[:, :-1]).all())
    kept = flash_attention_mask(batch_size=2, q_length=1, kv_length=width, q_offset=width - 1, attention_mask=mask)
    assert torch.equal(kept, mask)
    # the same through the function that the decoder calls
    kept = create_causal_mask(
        config=model.config,
        inputs_embeds=torch.empty(2, 1, 32),
        attention_mask=mask,
        **{CACHE: cache},
        position_ids=None,
    )
    assert torch.equal(kept.bool(), mask)


def emulated_kernel(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What FlashAttention computes with a 2D mask: causal to the last key, hidden keys left out."""
    groups, rows, count = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    window = kwargs.get("sliding_window") or count
    last = torch.arange(rows)[:, None] + count - rows
    shown = (torch.arange(count) <= last) & (torch.arange(count) > last - window)
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], count)
        shown = shown & attention_mask[:, None, None].bool()
    logits = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * kwargs["scaling"]
    weights = logits.masked_fill(~shown, -1e9).softmax(dim=-1)
    return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2), None


@pytest.mark.quick
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("name", ["full", "dynts", "streaming-llm", "keydiff", "vase"])
def test_flash_attention_decodes_as_sdpa_does(monkeypatch: pytest.MonkeyPatch, architecture: str, name: str) -> None:
    inputs = padded(random_tokens(3, 1), random_tokens(8, 2), random_tokens(6, 3))
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    calls = []

    def kernel(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        calls.append(args)
        return emulated_kernel(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", kernel)
    results = []
    for model in (tiny_model(architecture), flash_model(architecture)):
        with dynts.compress(model, name, CONFIG, random_predictor(), record=True) as session:
            results.append((model.generate(**inputs, **options), session.kept_positions))
    (sdpa, sdpa_kept), (flash, flash_kept) = results
    assert len(calls) == 40 * model.config.num_hidden_layers
    assert torch.equal(flash.sequences, sdpa.sequences)
    assert [positions.tolist() for positions in flash_kept] == [positions.tolist() for positions in sdpa_kept]
    torch.testing.assert_close(torch.stack(flash.logits), torch.stack(sdpa.logits), atol=TOLERANCE, rtol=0)
