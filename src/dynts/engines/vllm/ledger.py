"""Which tokens of each running request are cached, and which of them survive a compaction. No engine in sight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dynts.cache.selection import left_align, survivors
from dynts.chat.scanner import ThinkScanner
from dynts.config import CompressionConfig


@dataclass(slots=True)
class Entry:
    """One request.

    Attributes:
        row: of the ledger's tables.
        question: tokens of the prompt, which stay in the first slots.
        evicted: tokens that it no longer holds.
        settled: slots that the latest compaction filled.
    """

    row: int
    question: int
    evicted: int = 0
    settled: int = 0


@dataclass(frozen=True, slots=True)
class Moves:
    """Where the survivors of a compaction go; the first slots, which hold the prompt, are left out.

    Attributes:
        which: int64 [n], of the compacted requests, on the device.
        source: int64 [n], slot of the request that a token leaves, on the device.
        target: int64 [n], slot that it moves to, on the device.
    """

    which: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


class Ledger:
    """Tables on the device with a row for each request.

    A decode step adds to them without a host-device synchronisation.

    Args:
        schedule: the budget.
        scanner: finds where thinking ends; None treats all generated tokens as thinking.
        rows: most requests at a time.
        length: most tokens of a request, evicted ones included.
        device: of the tables.
    """

    def __init__(
        self, schedule: CompressionConfig, scanner: ThinkScanner | None, rows: int, length: int, device: torch.device
    ) -> None:
        self.schedule = schedule
        self.scanner = scanner
        self.device = device
        self.entries: dict[str, Entry] = {}
        self._free = list(range(rows))
        self._tokens = torch.zeros(rows, length, dtype=torch.int32, device=device)
        self._scores = torch.zeros(rows, length, dtype=torch.float32, device=device)
        self._positions = torch.zeros(rows, schedule.budget, dtype=torch.int64, device=device)

    def start(self, request: str, prompt: Sequence[int]) -> None:
        """Start a request, or start it anew after a preemption.

        Args:
            request: its id.
            prompt: its token ids.
        """
        entry = self.entries.get(request)
        row = self._free.pop() if entry is None else entry.row
        self.entries[request] = Entry(row, len(prompt))
        self._tokens[row, : len(prompt)] = self.upload(np.asarray(prompt, dtype=np.int32))

    def finish(self, request: str) -> None:
        """Forget a request that has ended or was preempted."""
        entry = self.entries.pop(request, None)
        if entry is not None:
            self._free.append(entry.row)

    def note_tokens(self, rows: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor) -> None:
        """Note tokens that are fed.

        Args:
            rows: int64 or int32 [n]: of the tables.
            positions: [n], likewise: in the sequence.
            tokens: [n], likewise: their ids.
        """
        self._tokens[rows, positions] = tokens.to(self._tokens.dtype)

    def note_scores(self, rows: torch.Tensor, positions: torch.Tensor, scores: torch.Tensor) -> None:
        """Note the predicted importance of tokens.

        Args:
            rows: int64 [n]: of the tables.
            positions: int64 [n]: in the sequence.
            scores: float32 [n].
        """
        self._scores[rows, positions] = scores

    def choose(self, due: Sequence[str]) -> torch.Tensor:
        """Choose the slots to keep of requests that have reached the budget, bool [len(due), budget]."""
        entries = [self.entries[request] for request in due]
        rows = self.upload([entry.row for entry in entries])
        questions = self.upload([entry.question for entry in entries])
        keep = self.upload([self.schedule.kept_tokens(entry.question) for entry in entries])
        positions = self._current_positions(entries, rows)
        slot = torch.arange(self.schedule.budget, device=self.device)
        answer = None
        if self.scanner is not None:
            fed = self.schedule.budget + max(entry.evicted for entry in entries)
            answer = self.scanner.after_thinking(self._tokens[rows, :fed]).gather(1, positions)[:, None]
        return survivors(
            self._scores[rows].gather(1, positions)[:, None],
            torch.full_like(keep, self.schedule.budget),
            keep,
            self.schedule.local_window,
            question=(slot < questions[:, None])[:, None],
            answer=answer,
        )[:, 0]

    def evict(self, due: Sequence[str], kept: torch.Tensor) -> Moves:
        """Forget all other tokens, and say where the kept ones go.

        Args:
            due: requests that have reached the budget.
            kept: as `choose` gives it.
        """
        entries = [self.entries[request] for request in due]
        rows = self.upload([entry.row for entry in entries])
        keep = np.array([self.schedule.kept_tokens(entry.question) for entry in entries])
        questions = np.array([entry.question for entry in entries])
        index = left_align(kept, int(keep.max()))
        self._positions[rows, : index.shape[1]] = self._current_positions(entries, rows).gather(1, index)
        for entry, count in zip(entries, keep.tolist(), strict=True):
            entry.evicted += self.schedule.budget - count
            entry.settled = count
        which = np.repeat(np.arange(len(due)), keep - questions)
        target = np.concatenate([np.arange(*ends) for ends in zip(questions, keep, strict=True)])
        on_device = self.upload(which), self.upload(target)
        return Moves(on_device[0], index[on_device], on_device[1])

    def upload(self, values: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Numbers of the host on the device, int64 unless they have a dtype, without waiting for the device."""
        tensor = torch.as_tensor(values)
        if self.device.type != "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _current_positions(self, entries: Sequence[Entry], rows: torch.Tensor) -> torch.Tensor:
        """int64 [entries, budget]: the position in the sequence of the token in each slot."""
        slot = torch.arange(self.schedule.budget, device=self.device)
        settled, evicted = (
            self.upload(counts)[:, None]
            for counts in ([entry.settled for entry in entries], [entry.evicted for entry in entries])
        )
        return torch.where(slot < settled, self._positions[rows], slot + evicted)
