"""Where the plugin enters SGLang: by the hooks that SGLang offers to plugins."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from dynts.engines.settings import PluginSettings
from dynts.engines.sglang.refusals import guard_request, guard_server

POSITIONS = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"
READY = "dynts_budget"
"""What schedulers under the budget tell the process that starts them."""


def register() -> None:
    """SGLang's entry point, called in every process; without DYNTS_* settings SGLang runs as it is.

    Raises:
        DyntsError: a setting is wrong. SGLang only logs that, so `guard_server` says it again.
    """
    guards = {
        "sglang.srt.server_args.ServerArgs.check_server_args": guard_server,
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request": guard_request,
        "sglang.srt.entrypoints.engine._wait_for_scheduler_ready": guard_start,
    }
    for target, guard in guards.items():
        HookRegistry.register(target, guard, HookType.AROUND)
    if PluginSettings.from_environment(os.environ) is None:
        return
    from dynts.engines.sglang.reasoning import register_parser
    from dynts.engines.sglang.scheduler import EvictingScheduler
    from dynts.engines.sglang.worker import true_positions

    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler", EvictingScheduler, HookType.REPLACE)
    HookRegistry.register(POSITIONS, true_positions, HookType.AROUND)
    register_parser()


def check_hooks() -> None:
    """Refuse to run a scheduler without the hook on positions: where SGLang cannot place one it only logs that.

    Raises:
        RuntimeError: the hook is not there.
    """
    module, owner, method = POSITIONS.rsplit(".", 2)
    if not hasattr(getattr(getattr(import_module(module), owner), method), "__wrapped__"):
        raise RuntimeError(f"dynts: SGLang has not placed the hook on {POSITIONS}, so positions would be wrong")


def guard_start(
    wait: Callable[..., list[dict[str, Any]]], pipes: list[Any], processes: list[Any]
) -> list[dict[str, Any]]:
    """Refuse schedulers that run without the budget: goes around `_wait_for_scheduler_ready` of SGLang's engine.

    Args:
        wait: SGLang's.
        pipes: to the schedulers.
        processes: of the schedulers.

    Raises:
        RuntimeError: in one of them SGLang has not put the plugin in place.
    """
    found = wait(pipes, processes)
    if PluginSettings.from_environment(os.environ) and not all(READY in info for info in found):
        for process in processes:
            process.kill()
        raise RuntimeError("dynts: SGLang's schedulers run without the budget; see what SGLang has logged about dynts")
    return found
