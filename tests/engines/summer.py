"""A made-up engine for actors of a Ray cluster: it adds, and takes its time."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adder import Adder
from dynts.engines.engine import Completion, Request


@dataclass(frozen=True)
class SlowAdderSpec:
    """Writes the process id of each actor that starts an engine into a file, and fails on one problem if told so."""

    pids: str
    batch: int = 4
    deadly: str = ""

    def start(self) -> "SlowAdder":
        import os

        with open(self.pids, "a") as stream:
            stream.write(f"{os.getpid()}\n")
        return SlowAdder(self.deadly)


@dataclass
class SlowAdder:
    deadly: str

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        import os

        for request in requests:
            time.sleep(0.1)
            if request.problem.id == self.deadly:
                os._exit(1)
            yield Adder.solve(request)
