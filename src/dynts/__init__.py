"""Dynamic thinking-token selection: decode with large reasoning models under a fixed KV cache budget.

The names below load on first use, so that `import dynts` stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dynts import methods
    from dynts.cache.lengths import Compaction, GenerationStats
    from dynts.chat.markers import ThinkFormat, ThinkMarkers, think_markers
    from dynts.config import CompressionConfig
    from dynts.decode.compress import Session, compress
    from dynts.errors import DyntsError, UnsupportedError
    from dynts.predictor.model import ImportancePredictor

_HOMES = {
    "methods": "dynts.methods",
    "CompressionConfig": "dynts.config",
    "Session": "dynts.decode.compress",
    "compress": "dynts.decode.compress",
    "Compaction": "dynts.cache.lengths",
    "GenerationStats": "dynts.cache.lengths",
    "DyntsError": "dynts.errors",
    "UnsupportedError": "dynts.errors",
    "ThinkFormat": "dynts.chat.markers",
    "ThinkMarkers": "dynts.chat.markers",
    "think_markers": "dynts.chat.markers",
    "ImportancePredictor": "dynts.predictor.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dynts' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if name == "methods" else getattr(home, name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


__all__ = [
    "Compaction",
    "CompressionConfig",
    "DyntsError",
    "GenerationStats",
    "ImportancePredictor",
    "Session",
    "ThinkFormat",
    "ThinkMarkers",
    "UnsupportedError",
    "__version__",
    "compress",
    "methods",
    "think_markers",
]
