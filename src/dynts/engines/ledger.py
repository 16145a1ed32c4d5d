"""Which tokens of each running request are cached, and which of them survive a compaction. No engine in sight."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from dynts.cache.selection import left_align, survivors
from dynts.chat.scanner import ThinkScanner
from dynts.config import CompressionConfig
from dynts.models.pieces import piece_bytes

_WORKING_BYTES = 40
"""What choosing takes for a slot of a set: the scores, copies of them, and their order."""


@dataclass(slots=True)
class Entry:
    """One request.

    Attributes:
        row: of the ledger's tables.
        question: tokens of the prompt.
        pinned: first slots, which hold the prompt and are kept anyway; none where the question competes.
        evicted: tokens that it no longer holds.
        settled: slots that the latest compaction filled.
    """

    row: int
    question: int
    pinned: int
    evicted: int = 0
    settled: int = 0


@dataclass(frozen=True, slots=True)
class Moves:
    """Where the survivors of a compaction go; pinned slots, which stay, are left out.

    Attributes:
        which: int64 [n], of the compacted requests, on the device.
        source: int64 [n], slot of the request that a token leaves, on the device; where each layer and KV head keeps
            tokens of its own [layers, n, KV heads].
        target: int64 [n], slot that it moves to, on the device.
    """

    which: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


class Ledger:
    """Tables on the device with a row for each request.

    A decode step adds to them without a host-device synchronisation. Scores have the slots of their tokens' keys and
    values, so their table is as wide as the budget, whatever the length of a sequence.

    Args:
        schedule: the budget.
        scanner: finds where thinking ends; None treats all generated tokens as thinking.
        rows: most requests at a time.
        length: most tokens of a request, evicted ones included.
        device: of the tables.
        sets: (layers, KV heads) that each keep tokens of their own, those of this rank; None for one set of tokens.
        protect_question: keep the prompt anyway, where it is.
    """

    def __init__(
        self,
        schedule: CompressionConfig,
        scanner: ThinkScanner | None,
        rows: int,
        length: int,
        device: torch.device,
        sets: tuple[int, int] | None = None,
        protect_question: bool = True,
    ) -> None:
        self.schedule = schedule
        self.scanner = scanner
        self.device = device
        self.protect_question = protect_question
        self.entries: dict[str, Entry] = {}
        self._sets = sets or ()
        self._free = list(range(rows))
        self._tokens = torch.zeros(rows, length, dtype=torch.int32, device=device)
        self._scores = torch.zeros(rows, prod(self._sets), schedule.budget, dtype=torch.float32, device=device)

    @property
    def bytes(self) -> int:
        """Bytes of the tables."""
        return self._tokens.nbytes + self._scores.nbytes

    @property
    def at_once(self) -> int:
        """How many requests to compact at a time, so that what it takes is bounded."""
        return max(1, piece_bytes(self.device) // (_WORKING_BYTES * self._scores[0].numel()))

    def start(self, request: str, prompt: Sequence[int]) -> None:
        """Start a request, or start it anew after a preemption.

        Args:
            request: its id.
            prompt: its token ids.
        """
        entry = self.entries.get(request)
        row = self._free.pop() if entry is None else entry.row
        self.entries[request] = Entry(row, len(prompt), len(prompt) if self.protect_question else 0)
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

    def note_scores(self, rows: torch.Tensor, slots: torch.Tensor, scores: torch.Tensor) -> None:
        """Note the predicted importance of tokens; those that are pinned need none.

        Args:
            rows: int64 [n]: of the tables.
            slots: int64 [n]: of the request, the position in the sequence less the evicted tokens.
            scores: float32 [n]; where each layer and KV head keeps tokens of its own [n, layers, KV heads].
        """
        self._scores[rows, :, slots] = scores.view(-1, self._scores.shape[1])

    def choose(self, due: Sequence[str]) -> torch.Tensor:
        """Choose the slots to keep of requests that have reached the budget, bool [len(due), sets, budget].

        It takes memory for each of them: see `at_once`.
        """
        entries = [self.entries[request] for request in due]
        rows = self.upload([entry.row for entry in entries])
        pinned = self.upload([entry.pinned for entry in entries])
        keep = self.upload([self.schedule.kept_tokens(entry.question) for entry in entries])
        slot = torch.arange(self.schedule.budget, device=self.device)
        scores = self._scores[rows]
        if self.scanner is not None:
            # written into the table, because it moves with the token, whose position is not known afterwards
            scores.masked_fill_(self._new_answers(self.scanner, entries, rows)[:, None], float("inf"))
            self._scores[rows] = scores
        return survivors(
            scores,
            torch.full_like(keep, self.schedule.budget),
            keep,
            self.schedule.local_window,
            question=(slot < pinned[:, None])[:, None],
        )

    def evict(self, due: Sequence[str], kept: torch.Tensor) -> Moves:
        """Forget all other tokens, and say where the kept ones go.

        Args:
            due: requests that have reached the budget.
            kept: as `choose` gives it.
        """
        entries = [self.entries[request] for request in due]
        rows = self.upload([entry.row for entry in entries])
        keep = np.array([self.schedule.kept_tokens(entry.question) for entry in entries])
        pinned = np.array([entry.pinned for entry in entries])
        index = left_align(kept, int(keep.max()))
        self._scores[rows, :, : index.shape[2]] = self._scores[rows].gather(2, index)
        for entry, count in zip(entries, keep.tolist(), strict=True):
            entry.evicted += self.schedule.budget - count
            entry.settled = count
        which = self.upload(np.repeat(np.arange(len(due)), keep - pinned))
        target = self.upload(np.concatenate([np.arange(*ends) for ends in zip(pinned, keep, strict=True)]))
        source = index[which, :, target].reshape(len(which), *self._sets)
        return Moves(which, source.transpose(0, 1) if self._sets else source, target)

    def upload(self, values: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Numbers of the host on the device, int64 unless they have a dtype, without waiting for the device."""
        tensor = torch.as_tensor(values)
        if self.device.type != "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _new_answers(self, scanner: ThinkScanner, entries: Sequence[Entry], rows: torch.Tensor) -> torch.Tensor:
        """bool [entries, budget]: slots with an answer token that was fed since the latest compaction."""
        settled, evicted = (
            self.upload(counts)[:, None]
            for counts in ([entry.settled for entry in entries], [entry.evicted for entry in entries])
        )
        slot = torch.arange(self.schedule.budget, device=self.device)
        fed = self.schedule.budget + max(entry.evicted for entry in entries)
        return scanner.after_thinking(self._tokens[rows, :fed]).gather(1, slot + evicted) & (slot >= settled)
