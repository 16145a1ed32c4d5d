"""What the device can do at most: memory bandwidth and matrix throughput, measured where the decoding is measured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynts.bench.clock import seconds

_BYTES = 2**29
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """Limits of a device.

    Attributes:
        device: its name.
        threads: CPU threads that torch uses.
        dtype: of what was read, copied and multiplied.
        read: bytes a second when memory is only read.
        copy: bytes a second when memory is copied, read and written ones counted.
        flops: floating-point operations a second of a large matrix product.
    """

    device: str
    threads: int
    dtype: str
    read: float
    copy: float
    flops: float

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.device}, {self.threads} threads: reads {self.read / 1e9:.1f} GB/s, copies {self.copy / 1e9:.1f} GB/s "
            f"(read and written), {self.flops / 1e9:.0f} GFLOP/s in {self.dtype}"
        )

    def floor(self, read_bytes: float, flops: float) -> float:
        """The least seconds for work that reads so many bytes and computes so much."""
        return max(read_bytes / self.read, flops / self.flops)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a device; the best of a few repeats counts, since these are limits."""
    size = _BYTES // dtype.itemsize
    source = torch.ones(size, dtype=dtype, device=device)
    target = torch.empty_like(source)
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    product = torch.empty_like(matrix)

    def best(work: Callable[[], object]) -> float:
        work()
        return min(seconds(work, device) for _ in range(_REPEATS))

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Machine(
        device=name,
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        # a maximum reads like a sum and needs no wider accumulator in half precision
        read=_BYTES / best(lambda: source.amax()),
        copy=2 * _BYTES / best(lambda: target.copy_(source)),
        flops=2 * side**3 / best(lambda: torch.mm(matrix, matrix, out=product)),
    )
