"""Labelled traces on disk: a folder with a manifest and one safetensors file per trace.

A shard is written under a temporary name and renamed, so a file that carries its final name is whole; a checksum finds
the ones that were damaged later. The shard's name is the trace's place in the trace file, which the manifest pins by
its hash, so running the same command again does the missing traces and no other.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dynts.errors import DyntsError
from dynts.store.files import write_whole, writing_to
from dynts.store.manifest import MANIFEST_FILE, read_manifest, settle

MADE_BY = "dynts label"


@dataclass(frozen=True, slots=True)
class Shard:
    """One trace of L labelled tokens: those of its thinking, or all.

    Args:
        hidden: hidden states [T, d] of the stored tokens.
        rows: int64 [T], which of the L tokens these are.
        ids: int64 [L], token ids.
        labels: float32 [L] by label name; for each layer and KV head, [L, layers, KV heads].
        info: strings; "id", "question" (its key), "correct", and the other columns of the trace.
    """

    hidden: torch.Tensor
    rows: torch.Tensor
    ids: torch.Tensor
    labels: dict[str, torch.Tensor]
    info: dict[str, str]


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """A folder of shards; `create` or `open` it."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def create(
        cls, path: str | Path, settings: Mapping[str, Any], facts: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    ) -> Self:
        """Start a folder, or continue one with the same settings; see `dynts.store.manifest.settle`.

        Args:
            path: the folder.
            settings: what determines the shards; must match on resuming.
            facts: what the manifest records besides (counts); "indices" says which shards make it complete.

        Raises:
            DyntsError: the folder holds other things, or other settings; the differing fields are named.
        """
        settle(path, settings, MADE_BY, facts)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing folder.

        Raises:
            DyntsError: no manifest, or a damaged one.
        """
        path = Path(path)
        manifest = read_manifest(path, MADE_BY)
        if not isinstance(manifest.get("indices"), list):
            raise DyntsError(
                f"{path / MANIFEST_FILE} is not a manifest of shards: give a folder written by `{MADE_BY}`"
            )
        return cls(path, manifest)

    def file(self, index: int) -> Path:
        """Return where the shard of the index-th trace of the trace file lies."""
        return self.path / f"{index:06d}.safetensors"

    def is_whole(self, index: int) -> bool:
        """Return whether that shard exists and its checksum is right."""
        try:
            with safe_open(self.file(index), framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                return bool(stored.metadata()["checksum"] == _checksum(tensors))
        except (OSError, SafetensorError, KeyError, TypeError):
            return False

    def write(self, index: int, shard: Shard) -> None:
        """Write a shard, all or nothing.

        Args:
            index: of the trace.
            shard: its labels and hidden states.

        Raises:
            DyntsError: the disk is full or not writable.
        """
        tensors = {"hidden": shard.hidden, "rows": shard.rows, "ids": shard.ids}
        tensors |= {f"label.{name}": values for name, values in shard.labels.items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {**shard.info, "checksum": _checksum(tensors)}
        with _writing(self.path):
            write_whole(self.file(index), lambda partial: save_file(tensors, partial, metadata=metadata))

    def read(self, index: int) -> Shard:
        """Read a shard; the file is memory-mapped, not loaded whole first.

        Raises:
            DyntsError: missing or damaged.
        """
        try:
            with safe_open(self.file(index), framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                info = dict(stored.metadata())
            labels = {
                name.removeprefix("label."): tensors.pop(name) for name in list(tensors) if name.startswith("label.")
            }
            return Shard(**tensors, labels=labels, info=info)
        except (OSError, SafetensorError, TypeError) as error:
            raise DyntsError(
                f"{self.file(index)} is missing or damaged ({error}): run the `dynts label` command that made "
                f"{self.path} again, it redoes missing and damaged shards"
            ) from error

    @property
    def indices(self) -> list[int]:
        """Return the shards of the complete folder."""
        return list(self.manifest["indices"])


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    with writing_to(path):
        try:
            yield
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        # numpy knows no bfloat16, but every dtype has bytes
        value = zlib.crc32(
            tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), value)
        )
    return f"{value:08x}"
