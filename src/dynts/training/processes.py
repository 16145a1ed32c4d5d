"""The processes that train together under `torchrun`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dynts.errors import DyntsError, UnsupportedError
from dynts.store.torchrun import this_rank

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together; by default there is no other.

    Args:
        rank: of this process, from 0.
        count: how many processes there are.
        device: of this process.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls, device: torch.device) -> "Processes":
        """Meet the other processes that `torchrun` started, if it did; each takes a device of its own of that kind.

        Raises:
            UnsupportedError: the processes cannot talk to each other on this kind of device.
        """
        count = this_rank().world
        if count == 1:
            return cls(device=device)
        from accelerate import PartialState

        # accelerate trains every process on its own, without a word, unless it is told that this is the CPU
        state = PartialState(cpu=device.type == "cpu")
        if state.num_processes != count:
            raise UnsupportedError(
                f"{count} processes were started, but accelerate knows no way for them to train together on {device}: "
                "use --device cpu, or start one process"
            )
        return cls(state.process_index, state.num_processes, state.device)

    def leave(self) -> None:
        """Wait for the others and part from them."""
        if self.count > 1:
            distributed.barrier()
            distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that prints and saves."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every count-th item, from the rank-th on."""
        return items[self.rank :: self.count]

    def gather(self, items: list[T]) -> list[T]:
        """Put what was made of the shares back into the order of the whole, in every process."""
        if self.count == 1:
            return items
        shares: list[list[T]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(shares, items)
        return [shares[i % self.count][i // self.count] for i in range(sum(map(len, shares)))]

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what the main process makes, for all; an error that a user can act on is raised in all."""
        if self.count == 1:
            return make()
        made: list[T | DyntsError | None] = [None]
        if self.is_main:
            try:
                made = [make()]
            except DyntsError as error:
                made = [error]
        distributed.broadcast_object_list(made, src=0)
        if isinstance(made[0], DyntsError):
            raise made[0]
        return cast(T, made[0])

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place."""
        if self.count > 1:
            distributed.all_reduce(value)
        return value

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients all processes average in each backward pass outside `without_exchange`."""
        return module if self.count == 1 else DistributedDataParallel(module, gradient_as_bucket_view=True)


@contextmanager
def without_exchange(module: nn.Module, active: bool) -> Iterator[None]:
    """Let backward passes inside add to the gradients of this process only.

    Args:
        module: the predictor.
        active: False changes nothing.
    """
    with module.no_sync() if active and isinstance(module, DistributedDataParallel) else nullcontext():
        yield
