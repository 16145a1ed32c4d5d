"""How importance is spread, against loops over tokens and against whole attention matrices."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynts.analyze.importance import EDGES, SHARES, Importance, describe_shards, describe_trace, describe_with_question
from dynts.errors import DyntsError
from dynts.traces.tokens import TokenizedTrace
from dynts.training.shards import ShardFolder
from tiny import tiny_model

values = st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=1, max_size=60)


@given(values, st.data())
def test_a_trace_by_loops(labels: list[float], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 5), min_size=len(labels), max_size=len(labels)))
    row = describe_trace(labels, ids)
    mean, count = math.fsum(labels) / len(labels), len(labels)
    assert row["tokens"] == count
    assert row["mean"] == pytest.approx(mean)
    # a token that rounding alone puts above the mean may fall on either side
    clearly = sum(value > mean * (1 + 1e-9) for value in labels)
    nearly = sum(value > mean * (1 - 1e-9) for value in labels)
    assert clearly <= round(row["above_mean"] * count) <= nearly
    best = sorted(labels, reverse=True)
    for share, mass in zip(SHARES, row["mass"], strict=True):
        assert mass == pytest.approx(math.fsum(best[: round(share * count)]) / (math.fsum(labels) or 1))
    assert sum(row["histogram"]) == count
    for token in set(ids):
        own = [value for value, identity in zip(labels, ids, strict=True) if identity == token]
        assert row["identities"][token] == [len(own), pytest.approx(math.fsum(own) / (mean or 1))]
    json.dumps(row, allow_nan=False)


def test_parts_and_histogram() -> None:
    labels = np.repeat([1.0, 3.0], 20)
    row = describe_trace(labels, [7] * 40)
    assert row["parts"] == [0.5] * 5 + [1.5] * 5
    low, high = (int(np.searchsorted(EDGES, math.log10(value), "right")) - 1 for value in (0.5, 1.5))
    assert row["histogram"][low] == row["histogram"][high] == 20
    assert describe_trace([1.0, 3.0], [7, 7])["parts"] == [0.5, 1.5, *[None] * 8]


def test_tokens_without_a_label_do_not_count() -> None:
    with_gaps = describe_trace([float("nan"), 1.0, 3.0, float("nan")], [1, 2, 3, 4])
    without = describe_trace([1.0, 3.0], [2, 3])
    for name in ("tokens", "mean", "above_mean", "mass", "histogram", "identities"):
        assert with_gaps[name] == without[name]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.quick
def test_question_and_thinking_against_whole_attention_matrices(kind: str) -> None:
    model = tiny_model(kind)
    ids = tuple(torch.randint(5, 64, (60,), generator=torch.Generator().manual_seed(3)).tolist())
    trace = TokenizedTrace(ids, question_end=11, thinking_end=45, answer_start=48)
    row = describe_with_question(model, trace, chunk=5)

    eager = tiny_model(kind, attn_implementation="eager")
    with torch.no_grad():
        attentions = eager(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    types = getattr(model.config, "layer_types", None) or ["full_attention"] * len(attentions)
    full = [found[0] for found, name in zip(attentions, types, strict=True) if name == "full_attention"]
    importance = torch.stack(full).mean(dim=(0, 1))[trace.answer_start :].mean(dim=0)
    question, thinking = importance[:11].tolist(), importance[11:45].tolist()
    mean = sum(thinking) / len(thinking)
    expected = {
        "tokens": 11,
        "mean": sum(question) / 11,
        "mass": sum(question),
        "above_mean": sum(value > mean for value in question) / 11,
        "first_mass": question[0],
    }
    for name, value in expected.items():
        assert row["question"][name] == pytest.approx(value, rel=1e-4), name
    assert row["thinking_mass"] == pytest.approx(sum(thinking), rel=1e-4)
    assert row["above_mean"] == pytest.approx(sum(value > mean for value in thinking) / 34)

    found = Importance.of([row, row])
    assert found.question is not None
    assert found.question["over_thinking"] == pytest.approx(expected["mean"] / mean, rel=1e-4)
    assert found.question["rest_over_thinking"] == pytest.approx(sum(question[1:]) / 10 / mean, rel=1e-4)


def test_traces_count_alike_and_tokens_are_added_up() -> None:
    first = describe_trace([1.0, 1.0, 1.0, 5.0], [3, 3, 3, 9])  # mean 2
    second = describe_trace([1.0, 3.0], [9, 9])  # mean 2
    found = Importance.of(json.loads(json.dumps([first, second])))
    assert (found.traces, found.tokens) == (2, 6)
    assert found.above_mean == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found.mass_of(0.5) == pytest.approx((6 / 8 + 3 / 4) / 2)
    # over the mean: 0.5 three times, 2.5, 0.5, 1.5; of a sum of 6
    assert found.identities == [(9, 3 / 6, pytest.approx(4.5 / 6)), (3, 3 / 6, pytest.approx(1.5 / 6))]
    assert found.question is None


def test_shards(shards: ShardFolder) -> None:
    rows = list(describe_shards([shards], "answer"))
    shard = shards.read(shards.indices[0])
    labels = shard.labels["answer"]
    assert rows[0]["above_mean"] == pytest.approx((labels > labels.double().mean()).double().mean().item())
    assert len(rows) == len(shards.indices)
    assert list(describe_shards([shards], "future")) != rows
    with pytest.raises(DyntsError, match="not 'past'"):
        list(describe_shards([shards], "past"))
