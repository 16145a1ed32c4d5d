"""What transformers calls the cache: `past_key_values`, and from 5.24 on `cache`. No other module knows both names.

From 5.24 on forward passes take the old name too, and warn, until 5.40. The new name is unknown before.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.masking_utils import create_causal_mask

_OLD = "past_key_values"

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else _OLD
"""The installed transformers' own name: of forward passes, generate() and mask functions, and of the field in their outputs."""


def cache_keyword(arguments: Mapping[str, Any]) -> str:
    """The name under which arguments hold a cache: if both, the one that transformers listens to; `CACHE` if neither."""
    return _OLD if _OLD in arguments and CACHE not in arguments else CACHE


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache that a caller passes to a forward pass or generate(), under either name, or None."""
    return arguments.get(cache_keyword(arguments))
