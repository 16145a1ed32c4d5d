"""Wall time of work on a device."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes, on the device too."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


class Stopwatch:
    """Adds up the time that methods of objects take.

    Attributes:
        spent: seconds, by the name under which a method is watched.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}

    @contextmanager
    def watching(self, owner: object, **names: str) -> Iterator[None]:
        """Inside this context, calls of `owner`'s methods are timed.

        Args:
            owner: the object.
            names: for each method, the name under which its time is added up.
        """
        for method, name in names.items():
            setattr(owner, method, self._timed(getattr(owner, method), name))
        try:
            yield
        finally:
            for method in names:
                delattr(owner, method)  # the class's own method shows again

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            taken = seconds(lambda: results.append(method(*args, **kwargs)), self.device)
            self.spent[name] = self.spent.get(name, 0.0) + taken
            return results[0]

        return timed
