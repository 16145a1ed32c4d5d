"""The public interface: what a user can count on inside and after a `compress` context."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

import dynts
from decoding import TOLERANCE, footprint, padded, random_predictor, random_tokens, word_tokenizer
from dynts.cache.interface import CACHE
from dynts.methods import METHODS, DynTSRandom
from method_table import named
from tiny import SLIDING_WINDOW, tiny_model

CONFIG = dynts.CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
ROOMY = dynts.CompressionConfig(budget=200, local_window=5, retention_ratio=0.4)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.tensor([random_tokens(8, seed=1)])


def compress(
    model: PreTrainedModel,
    name: str = "dynts",
    config: dynts.CompressionConfig = CONFIG,
    **options: Any,
) -> dynts.Session:
    """A session with a predictor, which all but two methods ignore."""
    return dynts.compress(model, named(name), config, random_predictor(), **options)


class Recorder(BaseStreamer):
    """Keeps what generate() streams."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one token at a time."""
        assert not self.ended
        self.parts.append(value.flatten().tolist())

    def end(self) -> None:
        """Take note."""
        self.ended = True


# --- names, statistics and recorded positions


@pytest.mark.quick
def test_public_names() -> None:
    for name in dynts.__all__:
        assert getattr(dynts, name) is not None
        assert name in dir(dynts)
    assert dynts.methods.METHODS is METHODS
    with pytest.raises(AttributeError, match="no attribute 'squeeze'"):
        _ = dynts.squeeze


@pytest.mark.quick
def test_statistics_by_hand(model: PreTrainedModel, ids: Tensor) -> None:
    with compress(model) as session:
        output = model.generate(ids, do_sample=False, max_new_tokens=50)
    assert output.shape == (1, 58)
    assert len(session.stats) == 1
    stats = session.stats[-1]
    assert stats.prompt_tokens == 8
    assert stats.generated_tokens == 50
    # 8 + 16 tokens reach the budget; 8 + floor(0.4 * (24 - 5 - 8)) + 5 = 17 stay; every 7 tokens from then on
    assert [tuple(event) for event in stats.compactions] == [(step, 24, 17) for step in (16, 23, 30, 37, 44)]
    first = stats.compactions[0]
    assert (first.step, first.before, first.after) == (16, 24, 17)
    assert stats.peak_tokens == 24
    # 24 slots, 2 layers, keys and values, 2 KV heads of size 8, float32
    assert stats.peak_bytes == 24 * 2 * 2 * 2 * 8 * 4
    assert session.kept_positions == []


@pytest.mark.quick
def test_statistics_of_a_padded_batch_and_of_each_call(model: PreTrainedModel) -> None:
    with compress(model, "full") as session:
        model.generate(**padded(random_tokens(3, 1), random_tokens(7, 2)), do_sample=False, max_new_tokens=5)
        model.generate(torch.tensor([random_tokens(4, 3)]), do_sample=False, max_new_tokens=9)
    assert [stats.prompt_tokens for stats in session.stats] == [7, 4]
    assert [stats.generated_tokens for stats in session.stats] == [5, 9]
    # the last token generated is never fed back
    assert [stats.peak_tokens for stats in session.stats] == [11, 12]
    assert all(stats.compactions == [] for stats in session.stats)


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
def test_kept_positions(model: PreTrainedModel, name: str) -> None:
    with compress(model, name, record=True) as session:
        model.generate(**padded(random_tokens(4, 1), random_tokens(8, 2)), **GREEDY)
    compactions = session.stats[-1].compactions
    assert len(session.kept_positions) == len(compactions)
    assert (name == "full") == (compactions == [])
    sets = [
        # with native granularity a set for each layer and KV head
        (event, positions)
        for event, kept in zip(compactions, session.kept_positions, strict=True)
        for positions in ([kept] if kept.ndim == 2 else kept.transpose(1, 2).flatten(0, 1))
    ]
    for event, positions in sets:
        assert positions.dtype == torch.int64
        assert positions.shape == (2, event.after)
        newest = [4 + event.step - 1, 8 + event.step - 1]
        for row, last in zip(positions, newest, strict=True):
            own = row[row >= 0].tolist()
            # ascending positions that end with the local window, then what is not in use
            assert row.tolist() == sorted(set(own)) + [-1] * (event.after - len(own))
            assert own[-5:] == list(range(last - 4, last + 1))
        if METHODS[name].protect_question:
            for row, question in zip(positions, (4, 8), strict=True):
                assert row[row >= 0][:question].tolist() == list(range(question))


@pytest.mark.quick
@pytest.mark.parametrize("method", [dynts.methods.H2O, dynts.methods.SnapKV, dynts.methods.RKV])
def test_kept_positions_with_native_granularity(method: Any) -> None:
    model = tiny_model("gemma3")
    with dynts.compress(model, method(granularity="native"), CONFIG, record=True) as session:
        model.generate(**padded(random_tokens(4, 1), random_tokens(8, 2)), **GREEDY)
    compactions = session.stats[-1].compactions
    assert len(session.kept_positions) == len(compactions) >= 3
    for event, positions in zip(compactions, session.kept_positions, strict=True):
        # the sliding-window layer of the three takes no part
        assert positions.shape == (2, 2, 2, event.after)
        assert bool((positions[..., 1:] > positions[..., :-1]).logical_or(positions[..., 1:] == -1).all())
    last = session.kept_positions[-1]
    assert len({tuple(last[layer, 1, head].tolist()) for layer in range(2) for head in range(2)}) > 1


# --- the model afterwards


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_model_is_untouched_afterwards(architecture: str, name: str) -> None:
    model, ids = tiny_model(architecture), torch.tensor([random_tokens(8, seed=1)])
    model.generation_config.cache_implementation = "hybrid"
    before = footprint(model)
    with compress(model, name):
        assert model.generate != before["generate"]
        model.generate(ids, do_sample=False, max_new_tokens=20)
    assert footprint(model) == before


class Interrupt(Recorder):
    """A streamer with a user who has seen enough."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def put(self, value: Tensor) -> None:
        """Let 30 tokens pass."""
        super().put(value)
        if len(self.parts) > 30:
            raise self.error


@pytest.mark.quick
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["dynts", "h2o", "snapkv"])
def test_the_model_is_untouched_after_an_interrupted_generate(
    model: PreTrainedModel, ids: Tensor, name: str, error: type[BaseException]
) -> None:
    before = footprint(model)
    with compress(model, name):
        expected = model.generate(ids, **GREEDY)
    session = compress(model, name)
    with pytest.raises(error), session:
        model.generate(ids, streamer=Interrupt(error), **GREEDY)
    assert footprint(model) == before
    assert session.stats == []
    # and the same session works again, within the block and in a new one
    with session:
        with suppress(error):
            model.generate(ids, streamer=Interrupt(error), **GREEDY)
        assert torch.equal(model.generate(ids, **GREEDY), expected)
    assert [stats.generated_tokens for stats in session.stats] == [40]
    assert footprint(model) == before


@pytest.mark.quick
def test_the_model_is_untouched_after_an_error_in_a_stopping_criterion_or_the_block(
    model: PreTrainedModel, ids: Tensor
) -> None:
    before = footprint(model)

    def interrupt(sequences: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), compress(model):
        model.generate(ids, stopping_criteria=StoppingCriteriaList([interrupt]), **GREEDY)
    assert footprint(model) == before
    with pytest.raises(ZeroDivisionError), compress(model):
        _ = 1 / 0
    assert footprint(model) == before


def test_the_model_is_untouched_after_an_error_in_its_forward_pass(model: PreTrainedModel, ids: Tensor) -> None:
    before = footprint(model)
    with compress(model) as session:
        expected = model.generate(ids, **GREEDY)
        handle = model.get_decoder().layers[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.generate(ids, **GREEDY)
        handle.remove()
        assert torch.equal(model.generate(ids, **GREEDY), expected)
    assert len(session.stats) == 2
    assert footprint(model) == before


@pytest.mark.quick
def test_outside_the_context_generate_is_native(model: PreTrainedModel, ids: Tensor) -> None:
    native = model.generate(ids, **GREEDY)
    session = compress(model, "window")
    assert torch.equal(model.generate(ids, **GREEDY), native)
    with session:
        assert not torch.equal(model.generate(ids, **GREEDY), native)
        # a forward pass with a cache of its own is none of the session's business
        alone = model(input_ids=ids).logits
    assert torch.equal(model.generate(ids, **GREEDY), native)
    assert torch.equal(model(input_ids=ids).logits, alone)
    assert len(session.stats) == 1


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
def test_calls_in_one_context_share_no_state(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    other = padded(random_tokens(5, 4), random_tokens(9, 5))
    with compress(model, name, record=True) as fresh:
        expected = model.generate(ids, **GREEDY)
    with compress(model, name, record=True) as session:
        model.generate(**other, **GREEDY)
        earlier = len(session.kept_positions)
        again = model.generate(ids, **GREEDY)
    assert torch.equal(again, expected)
    assert session.stats[-1] == fresh.stats[-1]
    kept = session.kept_positions[earlier:]
    assert [positions.tolist() for positions in kept] == [positions.tolist() for positions in fresh.kept_positions]


@pytest.mark.quick
def test_contexts_one_after_another_nested_and_twice(model: PreTrainedModel, ids: Tensor) -> None:
    before = footprint(model)
    results = []
    for _ in range(2):
        with compress(model):
            results.append(model.generate(ids, **GREEDY))
    session = compress(model)
    with session:
        results.append(model.generate(ids, **GREEDY))
        for second in (session, compress(model, "window")):
            with pytest.raises(dynts.DyntsError, match="compressed already"), second:
                pass
        results.append(model.generate(ids, **GREEDY))
        # another model is free
        sibling = tiny_model("llama")
        with compress(sibling):
            results.append(sibling.generate(ids, **GREEDY))
    assert footprint(model) == before
    with session:
        results.append(model.generate(ids, **GREEDY))
    assert all(torch.equal(result, results[0]) for result in results)


# --- what generate() offers


@pytest.mark.parametrize("name", METHODS)
def test_sampling_with_a_seed_equals_the_full_cache_when_nothing_is_evicted(
    model: PreTrainedModel, ids: Tensor, name: str
) -> None:
    options = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "max_new_tokens": 30}
    set_seed(11)
    native = model.generate(ids, **options)
    set_seed(12)
    assert not torch.equal(model.generate(ids, **options), native)
    with compress(model, name, ROOMY):
        set_seed(11)
        assert torch.equal(model.generate(ids, **options), native)


@pytest.mark.parametrize("name", METHODS)
def test_eviction_draws_no_random_numbers(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    with compress(model, name):
        torch.manual_seed(5)
        model.generate(ids, **GREEDY)
        state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.quick
def test_streamer_sees_every_token(model: PreTrainedModel, ids: Tensor) -> None:
    streamer = Recorder()
    with compress(model):
        output = model.generate(ids, streamer=streamer, **GREEDY)
    assert streamer.ended
    assert streamer.parts == [ids[0].tolist(), *([token] for token in output[0, 8:].tolist())]


@pytest.mark.quick
def test_text_streamers(model: PreTrainedModel, ids: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = word_tokenizer()
    with compress(model, tokenizer=tokenizer):
        expected = model.generate(ids, streamer=TextStreamer(tokenizer), **GREEDY)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
        thread = threading.Thread(target=model.generate, args=(ids,), kwargs={"streamer": streamer, **GREEDY})
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text.split() == tokenizer.decode(expected[0, 8:]).split()
    assert capsys.readouterr().out.split() == tokenizer.decode(expected[0]).split()


@pytest.mark.quick
def test_stopping_criteria(model: PreTrainedModel, ids: Tensor) -> None:
    def long_enough(sequences: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((sequences.shape[0],), sequences.shape[1] >= 37)

    with compress(model) as session:
        whole = model.generate(ids, **GREEDY)
        output = model.generate(ids, stopping_criteria=StoppingCriteriaList([long_enough]), **GREEDY)
    assert torch.equal(output, whole[:, :37])
    assert session.stats[-1].generated_tokens == 29


@pytest.mark.quick
def test_logits_processor_sees_the_whole_sequence(model: PreTrainedModel, ids: Tensor) -> None:
    widths = []

    def forbid_even(sequences: Tensor, scores: Tensor) -> Tensor:
        widths.append(sequences.shape[1])
        return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == 0, float("-inf"))

    with compress(model):
        output = model.generate(ids, logits_processor=LogitsProcessorList([forbid_even]), **GREEDY)
    assert widths == list(range(8, 48))
    assert bool((output[:, 8:] % 2 == 1).all())


@pytest.mark.quick
def test_lengths_and_generation_config(model: PreTrainedModel, ids: Tensor) -> None:
    before = footprint(model)
    with compress(model) as session:
        expected = model.generate(ids, **GREEDY)
        assert torch.equal(model.generate(ids, do_sample=False, max_length=48), expected)
        config = GenerationConfig(do_sample=False, max_new_tokens=40, pad_token_id=0)
        given = config.to_dict()
        assert torch.equal(model.generate(ids, generation_config=config), expected)
        assert torch.equal(model.generate(ids, config), expected)
        assert config.to_dict() == given
    assert [stats.generated_tokens for stats in session.stats] == [40] * 4
    assert footprint(model) == before


@pytest.mark.quick
def test_ways_to_pass_the_prompt(model: PreTrainedModel, ids: Tensor) -> None:
    with compress(model) as session:
        expected = model.generate(input_ids=ids, **GREEDY)
        assert torch.equal(model.generate(ids, **GREEDY), expected)
        assert torch.equal(model.generate(inputs=ids, **GREEDY), expected)
        assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY), expected)
        embeds = model.get_input_embeddings()(ids)
        # as in transformers, the prompt is not part of the output then
        assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), expected[:, 8:])
    assert all(stats == session.stats[0] for stats in session.stats)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "h2o", "snapkv"])
def test_a_cache_of_your_own_and_a_second_context(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    more = torch.tensor([random_tokens(3, 6)])
    with compress(model, name) as session:
        first = model.generate(ids, return_dict_in_generate=True, **GREEDY)
        whole = torch.cat([first.sequences, more], dim=1)
        expected = model.generate(whole, **{CACHE: first[CACHE]}, **GREEDY)
        cache = session.new_cache()
        assert torch.equal(model.generate(ids, **{CACHE: cache}, **GREEDY), first.sequences)
    # the conversation goes on in another context with the same settings
    with compress(model, name) as again:
        assert torch.equal(model.generate(whole, **{CACHE: cache}, **GREEDY), expected)
    assert again.stats == session.stats[1:2]
    assert again.stats[0].prompt_tokens == 4
    assert again.stats[0].generated_tokens == 40


@pytest.mark.quick
def test_peaks_are_those_of_each_call(model: PreTrainedModel, ids: Tensor) -> None:
    with compress(model) as session:
        first = model.generate(ids, return_dict_in_generate=True, **GREEDY)
        whole = torch.cat([first.sequences, torch.tensor([[9]])], dim=1)
        model.generate(whole, **{CACHE: first[CACHE]}, do_sample=False, max_new_tokens=2)
    # compacted after 37 tokens, the first call ends with 17 + 2; the second feeds its last token, the turn and one more
    assert [stats.peak_tokens for stats in session.stats] == [24, 22]
    assert session.stats[1].compactions == []
    assert session.stats[1].peak_bytes == session.stats[0].peak_bytes


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "h2o"])
def test_without_a_mask_end_tokens_that_pad_are_tokens(name: str) -> None:
    # many models pad with their end token, and transformers then takes none of them for padding
    model = tiny_model("llama")
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = 2
    prompts = [torch.tensor([[9, 2, 10, 11, 2, 2]]), torch.tensor([[2, 2, 12]])]
    runs = []
    for masked in (True, False):
        with compress(model, name, record=True) as session:
            sequences, cache = torch.empty(1, 0, dtype=torch.long), None
            for prompt in prompts:
                sequences = torch.cat([sequences, prompt], dim=1)
                mask = {"attention_mask": torch.ones_like(sequences)} if masked else {}
                output = model.generate(sequences, **{CACHE: cache}, return_dict_in_generate=True, **mask, **GREEDY)
                sequences, cache = output.sequences, output[CACHE]
        runs.append((sequences.tolist(), session.stats, [kept.tolist() for kept in session.kept_positions]))
    assert runs[0] == runs[1]
    assert runs[1][1][1].prompt_tokens == 4


@pytest.mark.quick
def test_padding_is_inferred_as_transformers_does(model: PreTrainedModel) -> None:
    batch = padded(random_tokens(4, 1), random_tokens(8, 2))
    with compress(model, record=True) as session:
        expected = model.generate(**batch, **GREEDY)
        kept = [positions.tolist() for positions in session.kept_positions]
        session.kept_positions.clear()
        assert torch.equal(model.generate(batch["input_ids"], **GREEDY), expected)
    assert [positions.tolist() for positions in session.kept_positions] == kept


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_prefill_in_chunks(model: PreTrainedModel, name: str, chunk: int) -> None:
    batch = padded(random_tokens(5, 4), random_tokens(10, 5))
    with compress(model, name, record=True) as session:
        expected = model.generate(**batch, **GREEDY)
        whole = [positions.tolist() for positions in session.kept_positions]
        session.kept_positions.clear()
        assert torch.equal(model.generate(**batch, prefill_chunk_size=chunk, **GREEDY), expected)
    assert [positions.tolist() for positions in session.kept_positions] == whole
    whole_stats, chunk_stats = session.stats
    assert chunk_stats.compactions == whole_stats.compactions
    assert chunk_stats.prompt_tokens == whole_stats.prompt_tokens == 10


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "h2o", "full"])
def test_dictionary_output_with_attentions_and_hidden_states(ids: Tensor, name: str) -> None:
    model = tiny_model("llama", attn_implementation="eager")
    everything = {"output_attentions": True, "output_hidden_states": True, "output_scores": True, "output_logits": True}
    with compress(model, name):
        expected = model.generate(ids, **GREEDY)
        output = model.generate(ids, return_dict_in_generate=True, **everything, **GREEDY)
    assert torch.equal(output.sequences, expected)
    assert len(output.attentions) == len(output.hidden_states) == len(output.logits) == len(output.scores) == 40
    limit = 200 if name == "full" else CONFIG.budget + 1
    for step, layers in enumerate(output.attentions):
        for weights in layers:
            assert weights.shape[:3] == (1, 4, 8 if step == 0 else 1)
            assert weights.shape[3] <= limit
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    last = torch.stack([layers[-1][:, -1] for layers in output.hidden_states], dim=1)
    torch.testing.assert_close(model.lm_head(last), torch.stack(output.logits, dim=1), atol=TOLERANCE, rtol=0)


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
def test_padding_takes_no_room(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    with compress(model, name, record=True) as session:
        expected = model.generate(ids, return_dict_in_generate=True, output_logits=True, **GREEDY)
        alone = [positions.tolist() for positions in session.kept_positions]
        session.kept_positions.clear()
        # 60 columns of padding, more than the budget of 24
        output = model.generate(
            **padded([0] * 60 + ids[0].tolist()) | {"attention_mask": torch.tensor([[0] * 60 + [1] * 8])},
            return_dict_in_generate=True,
            output_logits=True,
            **GREEDY,
        )
    assert torch.equal(output.sequences[:, 60:], expected.sequences)
    assert [positions.tolist() for positions in session.kept_positions] == alone
    assert session.stats[1].peak_tokens == session.stats[0].peak_tokens
    assert session.stats[1].peak_bytes == session.stats[0].peak_bytes
    for logits, own in zip(output.logits, expected.logits, strict=True):
        torch.testing.assert_close(logits, own, atol=TOLERANCE, rtol=0)


ENDING = ["full", "dynts", "window", "h2o", "snapkv", "rkv"]


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("architecture", [pytest.param("llama", marks=pytest.mark.quick), "gemma3"])
def test_rows_that_end_do_not_disturb_others(architecture: str, name: str) -> None:
    model = tiny_model(architecture)
    rows = [random_tokens(5, 21), random_tokens(9, 22), random_tokens(7, 23)]
    with compress(model, name):
        free = [model.generate(torch.tensor([row]), **GREEDY)[0, len(row) :].tolist() for row in rows]
        # an end token that the first row writes early, and at least one other later or never
        firsts = {token: [new.index(token) if token in new else 40 for new in free] for token in free[0][:12]}
        end, ends = max(firsts.items(), key=lambda item: max(item[1]) - item[1][0])
        assert ends[0] < 12 < 30 <= max(ends)
        options = {**GREEDY, "eos_token_id": end, "return_dict_in_generate": True, "output_logits": True}
        solo = [model.generate(torch.tensor([row]), **options) for row in rows]
        batch = model.generate(**padded(*rows), **options)
    for index, (row, alone) in enumerate(zip(rows, solo, strict=True)):
        new = alone.sequences[0, len(row) :].tolist()
        together = batch.sequences[index, 9:].tolist()
        assert together[: len(new)] == new
        assert set(together[len(new) :]) <= {0}
        for step in range(len(new)):
            torch.testing.assert_close(batch.logits[step][index], alone.logits[step][0], atol=TOLERANCE, rtol=0)


@pytest.mark.quick
def test_several_sequences_per_prompt(model: PreTrainedModel) -> None:
    batch = padded(random_tokens(4, 1), random_tokens(8, 2))
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 40}
    set_seed(3)
    native = model.generate(**batch, **options)
    with compress(model, config=ROOMY):
        set_seed(3)
        assert torch.equal(model.generate(**batch, **options), native)
    with compress(model, record=True) as session:
        output = model.generate(**batch, **options)
    assert output.shape == (6, 48)
    assert torch.equal(output[:, :8], batch["input_ids"].repeat_interleave(3, dim=0))
    assert len({tuple(row) for row in output.tolist()}) == 6
    assert session.stats[0].peak_tokens == 24
    assert session.kept_positions[-1].shape[0] == 6
    # copies of a prompt are compacted alike in number, but each keeps its own tokens
    assert len({tuple(row) for row in session.kept_positions[-1][3:].tolist()}) > 1


# --- other ways to run the model


def manual_loop(model: PreTrainedModel, session: dynts.Session, batch: dict[str, Tensor], steps: int) -> list[Tensor]:
    """Greedy logits of a user's own decode loop: [batch, vocab] per step."""
    cache = session.new_cache()
    step, logits = dict(batch), []
    for _ in range(steps):
        logits.append(model(**step, **{CACHE: cache}, use_cache=True).logits[:, -1])
        step = {"input_ids": logits[-1].argmax(-1, keepdim=True).detach()}
    return logits


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("gradients", [True, pytest.param(False, marks=pytest.mark.quick)])
def test_a_loop_of_your_own(model: PreTrainedModel, name: str, gradients: bool) -> None:
    batch = padded(random_tokens(4, 1), random_tokens(8, 2))
    with compress(model, name) as session:
        expected = model.generate(**batch, return_dict_in_generate=True, output_logits=True, **GREEDY)
        with torch.set_grad_enabled(gradients):
            logits = manual_loop(model, session, batch, 40)
    assert (name == "full") == (session.stats[0].compactions == [])
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected.logits), atol=TOLERANCE, rtol=0)


@pytest.mark.quick
def test_a_loop_of_your_own_with_positional_arguments_and_tuples(model: PreTrainedModel, ids: Tensor) -> None:
    with compress(model) as session, torch.no_grad():
        expected = manual_loop(model, session, {"input_ids": ids}, 30)
        cache, step = session.new_cache(), ids
        for logits in expected:
            hidden = model.get_decoder()(step, None, None, cache, return_dict=False)[0]
            torch.testing.assert_close(model.lm_head(hidden[:, -1]), logits, atol=TOLERANCE, rtol=0)
            step = logits.argmax(-1, keepdim=True)
    assert cache.occupancy.length <= CONFIG.budget
    assert cache.get_seq_length() == 37


@pytest.mark.quick
def test_two_caches_at_once(model: PreTrainedModel) -> None:
    prompts = [torch.tensor([random_tokens(5, 1)]), torch.tensor([random_tokens(8, 2)])]
    with compress(model, "h2o") as session, torch.no_grad():
        expected = [torch.stack(manual_loop(model, session, {"input_ids": prompt}, 35)) for prompt in prompts]
        caches, steps = [session.new_cache(), session.new_cache()], list(prompts)
        for index in range(35):
            for talk in range(2):
                logits = model(input_ids=steps[talk], **{CACHE: caches[talk]}).logits[:, -1]
                torch.testing.assert_close(logits, expected[talk][index], atol=TOLERANCE, rtol=0)
                steps[talk] = logits.argmax(-1, keepdim=True)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "h2o", "rkv"])
def test_inference_mode(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    with compress(model, name) as session:
        expected = model.generate(ids, **GREEDY)
        with torch.inference_mode():
            assert torch.equal(model.generate(ids, **GREEDY), expected)
            logits = manual_loop(model, session, {"input_ids": ids}, 40)
    assert torch.stack(logits).argmax(-1)[:, 0].tolist() == expected[0, 8:].tolist()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", [pytest.param("llama", marks=pytest.mark.quick), "gemma2"])
def test_bfloat16(architecture: str, name: str) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    batch = padded(random_tokens(4, 1), random_tokens(8, 2))
    with compress(model, name) as session:
        output = model.generate(**batch, return_dict_in_generate=True, output_logits=True, **GREEDY)
    assert output.sequences.shape == (2, 48)
    assert all(bool(logits.isfinite().all()) for logits in output.logits)
    cache = output[CACHE]
    full = [layer for layer in cache.layers if not layer.is_sliding]
    assert {layer.keys.dtype for layer in full} == {layer.values.dtype for layer in full} == {torch.bfloat16}
    # half of float32; Gemma 2 has one sliding-window layer beside its two full ones
    slots = 47 + max(16, 47 // 16) if name == "full" else 24
    sliding = SLIDING_WINDOW * (architecture == "gemma2")
    assert session.stats[0].peak_bytes <= (2 * slots + sliding) * 2 * 2 * 2 * 8 * 2


@pytest.fixture
def saved(tmp_path: Path, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A model loaded from a folder with a tokenizer beside it."""
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return type(model).from_pretrained(tmp_path)


@pytest.mark.quick
def test_the_tokenizer_beside_the_weights_is_found(saved: PreTrainedModel, ids: Tensor) -> None:
    session = dynts.compress(saved, "sepllm", CONFIG)
    assert session.tokenizer is not None
    # words only: no separator but the beginning of the text
    assert dynts.methods.sepllm.separator_ids(session.tokenizer) == (1,)
    with session:
        assert saved.generate(ids, **GREEDY).shape == (1, 48)


@pytest.mark.quick
def test_settings_of_a_method_survive_its_runs(model: PreTrainedModel, ids: Tensor) -> None:
    method = DynTSRandom(seed=4)
    with dynts.compress(model, method, CONFIG) as session:
        first = model.generate(ids, **GREEDY)
        assert torch.equal(model.generate(ids, **GREEDY), first)
    assert session.method is method
    assert vars(method) == {"seed": 4, "protect_question": True}
    with dynts.compress(model, DynTSRandom(seed=5), CONFIG):
        assert not torch.equal(model.generate(ids, **GREEDY), first)


@pytest.mark.quick
def test_a_failed_forward_pass_leaves_the_cache_as_it_was() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([random_tokens(8, 1)])
    with compress(model, "window") as session:
        cache = session.new_cache()
        model(input_ids=ids, **{CACHE: cache})
        handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids[:, :1], **{CACHE: cache})
        handle.remove()
        resumed = model(input_ids=ids[:, :1], **{CACHE: cache}).logits
        fresh = session.new_cache()
        model(input_ids=ids, **{CACHE: fresh})
        assert torch.equal(resumed, model(input_ids=ids[:, :1], **{CACHE: fresh}).logits)
        handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids[:, :1], **{CACHE: cache})
        handle.remove()
    with pytest.raises(dynts.DyntsError, match=r"dynts\.compress context"):
        model(input_ids=ids[:, :1], **{CACHE: cache})


@pytest.mark.quick
def test_any_callable_can_score() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([random_tokens(8, 1)])
    predictor = random_predictor()
    with compress(model, "dynts") as session:
        expected = model.generate(ids, **GREEDY)
    with dynts.compress(model, "dynts", session.config, lambda hidden: predictor(hidden)):
        assert torch.equal(model.generate(ids, **GREEDY), expected)
