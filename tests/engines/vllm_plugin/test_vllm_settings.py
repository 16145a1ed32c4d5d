"""Reading the plugin's settings from vLLM's additional config, or from the environment: no vLLM needed."""

import pytest

from dynts.engines.settings import PluginSettings
from dynts.engines.vllm.settings import read_settings
from dynts.errors import DyntsError

GIVEN = {
    "predictor": "some/predictor",
    "budget": 300,
    "local_window": 100,
    "retention_ratio": 0.5,
    "granularity": "native",
    "method": "dynts-all",
}
ENVIRONMENT = {
    "DYNTS_PREDICTOR": "some/predictor",
    "DYNTS_BUDGET": "300",
    "DYNTS_LOCAL_WINDOW": "100",
    "DYNTS_RETENTION_RATIO": "0.5",
    "DYNTS_GRANULARITY": "native",
    "DYNTS_METHOD": "dynts-all",
}


def test_both_sources_say_the_same_and_nothing_means_nothing() -> None:
    assert read_settings({"dynts": GIVEN}, {}) == read_settings({}, ENVIRONMENT) == PluginSettings(**GIVEN)
    assert read_settings({}, {}) is None
    assert read_settings({"other": 1}, {"DYNTS_BUDGET": ""}) is None
    assert read_settings({"dynts": {"predictor": "p"}}, ENVIRONMENT) == PluginSettings(
        "p", 5000, 2000, 0.4, "shared", "dynts"
    )
    assert read_settings({"dynts": None}, ENVIRONMENT) is None, "told to leave vLLM alone"


def test_schedule_and_markers() -> None:
    settings = read_settings({"dynts": {**GIVEN, "think_start": "[THINK]", "think_end": "[/THINK]"}}, {})
    assert settings is not None
    assert (settings.schedule.budget, settings.schedule.local_window, settings.schedule.retention_ratio) == (
        300,
        100,
        0.5,
    )
    assert settings == read_settings({}, {**ENVIRONMENT, "DYNTS_THINK_START": "[THINK]", "DYNTS_THINK_END": "[/THINK]"})
    assert (settings.think_start, PluginSettings("p").think_start) == ("[THINK]", None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dynts": 300}, r'"dynts" must be an object with predictor, budget.*got 300'),
        ({"dynts": {"budget": 300}}, r'"dynts" lacks a predictor'),
        ({"dynts": {**GIVEN, "bugdet": 3}}, r"no setting bugdet: it takes predictor, budget"),
        ({"dynts": {**GIVEN, "budget": "300"}}, r"budget must be a whole number of at least 2, got '300'"),
        ({"dynts": {**GIVEN, "local_window": 300}}, r"local_window \(300\) must be smaller than the budget"),
        ({"dynts": {**GIVEN, "retention_ratio": 1.5}}, r"retention_ratio must lie between 0 and 1.*1\.5"),
        ({"dynts": {**GIVEN, "granularity": "head"}}, r"granularity must be 'shared' or 'native', got 'head'"),
        ({"dynts": {**GIVEN, "method": "h2o"}}, r"method must be dynts or dynts-all with vLLM and SGLang, got 'h2o'"),
        (
            {"dynts": {**GIVEN, "method": ["dynts"]}},
            r"method must be dynts or .*, got \['dynts'\]",
        ),
        ({"dynts": {**GIVEN, "predictor": ""}}, r"predictor must be a folder or the id"),
        ({"dynts": {**GIVEN, "think_end": [6, 7]}}, r"think_end must be a text, got \[6, 7\]"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(DyntsError, match=message):
        read_settings(given, {})
