"""Where the plugin enters SGLang: by the hooks that SGLang offers to plugins."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from dynts.engines.settings import PluginSettings

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
INIT_FORWARD = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"


def register() -> None:
    """SGLang's entry point, called in every process; without DYNTS_* settings SGLang runs as it is."""
    HookRegistry.register("sglang.srt.server_args.ServerArgs.check_server_args", _check_server_args, HookType.AROUND)
    if PluginSettings.from_environment(os.environ) is None:
        return
    from dynts.engines.sglang.scheduler import EvictingScheduler
    from dynts.engines.sglang.worker import true_positions

    HookRegistry.register(SCHEDULER, EvictingScheduler, HookType.REPLACE)
    HookRegistry.register(INIT_FORWARD, true_positions, HookType.AROUND)


def check_hooks() -> None:
    """Refuse to run where SGLang has not put the plugin's hooks in place: it only logs that, and evicts nothing.

    Raises:
        RuntimeError: names the hook.
    """
    module, owner, method = INIT_FORWARD.rsplit(".", 2)
    if not hasattr(getattr(getattr(import_module(module), owner), method), "__wrapped__"):
        raise RuntimeError(f"dynts: SGLang has not hooked {INIT_FORWARD}, so positions would be wrong")


def _check_server_args(check: Callable[..., None], server_args: Any) -> None:
    check(server_args)
