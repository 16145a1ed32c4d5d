"""Where the plugin enters SGLang: by the hooks that SGLang offers to plugins."""

import os
from importlib import import_module

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from dynts.engines.settings import PluginSettings
from dynts.engines.sglang.handshake import guard_start, pass_on
from dynts.engines.sglang.refusals import VERSION, guard_request, guard_server
from dynts.errors import DyntsError

POSITIONS = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"


def register() -> None:
    """SGLang's entry point, called in every process; without DYNTS_* settings SGLang runs as it is.

    Raises:
        DyntsError: a setting is wrong. SGLang only logs that, so `guard_server` says it again.
    """
    guards = {
        "sglang.srt.server_args.ServerArgs.check_server_args": guard_server,
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request": guard_request,
        "sglang.srt.entrypoints.engine._wait_for_scheduler_ready": guard_start,
        "sglang.srt.managers.data_parallel_controller.DataParallelController.get_init_info": pass_on,
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
        DyntsError: the hook is not there.
    """
    module, owner, method = POSITIONS.rsplit(".", 2)
    if not hasattr(getattr(getattr(import_module(module), owner), method), "__wrapped__"):
        raise DyntsError(
            f"SGLang has not placed dynts' hook on {POSITIONS}: install sglang=={VERSION} and look at its log"
        )
