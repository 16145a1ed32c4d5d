"""Reading the settings of a plugin from the environment: no engine needed."""

import re

import pytest

from dynts.chat.options import ChatOptions
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.engines.settings import NAMES, PluginSettings
from dynts.errors import DyntsError
from dynts.methods import DynTSAll

SETTINGS = PluginSettings("some/predictor", 300, 100, 0.5, "native", "dynts-all")
ENVIRONMENT = {
    "DYNTS_PREDICTOR": "some/predictor",
    "DYNTS_BUDGET": "300",
    "DYNTS_LOCAL_WINDOW": "100",
    "DYNTS_RETENTION_RATIO": "0.5",
    "DYNTS_GRANULARITY": "native",
    "DYNTS_METHOD": "dynts-all",
}


def test_what_a_command_is_given_reaches_the_plugin_through_the_environment() -> None:
    arm = Arm(DynTSAll("native"), CompressionConfig(300, 100, 0.5), "some/predictor")
    assert PluginSettings.of(arm, ChatOptions()) == SETTINGS
    assert SETTINGS.to_environment() == ENVIRONMENT
    assert SETTINGS.policy == arm.method
    settings = PluginSettings.of(arm, ChatOptions(think_end="[/THINK]"))
    assert PluginSettings.from_environment(settings.to_environment()) == settings
    assert (settings.think_start, settings.think_end) == (None, "[/THINK]")


def test_nothing_means_nothing_and_other_variables_are_left_alone() -> None:
    assert PluginSettings.from_environment({"HOME": "/", "DYNTS_BUDGET": ""}) is None
    others = {f"DYNTS_{name}": "1" for name in ("API_KEY", "DEBUG", "QUIET", "PLAIN_STEPS")}
    assert PluginSettings.from_environment(others) is None
    assert PluginSettings.from_environment({**others, **ENVIRONMENT}) == SETTINGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DYNTS_PREDICTOR": ""}, r"DYNTS_BUDGET, .* set without DYNTS_PREDICTOR.* to run the engine as it is"),
        ({"DYNTS_BUDGET": "many"}, r"DYNTS_BUDGET must be a whole number, got 'many'"),
        ({"DYNTS_RETENTION_RATIO": "half"}, r"DYNTS_RETENTION_RATIO must be a number, got 'half'"),
        ({"DYNTS_GRANULARITY": "head"}, r"granularity must be 'shared' or 'native', got 'head'"),
        ({"DYNTS_BUDGET": "1"}, r"budget must be a whole number of at least 2"),
        ({"DYNTS_METHOD": "h2o"}, r"method must be dynts or dynts-all with vLLM and SGLang, got 'h2o'"),
    ],
)
def test_wrong_variables_are_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(DyntsError, match=message):
        PluginSettings.from_environment({**ENVIRONMENT, **changes})


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("BUGDET", "BUDGET"), ("WINDOW", "LOCAL_WINDOW"), ("PREDICTER", "PREDICTOR"), ("RETENTION", "RETENTION_RATIO")],
)
def test_a_misspelt_variable_is_named_beside_those_that_there_are(misspelt: str, meant: str) -> None:
    known = ", ".join(f"DYNTS_{name.upper()}" for name in NAMES)
    message = f"DYNTS_{misspelt} is no setting, did you mean DYNTS_{meant}? There are {known}"
    for beside in ({}, ENVIRONMENT):
        with pytest.raises(DyntsError, match=re.escape(message)):
            PluginSettings.from_environment({f"DYNTS_{misspelt}": "1", **beside})
