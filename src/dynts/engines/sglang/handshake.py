"""What SGLang's schedulers tell the process that starts them: that they have the budget, or why not."""

import os
from collections.abc import Callable
from typing import Any

from dynts.engines.settings import PluginSettings

READY, REFUSED = "dynts_budget", "dynts_refusal"
"""Names of what they tell: their budget, or the error for which they have none."""


def guard_start(
    wait: Callable[..., list[dict[str, Any]]], pipes: list[Any], processes: list[Any]
) -> list[dict[str, Any]]:
    """Refuse schedulers that run without the budget: goes around `_wait_for_scheduler_ready` of SGLang's engine.

    Args:
        wait: SGLang's.
        pipes: to the schedulers.
        processes: of the schedulers.

    Raises:
        DyntsError: what a scheduler has refused, such as a predictor of another model.
        RuntimeError: in one of them SGLang has not put the plugin in place.
    """
    try:
        found = wait([_Refusing(pipe) for pipe in pipes], processes)
        if PluginSettings.from_environment(os.environ) and not all(READY in info for info in found):
            raise RuntimeError(
                "dynts: SGLang's schedulers run without the budget; see what SGLang has logged about dynts"
            )
    except BaseException:
        for process in processes:
            process.kill()
        raise
    return found


def pass_on(tell: Callable[..., dict[str, Any]], controller: Any) -> dict[str, Any]:
    """Pass on what the schedulers of all replicas say: goes around `DataParallelController.get_init_info`.

    Args:
        tell: SGLang's.
        controller: SGLang's, which starts the replicas.
    """
    told, infos = tell(controller), controller._scheduler_init_infos
    for info in infos:
        told |= {REFUSED: info[REFUSED]} if REFUSED in info else {}
    if all(READY in info for info in infos):
        told[READY] = infos[0][READY]
    return told


class _Refusing:
    """A pipe to a scheduler, which raises here what the scheduler has refused."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.poll = pipe.poll

    def recv(self) -> dict[str, Any]:
        told: dict[str, Any] = self.pipe.recv()
        if REFUSED in told:
            raise told[REFUSED]
        return told
