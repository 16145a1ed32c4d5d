"""What a cache remembers of every token it was fed, evicted or not: a few bytes a token, looked up at compactions only."""

from collections.abc import Sequence

import torch

from dynts.cache.step import Turn
from dynts.thinking import ThinkScanner


class History:
    """Tables over columns, the running number of a token in its (padded) sequence.

    Appending keeps references only, so a decode step costs no kernel; the tables are put together when one is asked for.

    Args:
        scanner: finds where thinking ends; None treats all generated tokens as thinking.
    """

    def __init__(self, scanner: ThinkScanner | None) -> None:
        self.scanner = scanner
        self._tokens: list[torch.Tensor] = []
        self._positions: list[torch.Tensor] = []

    def append(self, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        """Add columns.

        Args:
            tokens: int64 [batch, columns], -1 where the token is unknown (input embeddings).
            positions: int64 [batch or 1, columns], the tokens' rotary positions, -1 for padding.
        """
        self._tokens.append(tokens)
        self._positions.append(positions.expand_as(tokens))

    def truncate(self, columns: int) -> None:
        """Forget all columns but the first ones: a pass that failed had added some."""
        for parts in (self._tokens, self._positions):
            if sum(part.shape[1] for part in parts) > columns:
                parts[:] = [torch.cat(parts, dim=1)[:, :columns]] if columns else []

    def hide(self, shown: torch.Tensor) -> None:
        """Take tokens for padding from now on. shown: bool [batch, columns so far], False for those."""
        self._positions = [self.positions().masked_fill(~shown, -1)]

    def tokens(self) -> torch.Tensor:
        """Token ids of all columns: int64 [batch, columns], -1 where unknown."""
        self._tokens = [torch.cat(self._tokens, dim=1)]
        return self._tokens[0]

    def positions(self) -> torch.Tensor:
        """Logical positions of all columns: int64 [batch, columns], -1 for padding."""
        self._positions = [torch.cat(self._positions, dim=1)]
        return self._positions[0]

    def answer(self, turns: Sequence[Turn]) -> torch.Tensor:
        """bool [batch, columns]: tokens after the marker that ended the thinking of their turn. turns: all so far."""
        tokens = self.tokens()
        answer = torch.zeros_like(tokens, dtype=torch.bool)
        if self.scanner is None:
            return answer
        ends = [turn.start for turn in turns[1:]] + [tokens.shape[1]]
        for turn, end in zip(turns, ends, strict=True):
            answer[:, turn.start : end] = self.scanner.after_thinking(tokens[:, turn.start : end])
        return answer
