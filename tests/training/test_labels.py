"""Labels equal those computed from the full attention matrix, which the library never builds."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dynts.errors import DyntsError, UnsupportedError
from dynts.traces.tokens import TokenizedTrace
from dynts.training.labels import label_trace
from tiny import tiny_model
from tiny_traces import ARCHITECTURES, build_model

QUESTION, THINKING, MARKER, ANSWER = 9, 40, 3, 14


def random_trace(seed: int = 0) -> TokenizedTrace:
    total = QUESTION + THINKING + MARKER + ANSWER
    ids = torch.randint(300, (total,), generator=torch.Generator().manual_seed(seed)).tolist()
    return TokenizedTrace(tuple(ids), QUESTION, QUESTION + THINKING, QUESTION + THINKING + MARKER)


def eager_attention(model: PreTrainedModel, trace: TokenizedTrace) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights [full-attention layers, query heads, tokens, tokens], and last hidden states [tokens, d]."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model.get_decoder()(input_ids=torch.tensor([trace.ids]), output_attentions=True)
    finally:
        model.set_attn_implementation(implementation)
    types = getattr(model.config, "layer_types", None) or ["full_attention"] * len(output.attentions)
    types = [kind for kind in types if kind in ("full_attention", "sliding_attention")]  # the others have no weights
    full = [weights[0] for weights, kind in zip(output.attentions, types, strict=True) if kind == "full_attention"]
    return torch.stack(full), output.last_hidden_state[0]


def by_definition(alpha: torch.Tensor, trace: TokenizedTrace, future_window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both labels, token by token, from attention weights [tokens, tokens]."""
    total, answer, future = len(trace.ids), [], []
    for j in range(trace.question_end, trace.thinking_end):
        answer.append(alpha[trace.answer_start :, j].mean())
        later = [alpha[i, j] for i in range(j + future_window + 1, total)]
        future.append(torch.stack(later).max() if later else torch.tensor(torch.nan))
    return torch.stack(answer), torch.stack(future)


@torch.no_grad()
def reference(model: PreTrainedModel, trace: TokenizedTrace, future_window: int) -> tuple[torch.Tensor, ...]:
    """Hidden states and both labels by their definition, from eager attention."""
    alpha, hidden = eager_attention(model, trace)
    labels = by_definition(alpha.mean(dim=(0, 1)), trace, future_window)
    return hidden[trace.question_end : trace.thinking_end], *labels


@pytest.mark.quick
@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
@pytest.mark.parametrize("future_window", [4, 32])
def test_labels_equal_the_full_attention_matrix(any_model: PreTrainedModel, chunk: int, future_window: int) -> None:
    trace = random_trace()
    hidden, answer, future = reference(any_model, trace, future_window)
    labelled = label_trace(any_model, trace, chunk=chunk, future_window=future_window)
    torch.testing.assert_close(labelled.hidden, hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(labelled.labels["answer"], answer, atol=1e-5, rtol=0)
    torch.testing.assert_close(labelled.labels["future"], future, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.quick
@pytest.mark.parametrize("chunk", [1, 7, 1000])
@torch.no_grad()
def test_native_labels_equal_the_attention_of_each_head(any_model: PreTrainedModel, chunk: int) -> None:
    trace = random_trace()
    alpha, _ = eager_attention(any_model, trace)
    kv_heads = any_model.config.num_key_value_heads
    group = alpha.shape[1] // kv_heads
    names = ("answer-native", "future-native")
    labels = label_trace(any_model, trace, (*names, "answer"), chunk=chunk, future_window=32).labels
    for name in names:
        assert labels[name].shape == (THINKING, len(alpha), kv_heads)
        assert labels[name].dtype == torch.float32
    for layer in range(len(alpha)):
        for head in range(kv_heads):
            mean = alpha[layer, head * group : (head + 1) * group].mean(dim=0)
            for name, expected in zip(names, by_definition(mean, trace, 32), strict=True):
                found = labels[name][:, layer, head]
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)
    torch.testing.assert_close(labels["answer-native"].mean(dim=(1, 2)), labels["answer"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@torch.no_grad()
def test_labels_of_all_tokens(any_model: PreTrainedModel, chunk: int) -> None:
    trace, total, window = random_trace(), QUESTION + THINKING + MARKER + ANSWER, 12
    alpha, hidden = eager_attention(any_model, trace)
    mean = alpha.mean(dim=(0, 1))
    names = ("answer", "future", "future-native")
    found = label_trace(any_model, trace, names, chunk=chunk, future_window=window, all_tokens=True)
    torch.testing.assert_close(found.hidden, hidden, atol=1e-4, rtol=1e-4)
    future = torch.full((total,), torch.nan)
    for j in range(total - window - 1):
        # tokens of the question ask for nothing that is evicted
        future[j] = mean[max(j + window + 1, QUESTION) :, j].max()
    torch.testing.assert_close(found.labels["future"], future, atol=1e-5, rtol=0, equal_nan=True)
    answer = mean[trace.answer_start :].sum(dim=0) / ANSWER
    torch.testing.assert_close(found.labels["answer"], answer, atol=1e-5, rtol=0)
    thinking = label_trace(any_model, trace, names, chunk=chunk, future_window=window)
    for name in names:
        part = found.labels[name][trace.question_end : trace.thinking_end]
        torch.testing.assert_close(part, thinking.labels[name], atol=1e-6, rtol=0, equal_nan=True)


def test_one_native_label_alone_is_the_same(model: PreTrainedModel) -> None:
    both = label_trace(model, random_trace(), ("answer-native", "future-native")).labels
    for name in both:
        alone = label_trace(model, random_trace(), (name,), chunk=5).labels
        torch.testing.assert_close(alone[name], both[name], atol=1e-6, rtol=0, equal_nan=True)


def test_thinking_tokens_without_a_distant_query_have_no_future_label(model: PreTrainedModel) -> None:
    window = ANSWER + MARKER + 5
    future = label_trace(model, random_trace(), future_window=window).labels["future"]
    # the last query is `window` or less away from the last six thinking tokens
    assert future.isnan().sum() == 6
    assert future[-6:].isnan().all()


@pytest.mark.parametrize("tokens_at_once", [1, 16, 30])
def test_several_forward_passes_change_nothing(
    any_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tokens_at_once: int
) -> None:
    trace = random_trace()
    hidden, answer, future = reference(any_model, trace, 4)
    monkeypatch.setattr("dynts.training.labels._SUMS_AT_ONCE", tokens_at_once * len(trace.ids))
    several = label_trace(any_model, trace, chunk=1, future_window=4)
    torch.testing.assert_close(several.hidden, hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(several.labels["answer"], answer, atol=1e-5, rtol=0)
    torch.testing.assert_close(several.labels["future"], future, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("architecture", ["qwen3_next", "lfm2", "jamba"])
def test_layers_that_keep_a_state_do_not_count(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # in several passes, but for jamba, which would forget its state
    test_several_forward_passes_change_nothing(tiny_model(architecture, vocab_size=300), monkeypatch, 16)


def test_answer_label_alone_is_the_same(model: PreTrainedModel) -> None:
    both = label_trace(model, random_trace())
    alone = label_trace(model, random_trace(), ("answer",), chunk=5)
    assert set(alone.labels) == {"answer"}
    torch.testing.assert_close(alone.labels["answer"], both.labels["answer"], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.hidden, both.hidden, atol=1e-4, rtol=1e-4)


def test_labels_of_a_bfloat16_model_are_float32_and_hidden_states_keep_its_dtype() -> None:
    labelled = label_trace(build_model("llama").to(torch.bfloat16), random_trace())
    assert labelled.hidden.dtype == torch.bfloat16
    assert {values.dtype for values in labelled.labels.values()} == {torch.float32}


def test_the_model_is_left_as_it_was(model: PreTrainedModel) -> None:
    label_trace(model, random_trace())
    assert model.config._attn_implementation == "sdpa"


def test_no_row_by_row_matrix_of_a_layers_heads(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynts.training import labels

    rows = []

    def counted(query: torch.Tensor, *args: object) -> torch.Tensor:
        rows.append(query.shape[2])
        return original(query, *args)

    original = labels.scaled_products
    monkeypatch.setattr(labels, "scaled_products", counted)
    expected = label_trace(model, random_trace(), chunk=8).labels["future"]
    assert max(rows) == 8
    rows.clear()
    # nor more than a piece should have
    piece = 3 * 4 * model.config.num_attention_heads * len(random_trace().ids)
    monkeypatch.setattr(labels, "piece_bytes", lambda _: piece)
    found = label_trace(model, random_trace(), chunk=8).labels["future"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, equal_nan=True)
    assert max(rows) == 3


def test_bad_settings_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(DyntsError, match=r"'importance'.*answer, future"):
        label_trace(model, random_trace(), ("importance",))
    with pytest.raises(DyntsError, match="chunk must be at least 1"):
        label_trace(model, random_trace(), chunk=0)
    with pytest.raises(DyntsError, match="future_window must be at least 1"):
        label_trace(model, random_trace(), future_window=0)


def test_a_model_without_full_attention_is_refused() -> None:
    config = ARCHITECTURES["gemma3"].__class__(**ARCHITECTURES["gemma3"].to_dict())
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with pytest.raises(UnsupportedError, match="sliding-window"):
        label_trace(model, random_trace())
