"""One job at a time writes to a folder, and others can see which one and how far it is.

The lock is the operating system's, so it ends with the process, however that ends. A job of several processes
(`torchrun`) holds one lock for each. Beside it lies a small file for people and for `dynts status`.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dynts.errors import DyntsError
from dynts.store.files import write_text_whole
from dynts.store.jsonlines import read_object
from dynts.store.manifest import make_folder
from dynts.store.torchrun import Rank

_REFRESH = 1.0
_PATIENCE = 0.5
"""Seconds to wait for a lock, because `dynts status` holds it for a moment to see whether anybody does."""


@dataclass(slots=True)
class Hold:
    """A held folder. `note` tells others how far the work is."""

    path: Path
    about: dict[str, Any]
    _written: float = field(default=0.0, init=False)

    def note(self, force: bool = False, **figures: Any) -> None:
        """Write down some figures, at most once a second.

        Args:
            force: write them at once.
            figures: to write.
        """
        self.about |= figures
        now = time.time()
        if force or now - self._written >= _REFRESH:
            self._written = now
            with suppress(DyntsError):  # a full disk must not end work that can still be stored
                write_text_whole(self.path, json.dumps({**self.about, "updated": now}))


@contextmanager
def hold(folder: Path, rank: Rank, made_by: str) -> Iterator[Hold]:
    """Keep other jobs out of a folder while this one fills it.

    Args:
        folder: made if it does not exist.
        rank: this process among those of the job.
        made_by: the command that writes such folders, for messages.

    Raises:
        DyntsError: the folder holds other things.
        DyntsError: another job holds it (the message says which process on which machine), or it cannot be locked.
    """
    make_folder(folder, made_by)
    lock, note = FileLock(_lock_file(folder, rank.rank)), _note_file(folder, rank.rank)
    about = {
        "rank": rank.rank,
        "job": rank.job,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(["dynts", *sys.argv[1:]]),
        "started": time.time(),
    }
    held = Hold(note, about)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise _held(folder, _read(note)) from error
    except OSError as error:
        raise DyntsError(f"cannot lock {folder} ({error}): choose a folder on a disk that can be written to") from error
    try:
        held.note(force=True)
        if strangers := _strangers(folder, rank):
            raise _held(folder, strangers[0])
        yield held
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def holders(folder: Path) -> list[dict[str, Any]]:
    """Return what the processes that hold the folder now say of themselves."""
    found = []
    for lock in sorted(folder.glob(".lock-*")):
        rank = int(lock.name.removeprefix(".lock-"))
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            found.append({**_read(_note_file(folder, rank)), "rank": rank})
    return found


def _strangers(folder: Path, rank: Rank) -> list[dict[str, Any]]:
    """Holders that belong to another job. One of this job may have its lock a moment before it has said so."""
    until = time.monotonic() + _PATIENCE
    while True:
        others = (other for other in holders(folder) if other["rank"] != rank.rank)
        found = [other for other in others if other.get("job") != rank.job]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.02)


def _lock_file(folder: Path, rank: int) -> Path:
    return folder / f".lock-{rank:05d}"


def _note_file(folder: Path, rank: int) -> Path:
    return folder / f".worker-{rank:05d}.json"


def _read(note: Path) -> dict[str, Any]:
    try:
        return read_object(note)
    except DyntsError:  # it is gone, or was never finished
        return {}


def _held(folder: Path, about: dict[str, Any]) -> DyntsError:
    who = f"process {about['pid']} on {about['host']} ({about['command']})" if "pid" in about else "another process"
    return DyntsError(f"{folder} is in use by {who}: wait until it ends, end it, or choose another folder")
