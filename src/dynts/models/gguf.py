"""Read the header of a GGUF file: its metadata and the list of its tensors.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads it too,
but makes several numpy arrays for every token of the vocabulary: 25 times as slow, and 0.8 GB for 262,144 tokens. And
of a file that has been cut it cannot say where it should end.
"""

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

from dynts.errors import DyntsError

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says of itself.

    Args:
        path: the file.
        metadata: values by their keys, such as "tokenizer.ggml.tokens".
        tensors: name of each tensor's type, such as "Q4_K", by the tensor's name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a header; none of the weights are read.

        Raises:
            DyntsError: the file is no GGUF file, cut, damaged, or only a part of a split one, or the gguf package is
                missing.
        """
        path = path.resolve()
        return cls(path, *_read_header(path, path.stat().st_mtime_ns))

    @property
    def float_dtype(self) -> torch.dtype | None:
        """The dtype that the weights were written in; None where some are quantised."""
        # norms stay in float32 beside weights of half precision, so the narrowest is the model's
        return min((_FLOATS.get(kind) for kind in self.tensors.values()), key=_width, default=None)

    @property
    def quantised(self) -> list[str]:
        """Names of the types of quantised tensors, the one with most tensors first."""
        kinds = [kind for kind in self.tensors.values() if kind not in _FLOATS]
        return sorted(set(kinds), key=kinds.count, reverse=True)

    @property
    def scaled_positions(self) -> str | None:
        """Name of what says that rotary positions are scaled, as in Llama 3.1 and by YaRN; None if nothing does."""
        tensors = [name for name in self.tensors if name.startswith(("rope_freqs.", "rope_factors_"))]
        prefix = f"{self.metadata.get('general.architecture')}.rope.scal"
        keys = [
            key for key, value in self.metadata.items() if key.startswith(prefix) and value not in ("none", 0.0, 1.0)
        ]
        return next(iter(tensors + keys), None)

    def token_ids(self, *roles: str) -> list[int]:
        """Return the ids of tokens by their roles, such as "bos", without those that the file does not name."""
        ids = (self.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in roles)
        return [token for token in ids if token is not None]


def _width(dtype: torch.dtype | None) -> int:
    return 0 if dtype is None else dtype.itemsize


# a command reads the header for the configuration, the tokenizer and the weights
@lru_cache(maxsize=1)
def _read_header(path: Path, modified: int) -> tuple[dict[str, Any], dict[str, str]]:
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise DyntsError(f"{path} is not a GGUF file: its first four bytes are not 'GGUF'; download it again")
        try:
            return _Header(path, stream).parse()
        except DyntsError:
            raise
        except (KeyError, UnicodeDecodeError, ValueError) as error:
            raise DyntsError(f"the header of {path} is damaged ({error!r}): download the file again") from error


class _Header:
    """A header as it is read, front to back."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = path.stat().st_size

    def parse(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Metadata, and the types of the tensors."""
        (version,) = self.numbers("I")
        if version not in _VERSIONS:
            raise DyntsError(f"{self.path} is of GGUF version {version}: dynts reads versions 2 and 3, little-endian")
        tensor_count, key_count = self.numbers("2Q")
        metadata = {self.string(): self.value(*self.numbers("I")) for _ in range(key_count)}
        _refuse_parts(self.path, metadata)
        tensors = {}
        end = 0
        for _ in range(tensor_count):
            name = self.string()
            elements = prod(self.numbers(f"{self.numbers('I')[0]}Q"))
            kind, offset = self.numbers("IQ")
            tensors[name], size = _tensor_type(self.path, kind, elements)
            end = max(end, offset + size)
        alignment = metadata.get("general.alignment", 32)
        end += -(-self.stream.tell() // alignment) * alignment
        if tensors and self.size < end:
            raise self.cut(f"its tensors end at byte {end:,}")
        return metadata, tensors

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.numbers("IQ")
            if item in _SCALARS:
                return list(self.numbers(f"{count}{_SCALARS[item]}"))
            return [self.value(item) for _ in range(count)]
        return self.numbers(_SCALARS[kind])[0]

    def string(self) -> str:
        return self.take(self.numbers("Q")[0]).decode()

    def numbers(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def take(self, size: int) -> bytes:
        data = self.stream.read(size) if size <= self.size else b""
        if len(data) < size:
            raise self.cut("its header goes on")
        return data

    def cut(self, where: str) -> DyntsError:
        return DyntsError(f"{self.path} has been cut: it has {self.size:,} bytes, and {where}; download it again")


def _refuse_parts(path: Path, metadata: dict[str, Any]) -> None:
    named = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", path.name)
    parts = metadata.get("split.count", 1 if named is None else int(named[2]))
    if parts > 1:
        number = metadata.get("split.no", -1 if named is None else int(named[1]) - 1) + 1
        raise DyntsError(
            f"{path} is part {number} of {parts} of a split GGUF file, and transformers reads one file only: merge the "
            "parts with llama.cpp's `llama-gguf-split --merge FIRST_PART MERGED`"
        )


def _tensor_type(path: Path, kind: int, elements: int) -> tuple[str, int]:
    """Return the name of a tensor's type, and the bytes of its elements."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise DyntsError(
            f"{path} has a tensor of type {kind}, which the gguf package does not know: pip install --upgrade gguf"
        ) from None
    block, size = GGML_QUANT_SIZES[known]
    return known.name, elements // block * size
