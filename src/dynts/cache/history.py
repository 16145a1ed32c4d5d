"""What a cache remembers of every token it was fed, evicted or not: a few bytes a token, looked up at compactions only."""

import torch

from dynts.thinking import ThinkScanner


class History:
    """Tables over columns, the running number of a token in its (padded) sequence.

    Appending keeps references only, so a decode step costs no kernel; the tables are put together when one is asked for.

    Args:
        scanner: finds where thinking ends; None treats all generated tokens as thinking.
    """

    def __init__(self, scanner: ThinkScanner | None) -> None:
        self.scanner = scanner
        self.turns: list[tuple[int, int]] = []
        self._tokens: list[torch.Tensor] = []
        self._positions: list[torch.Tensor] = []

    def append(self, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        """Add columns.

        Args:
            tokens: int64 [batch, columns], -1 where the token is unknown (input embeddings).
            positions: int64 [batch or 1, columns], the tokens' rotary positions; padding holds any value.
        """
        self._tokens.append(tokens)
        self._positions.append(positions.expand_as(tokens))

    def tokens(self) -> torch.Tensor:
        """Token ids of all columns: int64 [batch, columns]."""
        self._tokens = [torch.cat(self._tokens, dim=1)]
        return self._tokens[0]

    def positions(self) -> torch.Tensor:
        """Logical positions of all columns: int64 [batch, columns]."""
        self._positions = [torch.cat(self._positions, dim=1)]
        return self._positions[0]

    def question(self, columns: torch.Tensor) -> torch.Tensor:
        """bool, shaped as `columns`: whether a column belongs to a question or a later user turn."""
        inside = torch.zeros_like(columns, dtype=torch.bool)
        for start, end in self.turns:
            inside |= (columns >= start) & (columns < end)
        return inside

    def answer(self) -> torch.Tensor:
        """bool [batch, columns]: tokens after the marker that ended the thinking of their turn."""
        tokens = self.tokens()
        answer = torch.zeros_like(tokens, dtype=torch.bool)
        if self.scanner is None:
            return answer
        ends = [start for start, _ in self.turns[1:]] + [tokens.shape[1]]
        for (start, _), end in zip(self.turns, ends, strict=True):
            answer[:, start:end] = self.scanner.after_thinking(tokens[:, start:end])
        return answer
