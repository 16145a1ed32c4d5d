"""The plugin's settings in vLLM: from `--additional-config '{"dynts": {...}}'`, else from DYNTS_* variables."""

import os
from collections.abc import Mapping

from dynts.engines.settings import NAMES, PluginSettings
from dynts.errors import DyntsError

KEY = "dynts"
LOGGER = "vllm.dynts"
"""Below vLLM's own logger, which is the only one that its processes show."""
PARSER = "dynts"
"""The name of dynts' reasoning parser in vLLM."""
MIDDLEWARE = "dynts.engines.replies.Replies"
"""What the answers of vLLM's server go through."""


def read_settings(additional_config: object, environment: Mapping[str, str] = os.environ) -> PluginSettings | None:
    """Read the settings; return None if there are none, and vLLM is to run as it is.

    Args:
        additional_config: vLLM's, which takes precedence; {"dynts": None} runs vLLM as it is.
        environment: for settings that are not there.

    Raises:
        DyntsError: a wrong setting; names it.
    """
    if isinstance(additional_config, Mapping) and KEY in additional_config:
        given = additional_config[KEY]
        return None if given is None else configured(given)
    return PluginSettings.from_environment(environment)


def configured(values: object) -> PluginSettings:
    """Read the object under "dynts" in vLLM's additional config.

    Raises:
        DyntsError: it is no object, a name is unknown, the predictor is missing, or a value is outside its range.
    """
    if not isinstance(values, Mapping):
        raise DyntsError(f'additional config "{KEY}" must be an object with {", ".join(NAMES)}, got {values!r}')
    if unknown := sorted(set(values) - set(NAMES)):
        raise DyntsError(f'additional config "{KEY}" has no setting {", ".join(unknown)}: it takes {", ".join(NAMES)}')
    if "predictor" not in values:
        raise DyntsError(
            f'additional config "{KEY}" lacks a predictor: add a folder or Hub id, or leave "{KEY}" out to run '
            "plain vLLM"
        )
    return PluginSettings(**values)
