"""The ledger against lists and sorting, over several compactions: no vLLM needed."""

import random

import torch

from dynts.chat.markers import ThinkMarkers
from dynts.chat.scanner import ThinkScanner
from dynts.config import CompressionConfig
from dynts.engines.vllm.ledger import Ledger

OPEN, CLOSE = 5, 6


class Plain:
    """One request, kept in lists; its cache says for each slot which position it holds."""

    def __init__(self, prompt: list[int], schedule: CompressionConfig) -> None:
        self.prompt, self.schedule = prompt, schedule
        self.tokens, self.scores = list(prompt), [0.0] * len(prompt)
        self.slots = list(range(len(prompt)))
        self.cache = list(range(len(prompt)))  # what physically stands in each slot

    def feed(self, token: int, score: float) -> None:
        self.cache.append(len(self.tokens))
        self.slots.append(len(self.tokens))
        self.tokens.append(token)
        self.scores.append(score)

    def compact(self) -> None:
        question, window = len(self.prompt), self.schedule.local_window
        closed, answer = False, []
        for token in self.tokens:
            answer.append(closed)
            closed = token == CLOSE or (closed and token != OPEN)
        middle = self.slots[question : len(self.slots) - window]
        best = sorted(middle, key=lambda at: (answer[at], self.scores[at] if not answer[at] else 0.0, at), reverse=True)
        keep = set(best[: self.schedule.selected_tokens(question)])
        self.slots = [
            *self.slots[:question],
            *(at for at in middle if at in keep),
            *self.slots[len(self.slots) - window :],
        ]


def test_survivors_of_several_compactions() -> None:
    chance = random.Random(0)
    schedule = CompressionConfig(budget=40, local_window=8, retention_ratio=0.5)
    scanner = ThinkScanner.of_ids(ThinkMarkers((OPEN,), (CLOSE,)))
    ledger = Ledger(schedule, scanner, rows=3, length=400, device=torch.device("cpu"))
    requests = {
        name: Plain([chance.randrange(8, 60) for _ in range(size)], schedule)
        for name, size in zip("abc", (9, 4, 20), strict=True)
    }
    for name, request in requests.items():
        ledger.start(name, request.prompt)
    compactions = 0
    for step in range(150):
        for name, request in requests.items():
            token = chance.choice([OPEN, CLOSE, *range(8, 60)]) if step > 40 else chance.randrange(8, 60)
            score = chance.choice([0.0, chance.random()])  # some equal ones
            at = torch.tensor([ledger.entries[name].row]), torch.tensor([len(request.tokens)])
            ledger.note_tokens(*at, torch.tensor([token]))
            ledger.note_scores(*at, torch.tensor([score]))
            request.feed(token, score)
        due = [name for name, request in requests.items() if len(request.slots) == schedule.budget]
        if not due:
            continue
        moves = ledger.evict(due, ledger.choose(due))
        for index, name in enumerate(due):
            request = requests[name]
            mine = moves.which == index
            before = list(request.cache)
            for source, target in zip(moves.source[mine].tolist(), moves.target[mine].tolist(), strict=True):
                assert target >= len(request.prompt), "the prompt stays where it is"
                request.cache[target] = before[source]
            request.compact()
            del request.cache[len(request.slots) :]
            assert request.cache == request.slots
            assert ledger.entries[name].evicted == len(request.tokens) - len(request.slots)
            assert ledger.entries[name].settled == schedule.kept_tokens(len(request.prompt))
            compactions += 1
    assert compactions > 20


def test_a_request_that_starts_anew_forgets_its_evictions_and_rows_are_used_again() -> None:
    ledger = Ledger(CompressionConfig(budget=10, local_window=2), None, rows=2, length=50, device=torch.device("cpu"))
    ledger.start("a", [8, 9])
    ledger.evict(["a"], ledger.choose(["a"]))
    assert ledger.entries["a"].evicted > 0
    ledger.start("a", [8, 9])
    assert ledger.entries["a"].evicted == ledger.entries["a"].settled == 0
    for number in range(20):
        ledger.start(f"other {number}", [8])
        ledger.finish(f"other {number}")
    ledger.finish("unknown")
    assert list(ledger.entries) == ["a"]
