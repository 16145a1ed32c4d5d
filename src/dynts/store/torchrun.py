"""Several processes that share one job or model under `torchrun`: which of them this one is, and what falls to it."""

import hashlib
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynts.errors import DyntsError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Rank:
    """This process's place among those of the job.

    Args:
        rank: its number, from 0.
        world: how many there are.
        local: its number on its machine.
        job: the same for all processes of a job, and for no other job.
    """

    rank: int
    world: int
    local: int
    job: str

    def owns(self, key: str) -> bool:
        """Say whether a piece of work with this id falls to this process: to exactly one of the job."""
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % self.world == self.rank

    def device(self, device: str) -> str:
        """Say where to put the model: processes that share a machine take one accelerator each, unless one is named.

        Args:
            device: such as "auto", "cuda", "cuda:1" or "cpu".
        """
        if self.world == 1 or not torch.accelerator.is_available():
            return device
        kind = str(torch.accelerator.current_accelerator()).split(":")[0]
        return f"{kind}:{self.local % torch.accelerator.device_count()}" if device in ("auto", kind) else device


def this_rank() -> Rank:
    """Read RANK and WORLD_SIZE, which `torchrun` sets; without them the process is the only one.

    Raises:
        DyntsError: they are no such numbers.
    """
    try:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise DyntsError(f"RANK, LOCAL_RANK and WORLD_SIZE must be whole numbers ({error}): use torchrun") from error
    if not 0 <= rank < world:
        raise DyntsError(f"RANK is {rank} and WORLD_SIZE {world}: ranks are numbered from 0; use torchrun")
    if world == 1:
        return Rank(rank, world, local, uuid.uuid4().hex)
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
    return Rank(rank, world, local, " ".join(os.environ.get(name, "") for name in names))


def heads_group(model: "PreTrainedModel") -> "ProcessGroup | None":
    """Return the processes that share a model's heads (transformers' tensor parallelism); None if one holds all."""
    mesh = model._device_mesh
    if mesh is None:
        return None
    # older releases of transformers give the mesh of tensor parallelism no names
    names = mesh.mesh_dim_names or ("tp",)
    group = mesh.get_group(names.index("tp")) if "tp" in names else None
    return group if group is not None and group.size() > 1 else None
