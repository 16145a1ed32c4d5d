"""Become the server of an engine that has one, with dynts' plugin switched on."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from dynts.config import ModelSource
from dynts.engines.settings import PluginSettings

if TYPE_CHECKING:
    from dynts.decode.arm import Arm


def server_settings(arm: "Arm[str]", source: ModelSource) -> PluginSettings:
    """Return what the plugin is told.

    Args:
        arm: method, budget, and the folder or id of an importance predictor.
        source: the model, and how it is talked to.

    Raises:
        DyntsError: the predictor cannot be read or does not serve the method.
    """
    from dynts.predictor.model import ImportancePredictor

    settings = PluginSettings.of(arm, source.chat)
    # the plugins look too, but refuse with the server's stack trace
    settings.policy.check_scores(ImportancePredictor.from_pretrained(settings.predictor))
    return settings


def exec_server(
    module: str,
    source: ModelSource,
    options: Mapping[str, object],
    more: Sequence[str],
    environment: Mapping[str, str],
) -> NoReturn:
    """Become a server, so that signals and the exit code are its own.

    Args:
        module: that starts it.
        source: the model, and how it is talked to.
        options: by their names: None or False for the server's default, True for one that takes no value.
        more: further words of the command line.
        environment: all variables.
    """
    template = source.chat.template_args
    options = {
        "dtype": source.dtype,
        "revision": source.revision,
        "default-chat-template-kwargs": json.dumps(dict(template)) if template else None,
        **options,
    }
    chosen = {name: value for name, value in options.items() if value is not None and value is not False}
    given = [f"--{name}" if value is True else f"--{name}={value}" for name, value in chosen.items()]
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *given, *more], dict(environment))
