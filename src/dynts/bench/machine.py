"""What the device can do at most, measured where the decoding is measured; and wall time of work on it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time work, on the device too, in seconds.

    Args:
        work: what to do.
        device: where it is done.
    """
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Busy:
    """What a GPU did for some work.

    Attributes:
        seconds: that it was busy, copies included.
        kernels: how many it ran.
    """

    seconds: float
    kernels: int


@contextmanager
def gpu_work(device: torch.device) -> Iterator[list[Busy]]:
    """Note what a GPU does inside this context: a list, which is empty until its end, and on another device.

    Args:
        device: of the work.
    """
    found: list[Busy] = []
    if device.type != "cuda":
        yield found
        return
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield found
        synchronize(device)
    # ranges that were given a name lie over the kernels in them
    events = [
        event for event in profiler.events() or () if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    found.append(Busy(sum(event.time_range.elapsed_us() for event in events) / 1e6, len(kernels)))


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
        torch: its version.
        cudnn: version of cuDNN, None where there is none; what attention costs on CUDA depends on both.
    """

    device: str
    threads: int
    dtype: str
    read: float
    copy: float
    flops: float
    torch: str = torch.__version__
    cudnn: int | None = None

    def describe(self) -> str:
        """Return one line that says what the device can do."""
        return (
            f"{self.device}, {self.threads} threads: reads {self.read / 1e9:.1f} GB/s, copies {self.copy / 1e9:.1f} "
            f"GB/s (read and written), {self.flops / 1e9:.0f} GFLOP/s in {self.dtype}"
        )

    def floor(self, read_bytes: float, flops: float) -> float:
        """Return the least seconds that work can take.

        Args:
            read_bytes: bytes that it reads.
            flops: floating-point operations that it does.
        """
        return max(read_bytes / self.read, flops / self.flops)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a device; the best of a few repeats counts, since these are limits.

    Args:
        device: the device.
        dtype: of the numbers that are read and multiplied.
    """
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
        cudnn=torch.backends.cudnn.version() if device.type == "cuda" else None,
    )
