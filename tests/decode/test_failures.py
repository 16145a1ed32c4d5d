"""A forward pass that fails leaves no trace: the same call again gives what it gives alone, wherever the pass has
failed."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import dynts
from decoding import padded, predictor_for, random_tokens
from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.layer import BudgetLayer
from dynts.decode.call import CHUNKS_GO_ON
from dynts.decode.forward import forced_spans
from dynts.errors import UnsupportedError
from method_table import CASES, EVERY
from tiny import tiny_model

CONFIG = dynts.CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
SOME = ["dynts", "h2o", "window", "snapkv, native"]


class Stop(BaseException):
    """What no `except Exception` catches, as when a user interrupts."""


class Places:
    """The places that a pass comes by, at any of which it can be made to fail.

    Before and after the model, its decoder, their layers and what layers are made of, in hooks that the user adds
    within the context, and before and after everything that a method is asked to do.
    """

    def __init__(self, model: PreTrainedModel, cache: BudgetCache, undo: ExitStack, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.failed = 0
        for name, part in model.named_modules():
            if name.count(".") < 4 and not name.endswith("norm"):
                undo.callback(part.register_forward_pre_hook(lambda *_: self.come_by()).remove)
                undo.callback(part.register_forward_hook(lambda *_: self.come_by()).remove)
        for name in ("observe_attention", "remember_attention", "observe_hidden", "score", "compact"):
            patch.setattr(type(cache.method), name, self.around(getattr(type(cache.method), name)))

    def come_by(self) -> None:
        """Fail, if it is the place."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                self.failed += 1
                raise Stop if self.failed % 2 else RuntimeError("out of memory")

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same with a place before it and one after it."""

        @wraps(work)
        def around(*args: Any, **kwargs: Any) -> Any:
            self.come_by()
            result = work(*args, **kwargs)
            self.come_by()
            return result

        return around

    def until_it_works(self, call: Callable[[], Any], first: int = 0, apart: int = 1) -> Any:
        """Let a call fail at one place after the other, and then let it be."""
        self.left = first
        while True:
            failed = self.failed
            try:
                result = call()
            except (Stop, RuntimeError):
                assert self.failed == failed + 1
                first += apart
                self.left = first
            else:
                self.left = None
                return result


def session_of(model: PreTrainedModel, method: str) -> dynts.Session:
    """A session that records what survives."""
    chosen = CASES[method].method
    return dynts.compress(model, chosen, CONFIG, predictor_for(chosen), record=True)


@torch.no_grad()
def talk(
    model: PreTrainedModel, method: str, failing: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor], dynts.Session, int]:
    """Two turns of a padded batch in a loop of one's own; before the second, some tokens of the first are hidden.

    Returns:
        Logits of every pass, live keys and values of all layers at the end, the session, and how many passes have
        failed.
    """
    logits: list[Tensor] = []
    with session_of(model, method) as session, ExitStack() as undo, monkeypatch.context() as patch:
        cache = session.new_cache()
        places = Places(model, cache, undo, patch)

        def feed(ids: Tensor, mask: Tensor, first: int = 0, apart: int = 1) -> Tensor:
            def call() -> Tensor:
                return model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits[:, -1]

            logits.append(places.until_it_works(call, first, apart) if failing else call())
            cache.check_integrity()
            return torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)

        first, mask = padded(random_tokens(3, 1), random_tokens(8, 2)).values()
        mask = feed(first, mask)
        for step in range(18):
            mask = feed(logits[-1].argmax(-1, keepdim=True), mask, first=step % 14, apart=15)
        second, more = padded(random_tokens(6, 3), random_tokens(2, 4)).values()
        mask[0, -3:-1] = 0
        mask = feed(second, torch.cat([mask[:, :-1], more], dim=1))
        for step in range(9):
            mask = feed(logits[-1].argmax(-1, keepdim=True), mask, first=2 * step, apart=15)
    held = [layer.keys[row, :, :length] for layer in cache.budget_layers for row, length in enumerate(cache.lengths)]
    return logits, held, session, places.failed


def check(model: PreTrainedModel, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, expected_keys, plain, _ = talk(model, method, False, monkeypatch)
    logits, keys, session, failed = talk(model, method, True, monkeypatch)
    assert failed > 80
    for ours, theirs in zip([*logits, *keys], [*expected, *expected_keys], strict=True):
        assert torch.equal(ours, theirs)
    kept = [[positions.tolist() for positions in each.kept_positions] for each in (session, plain)]
    assert kept[0] == kept[1]
    assert method == "full" or len(kept[1]) >= 3


@pytest.mark.parametrize("method", EVERY)
def test_a_padded_batch_of_two_turns(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tiny_model("llama"), method, monkeypatch)


@pytest.mark.quick
@pytest.mark.parametrize("method", SOME)
def test_sliding_windows(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tiny_model("gemma3"), method, monkeypatch)


@pytest.mark.quick
@pytest.mark.parametrize(
    "method", ["dynts", *(name for name in EVERY if name.endswith("native") and name != "dynts, native")]
)
def test_a_finished_text_that_is_read(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model("gemma2"), torch.tensor([random_tokens(60, 5)])
    results = []
    for failing in (False, True):
        with session_of(model, method) as session, ExitStack() as undo, monkeypatch.context() as patch, torch.no_grad():
            cache, hidden = session.new_cache(), []
            places = Places(model, cache, undo, patch)
            for start, stop in forced_spans(cache, 7, 60, at_once=5):
                call = partial(model.get_decoder(), input_ids=ids[:, start:stop], **{CACHE: cache})
                hidden.append((places.until_it_works(call, start % 3, 3) if failing else call())[0])
        results.append((torch.cat(hidden, dim=1), [kept.tolist() for kept in session.kept_positions]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] != []


@pytest.mark.quick
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("method", ["dynts-all", "h2o", "snapkv", "rkv, native"])
def test_generate_while_it_reads(method: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call continues a prompt that was read in part: a pass comes by some 30 places, and chunks take three
    passes."""
    places_to_fail = [*range(0, 30, 4), *([36, 52] if chunk else [])]
    if chunk and not CHUNKS_GO_ON:
        pytest.skip("this transformers begins again when it reads in chunks")
    model = tiny_model("gemma3")
    turns = [
        padded(random_tokens(4, 6), random_tokens(7, 7)).values(),
        padded(random_tokens(8, 8), random_tokens(2, 9)).values(),
    ]
    results = []
    for failing in (False, True):
        with session_of(model, method) as session, ExitStack() as undo, monkeypatch.context() as patch:
            cache = session.new_cache()
            places = Places(model, cache, undo, patch)
            ids = mask = torch.empty(2, 0, dtype=torch.long)
            for more, own in turns:
                ids, mask = torch.cat([ids, more], dim=1), torch.cat([mask, own], dim=1)
                options = {"attention_mask": mask, CACHE: cache, "prefill_chunk_size": chunk}
                call = partial(model.generate, ids, do_sample=False, max_new_tokens=22, **options)
                read = places.failed
                for place in places_to_fail if failing else ():
                    places.left = place
                    with pytest.raises((Stop, RuntimeError)):
                        call()
                assert places.failed == read + (len(places_to_fail) if failing else 0)
                ids = call()
                mask = torch.cat([mask, torch.ones(2, 22, dtype=torch.long)], dim=1)
        kept = [positions.tolist() for positions in session.kept_positions]
        results.append((ids.tolist(), kept, cache.questions, cache.lengths, session.stats[-1].generated_tokens))
    assert results[0] == results[1]


@pytest.mark.quick
@pytest.mark.skipif(CHUNKS_GO_ON, reason="this transformers goes on in chunks")
def test_chunks_that_would_begin_again_are_refused() -> None:
    model, ids = tiny_model("llama"), torch.tensor([random_tokens(8, 1)])
    with session_of(model, "window") as session:
        cache = session.new_cache()
        ids = torch.cat([model.generate(ids, max_new_tokens=2, **{CACHE: cache}), ids[:, :4]], dim=1)
        with pytest.raises(UnsupportedError, match="continue this cache without prefill_chunk_size"):
            model.generate(ids, max_new_tokens=2, prefill_chunk_size=3, **{CACHE: cache})
        assert model.generate(ids, max_new_tokens=2, **{CACHE: cache}).shape == (1, 16)


@pytest.mark.quick
def test_what_is_refused_changes_nothing() -> None:
    model, ids = tiny_model("gemma3"), torch.tensor([random_tokens(8, 1), random_tokens(8, 2)])
    wrong: list[dict[str, Any]] = [
        {"position_ids": torch.arange(3, 8)[None].expand(2, 5)},
        {"position_ids": torch.arange(20, 24)[None]},
        {"attention_mask": torch.ones(2, 7)},
        {"attention_mask": torch.ones(1, 5)},
        {"attention_mask": torch.ones(2, 1, 5, 5)},
        # padding, which needs a mask of all columns in a model with sliding windows
        {"attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])},
        # the first token is shown again
        {"attention_mask": torch.ones(2, 8 + 12 + 5)},
        {"input_ids": ids[:1, :5]},
        {"input_ids": torch.tensor([random_tokens(17, 3), random_tokens(17, 4)])},
    ]
    results = []
    for refused in ([], wrong):
        with session_of(model, "h2o") as session, torch.no_grad():
            cache, mask = session.new_cache(), torch.ones(2, 8)
            mask[0, 0] = 0
            step, logits = {"input_ids": ids, "attention_mask": mask}, []
            for number in range(30):
                if number == 13:
                    step = {
                        "input_ids": ids[:, :5],
                        "attention_mask": torch.cat([mask[:, :-1], torch.ones(2, 5)], dim=1),
                    }
                    for change in refused:
                        with pytest.raises(dynts.DyntsError):
                            model(**step | change, **{CACHE: cache})
                mask = step["attention_mask"]
                logits.append(model(**step, **{CACHE: cache}).logits[:, -1])
                mask = torch.cat([mask, torch.ones(2, 1)], dim=1)
                step = {"input_ids": logits[-1].argmax(-1, keepdim=True), "attention_mask": mask}
        results.append((torch.stack(logits), [kept.tolist() for kept in session.kept_positions]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] != []


@pytest.mark.quick
def test_a_turn_that_fails_again_and_again() -> None:
    """Each failure used to count as a turn: the next call kept other tokens, and was refused in the end."""
    model, prompt = tiny_model("llama"), torch.tensor([random_tokens(6, 1)])
    greedy = {"do_sample": False, "max_new_tokens": 20, "return_dict_in_generate": True}
    results = []
    for failures in (0, 9):
        with session_of(model, "dynts") as session:
            first = model.generate(prompt, **greedy)
            ids, cache = torch.cat([first.sequences, prompt[:, :4]], dim=1), first[CACHE]
            handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
            for _ in range(failures):
                with pytest.raises(ZeroDivisionError):
                    model.generate(ids, **{CACHE: cache}, **greedy)
            handle.remove()
            again = model.generate(ids, **{CACHE: cache}, **greedy)
        results.append((again.sequences.tolist(), cache.questions, [kept.tolist() for kept in session.kept_positions]))
    assert results[0] == results[1]
    assert results[0][1] == (6 + 4 + 1,)


@pytest.mark.quick
def test_a_compaction_that_stops_halfway_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What some layers have moved and others not cannot be put right."""
    model, compact = tiny_model("llama"), BudgetLayer.compact
    with session_of(model, "window") as session, torch.no_grad():
        cache = session.new_cache()

        def stop_at_the_second(layer: BudgetLayer, *args: Any) -> None:
            if layer is cache.budget_layers[1]:
                raise Stop
            compact(layer, *args)

        model(input_ids=torch.tensor([random_tokens(8, 1)]), **{CACHE: cache})
        while cache.room != 1:
            model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
        monkeypatch.setattr(BudgetLayer, "compact", stop_at_the_second)
        with pytest.raises(Stop):
            model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
        with pytest.raises(dynts.DyntsError, match="start a new one"):
            model(input_ids=torch.tensor([[9]]), **{CACHE: cache})


@pytest.mark.quick
@pytest.mark.parametrize("method", ["full", "h2o", "snapkv", "dynts-all"])
def test_a_first_pass_that_failed_does_not_decide_the_rows(method: str) -> None:
    model, ids = tiny_model("gemma3"), torch.tensor([random_tokens(8, 1), random_tokens(8, 2)])
    with session_of(model, method) as session:
        cache = session.new_cache()
        with pytest.raises(ZeroDivisionError), model.lm_head.register_forward_hook(lambda *_: 1 / 0):
            model(input_ids=ids.repeat(2, 1), **{CACHE: cache})
        again = model(input_ids=ids, **{CACHE: cache}).logits
        assert torch.equal(again, model(input_ids=ids, **{CACHE: session.new_cache()}).logits)


@pytest.mark.quick
def test_a_pass_that_failed_is_not_open_outside_the_context() -> None:
    model, ids = tiny_model("gemma3"), torch.tensor([random_tokens(8, 1)])
    with session_of(model, "window") as session:
        cache = session.new_cache()
        model(input_ids=ids, **{CACHE: cache})
        handle = model.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=ids[:, :1], **{CACHE: cache})
        handle.remove()
    with pytest.raises(dynts.DyntsError, match=r"dynts\.compress context"):
        model(input_ids=ids[:, :1], **{CACHE: cache})


MODES = [torch.inference_mode, torch.no_grad, torch.enable_grad]


@pytest.mark.parametrize("method", EVERY)
def test_every_mode_continues_every_other(method: str) -> None:
    converse_in_modes("llama", method)


@pytest.mark.quick
@pytest.mark.parametrize("method", SOME)
def test_every_mode_continues_every_other_with_sliding_windows(method: str) -> None:
    converse_in_modes("gemma3", method)


def converse_in_modes(architecture: str, method: str) -> None:
    """Each mode follows each other one, and evicts what others have stored."""
    model = tiny_model(architecture)
    order = [0, 1, 1, 0, 2, 2, 0, 0, 1, 2, 1, 2]
    results = []
    for changing in (False, True):
        with session_of(model, method) as session:
            cache, logits = session.new_cache(), []
            ids, mask = padded(random_tokens(3, 1), random_tokens(8, 2)).values()
            for number in range(34):
                if number == 22:  # a second turn
                    more, own = padded(random_tokens(3, 3), random_tokens(2, 4)).values()
                    ids, mask = more, torch.cat([mask[:, :-1], own], dim=1)
                with MODES[order[number % len(order)] if changing else 1]():
                    out = model(input_ids=ids, attention_mask=mask, **{CACHE: cache}).logits[:, -1]
                logits.append(out.detach())
                ids = logits[-1].argmax(-1, keepdim=True)
                mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        results.append((torch.stack(logits), [kept.tolist() for kept in session.kept_positions]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    assert results[0][1] == results[1][1]
    assert (method == "full") == (results[0][1] == [])


@pytest.mark.quick
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_generate_continues_in_another_mode(architecture: str, first: int) -> None:
    model, ids = tiny_model(architecture), torch.tensor([random_tokens(8, 1)])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40, "return_dict_in_generate": True}
    results = []
    for modes in ((1, 1), (first, 1 - first)):
        with session_of(model, "h2o"):
            with MODES[modes[0]]():
                out = model.generate(ids, **options)
            with MODES[modes[1]]():
                whole = torch.cat([out.sequences, ids[:, :3]], dim=1)
                results.append(model.generate(whole, **{CACHE: out[CACHE]}, **options).sequences.tolist())
    assert results[0] == results[1]
