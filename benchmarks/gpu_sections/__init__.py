"""What gpu.py measures: a section yields what it would measure, and the script measures it, prints it and writes it."""

from collections.abc import Callable, Iterator

from gpu_sections import attention, parity, parts, speed
from gpu_sections.bench import Bench, Case

SECTIONS: dict[str, tuple[Callable[[Bench], Iterator[Case]], float]] = {
    "parity": (parity.parity, 90),
    "attention": (attention.attention, 20),
    "steps": (speed.steps, 110),
    "compaction": (parts.compaction, 25),
    "labels": (parts.labels, 15),
    "sampling": (parts.sampling, 5),
    "generate": (speed.generate, 200),
}
"""Each section, and its share of the time."""
