"""Quality of a predictor, against what training reports and against counting pairs."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dynts.analyze.prediction import BINS, SHARES, Fold, choose_traces, measure_prediction
from dynts.errors import DyntsError
from dynts.predictor.model import ImportancePredictor
from dynts.training.dataset import load_examples
from dynts.training.shards import ShardFolder


def test_equals_what_training_measured(shards: ShardFolder, trained: ImportancePredictor) -> None:
    folds, words = choose_traces([shards], trained.config, group_by="parity")
    found = measure_prediction(trained, folds, grouped=True, seed=trained.config.training["seed"])
    groups = trained.config.training["groups"]
    assert "held out when it was trained" in words
    assert found.traces == trained.config.training["held_out_traces"]
    assert found.group_traces == groups["traces"]
    for name, metrics in trained.config.metrics.items():
        assert found.metrics[name] == pytest.approx(metrics)
        assert np.mean(found.taus[name]) == pytest.approx(metrics["kendall_tau"])
        for group in groups["traces"]:
            assert found.groups[group][name] == pytest.approx(groups["metrics"][group][name])


def test_by_counting(shards: ShardFolder, trained: ImportancePredictor) -> None:
    examples = load_examples([shards], "answer", "rank")
    one, others = examples[0], examples[1:]
    found = measure_prediction(trained, [Fold([one], others)])
    tokens = one.read()
    with torch.no_grad():
        scores = trained(tokens.hidden).double().numpy()
    labels = tokens.targets
    assert found.metrics["predictor"]["mse"] == pytest.approx(((scores - labels) ** 2).mean())
    pairs = list(itertools.combinations(range(len(labels)), 2))
    signs = [np.sign(scores[i] - scores[j]) * np.sign(labels[i] - labels[j]) for i, j in pairs]
    ties = [sum(values[i] == values[j] for i, j in pairs) for values in (scores, labels)]
    untied = np.sqrt(np.prod([len(pairs) - tied for tied in ties], dtype=np.float64))
    assert found.taus["predictor"] == [pytest.approx(sum(signs) / untied)]
    for share, overlap in zip(SHARES, found.overlaps["predictor"], strict=True):
        size = max(1, round(share * len(labels)))
        best = [set(sorted(range(len(labels)), key=lambda i, v=v: (-v[i], i))[:size]) for v in (scores, labels)]
        assert overlap == pytest.approx(len(best[0] & best[1]) / size)
    bins = found.calibration
    assert len(bins) == BINS
    assert [item.score for item in bins] == sorted(item.score for item in bins)
    lowest = sorted(range(len(scores)), key=lambda i: scores[i])[: len(np.array_split(scores, BINS)[0])]
    ranks = [sum(labels <= labels[i]) / len(labels) for i in lowest]  # labels differ, so this is the rank
    assert bins[0].score == pytest.approx(np.mean(scores[lowest]))
    assert bins[0].rank == pytest.approx(np.mean(ranks), abs=1 / len(labels))


def test_other_traces_are_analysed_in_two_folds(shards: ShardFolder, trained: ImportancePredictor) -> None:
    config = replace(trained.config, training={**trained.config.training, "traces_sha256": "others"})
    folds, words = choose_traces([shards], config)
    assert words.startswith(f"all {len(shards.indices)} traces, none of which")
    first, second = ({example.index for example in fold.analysed} for fold in folds)
    assert first | second == set(shards.indices)
    assert not first & second
    assert {example.index for example in folds[0].others} == second
    assert measure_prediction(trained, folds).traces == len(shards.indices)
    with pytest.raises(DyntsError, match="none of them was held out"):
        choose_traces([shards], config, "held-out")


def test_refusals(shards: ShardFolder, trained: ImportancePredictor) -> None:
    _, words = choose_traces([shards], trained.config, "all")
    assert "training traces among them" in words
    fewer = replace(trained.config, training={**trained.config.training, "train_traces": 3})
    with pytest.raises(DyntsError, match="was trained on 3 of these traces"):
        choose_traces([shards], fewer)
    with pytest.raises(DyntsError, match="hidden_size 64"):
        choose_traces([shards], replace(trained.config, hidden_size=64, fingerprint={}))
    sample = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).tolist()
    other = {**trained.config.fingerprint, "embedding_sample": sample}
    with pytest.raises(DyntsError, match="another model of the same shape"):
        choose_traces([shards], replace(trained.config, fingerprint=other))
    with pytest.raises(DyntsError, match="no trace has the column 'level'"):
        choose_traces([shards], trained.config, group_by="level")


def test_the_record_is_json(shards: ShardFolder, trained: ImportancePredictor, tmp_path: Path) -> None:
    from dynts.report.prediction import prediction_record

    found = measure_prediction(trained, choose_traces([shards], trained.config)[0])
    assert json.loads(json.dumps(prediction_record(found, {}), allow_nan=False))["traces"] == found.traces
