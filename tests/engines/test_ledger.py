"""The ledger against lists and sorting, over several compactions: no engine needed."""

import random
from itertools import product

import pytest
import torch

from dynts.chat.markers import ThinkMarkers
from dynts.chat.scanner import ThinkScanner
from dynts.config import CompressionConfig
from dynts.engines.ledger import Ledger

OPEN, CLOSE = 5, 6


class Plain:
    """One request as one layer and head have it, kept in lists; its cache says which position each slot holds."""

    def __init__(self, prompt: list[int], schedule: CompressionConfig, competes: bool) -> None:
        self.prompt, self.schedule, self.competes = prompt, schedule, competes
        self.tokens, self.scores = list(prompt), [0.0] * len(prompt)
        self.slots = list(range(len(prompt)))
        self.cache = list(range(len(prompt)))  # what physically stands in each slot

    def feed(self, token: int, score: float) -> None:
        self.cache.append(len(self.tokens))
        self.slots.append(len(self.tokens))
        self.tokens.append(token)
        self.scores.append(score)

    def compact(self) -> None:
        question, window = 0 if self.competes else len(self.prompt), self.schedule.local_window
        closed, answer = False, []
        for token in self.tokens:
            answer.append(closed)
            closed = token == CLOSE or (closed and token != OPEN)
        if self.competes:
            answer = [False] * len(answer)
        middle = self.slots[question : len(self.slots) - window]
        best = sorted(middle, key=lambda at: (answer[at], self.scores[at] if not answer[at] else 0.0, at), reverse=True)
        keep = set(best[: self.schedule.kept_tokens(len(self.prompt)) - question - window])
        self.slots = [
            *self.slots[:question],
            *(at for at in middle if at in keep),
            *self.slots[len(self.slots) - window :],
        ]


@pytest.mark.parametrize("sets", [None, (2, 3)], ids=["shared", "native"])
@pytest.mark.parametrize("competes", [False, True], ids=["question kept", "question competes"])
def test_survivors_of_several_compactions(sets: tuple[int, int] | None, competes: bool) -> None:
    chance = random.Random(0)
    schedule = CompressionConfig(budget=40, local_window=8, retention_ratio=0.5)
    scanner = None if competes else ThinkScanner.of_ids(ThinkMarkers((OPEN,), (CLOSE,)))
    ledger = Ledger(schedule, scanner, 3, 400, torch.device("cpu"), sets, protect_question=not competes)
    layers, heads = sets or (1, 1)
    requests = {
        name: [[Plain(prompt, schedule, competes) for _ in range(heads)] for _ in range(layers)]
        for name, size in zip("abc", (9, 4, 20), strict=True)
        for prompt in [[chance.randrange(8, 60) for _ in range(size)]]
    }
    for name, own in requests.items():
        prompt = own[0][0].prompt
        ledger.start(name, prompt)
        if competes:
            scores = torch.rand(len(prompt), layers, heads, generator=torch.Generator().manual_seed(len(prompt)))
            rows = torch.full((len(prompt),), ledger.entries[name].row)
            ledger.note_scores(rows, torch.arange(len(prompt)), scores if sets else scores[:, 0, 0])
            for layer, head in product(range(layers), range(heads)):
                own[layer][head].scores = scores[:, layer, head].tolist()
    compactions = apart = 0
    for step in range(150):
        for name, own in requests.items():
            first = own[0][0]
            token = chance.choice([OPEN, CLOSE, *range(8, 60)]) if step > 40 else chance.randrange(8, 60)
            entry = ledger.entries[name]
            rows, position = torch.tensor([entry.row]), torch.tensor([len(first.tokens)])
            ledger.note_tokens(rows, position, torch.tensor([token]))
            # some equal ones
            scores = [[chance.choice([0.0, chance.random()]) for _ in range(heads)] for _ in range(layers)]
            ledger.note_scores(rows, position - entry.evicted, torch.tensor([scores] if sets else scores[0]))
            for layer, of_heads in zip(own, scores, strict=True):
                for request, score in zip(layer, of_heads, strict=True):
                    request.feed(token, score)
        due = [name for name, own in requests.items() if len(own[0][0].slots) == schedule.budget]
        if not due:
            continue
        kept = ledger.choose(due)
        assert kept.shape == (len(due), layers * heads, schedule.budget)
        moves = ledger.evict(due, kept)
        source = moves.source if sets else moves.source[None, :, None]
        assert source.shape == (layers, len(moves.target), heads)
        for index, name in enumerate(due):
            mine = moves.which == index
            for layer, head in product(range(layers), range(heads)):
                request = requests[name][layer][head]
                before = list(request.cache)
                for read, target in zip(source[layer, mine, head].tolist(), moves.target[mine].tolist(), strict=True):
                    assert competes or target >= len(request.prompt), "the prompt stays where it is"
                    request.cache[target] = before[read]
                request.compact()
                del request.cache[len(request.slots) :]
                assert request.cache == request.slots
                assert ledger.entries[name].evicted == len(request.tokens) - len(request.slots)
                assert ledger.entries[name].settled == schedule.kept_tokens(len(request.prompt))
            compactions += 1
            apart += len({tuple(request.slots) for layer in requests[name] for request in layer}) > 1
    assert compactions > 20
    assert (apart > 10) == (sets is not None), "heads must differ, or nothing shows that each has its own"


def test_the_tables_are_as_large_as_stated() -> None:
    schedule = CompressionConfig(budget=5000, local_window=2000)
    device = torch.device("cpu")
    shared = Ledger(schedule, None, rows=3, length=32_768, device=device)
    native = Ledger(schedule, None, rows=3, length=32_768, device=device, sets=(4, 2))
    assert shared.bytes == 3 * (4 * 32_768 + 4 * 5000)
    assert native.bytes == 3 * (4 * 32_768 + 4 * 5000 * 4 * 2)
    assert shared.at_once > native.at_once >= 1


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
