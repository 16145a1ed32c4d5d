"""How far a folder is, read from outside while others may be writing."""

import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dynts.errors import DyntsError
from dynts.store.lock import holders
from dynts.store.manifest import read_manifest
from dynts.store.progress import Tally
from dynts.traces.folder import TraceFolder
from dynts.training.shards import ShardFolder

_COMMANDS = "dynts collect`, `dynts eval`, `dynts import` or `dynts label"


@dataclass(frozen=True, slots=True)
class Status:
    """What a folder holds, and who works on it.

    Args:
        path: the folder.
        kind: "collect", "eval", "import" or "label".
        tally: counts of the whole folder; tokens, start and what it started with are those of the running job.
        damaged: files that were set aside.
        workers: what the running processes say of themselves.
    """

    path: Path
    kind: str
    tally: Tally
    damaged: list[str]
    workers: list[dict[str, Any]]

    def figures(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        return {"kind": self.kind, **self.tally.figures(), "damaged": self.damaged, "workers": self.workers}

    def describe(self) -> str:
        """Return a few lines that say how far the folder is."""
        tally = self.tally
        lines = [f"{self.path} ({self.kind}): {tally.done} of {tally.total} traces; {tally.describe()}".rstrip("; ")]
        if self.damaged:
            lines.append(f"  set aside as damaged: {', '.join(self.damaged)}")
        for worker in self.workers:
            since = datetime.fromtimestamp(worker["started"]).isoformat(" ", "seconds") if "started" in worker else "?"
            lines.append(f"  running since {since}: process {worker.get('pid', '?')} on {worker.get('host', '?')}")
        if not self.workers:
            lines.append("  complete" if tally.done >= tally.total else "  nobody works on it: run its command again")
        return "\n".join(lines)


def read_status(path: str | Path) -> Status:
    """Read a folder of traces or shards.

    Raises:
        DyntsError: it is neither.
    """
    path = Path(path)
    manifest = read_manifest(path, _COMMANDS)
    workers = holders(path)
    if manifest.get("kind") == "traces":
        kind, tally = str(manifest["settings"]["kind"]), _traces(TraceFolder(path, manifest))
    elif isinstance(manifest.get("indices"), list):
        kind, tally = "label", _shards(ShardFolder(path, manifest))
    else:
        raise DyntsError(f"{path} is neither a folder of traces nor of shards: give one written by `{_COMMANDS}`")
    running = [worker for worker in workers if "total" in worker]
    tally.tokens = sum(worker["tokens"] for worker in running)
    tally.started = min((worker["started"] for worker in running), default=time.time())
    made = sum(worker["done"] - worker["started_with"] for worker in running)
    tally.started_with = tally.done - made
    return Status(path, kind, tally, sorted(file.name for file in path.glob("*.damaged")), workers)


def _traces(folder: TraceFolder) -> Tally:
    tally = Tally(total=int(folder.manifest["total"]), correct=0)
    for outcome in folder.outcomes():
        tally.add(outcome.correct, outcome.reason)
    return tally


def _shards(folder: ShardFolder) -> Tally:
    done = sum(folder.file(index).exists() for index in folder.indices)
    return Tally(len(folder.indices), done, dropped=Counter(folder.manifest["dropped"]))
