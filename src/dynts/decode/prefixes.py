"""What prompts begin with alike, such as a system prompt: read once, and copied into the rows that begin with it."""

from collections import OrderedDict, deque
from collections.abc import Sequence

from dynts.cache.cache import BudgetCache

LEAST = 64
"""Fewer tokens are read about as fast as they are copied."""
_PROMPTS = 16
"""Latest prompts that a new one is compared with."""


class SharedPrefixes:
    """Caches of prefixes that at least two prompts had.

    Args:
        most: caches to keep, those that were used last. Each takes up as much as the tokens of its prefix, of one row.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._caches: OrderedDict[tuple[int, ...], BudgetCache] = OrderedDict()
        self._recent: deque[tuple[int, ...]] = deque(maxlen=_PROMPTS)

    def find(self, prompt: Sequence[int]) -> BudgetCache | None:
        """Return the cache of the longest known prefix of a prompt, which leaves at least a token to read; or None."""
        tokens = tuple(prompt)
        fitting = [prefix for prefix in self._caches if len(prefix) < len(tokens) and tokens[: len(prefix)] == prefix]
        if not fitting:
            return None
        longest = max(fitting, key=len)
        self._caches.move_to_end(longest)
        return self._caches[longest]

    def cut(self, prompt: Sequence[int]) -> int | None:
        """Return how many of a prompt's tokens a recent one began with too, if it is worth keeping them; None if not.

        The prompt counts as a recent one from now on.
        """
        tokens = tuple(prompt)
        shared = max((_common(tokens, other) for other in self._recent), default=0)
        if tokens not in self._recent:
            self._recent.append(tokens)
        shared = min(shared, len(tokens) - 1)
        known = max((len(prefix) for prefix in self._caches if tokens[: len(prefix)] == prefix), default=0)
        return shared if shared >= known + LEAST else None

    def keep(self, prefix: Sequence[int], cache: BudgetCache) -> None:
        """Keep a cache of a prefix.

        Args:
            prefix: its tokens.
            cache: of one row, which was fed just these.
        """
        self._caches[tuple(prefix)] = cache
        while len(self._caches) > self.most:
            self._caches.popitem(last=False)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
