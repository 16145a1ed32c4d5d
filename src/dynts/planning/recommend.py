"""A setting to start from: the published one, scaled to the length and checked against the memory."""

from dataclasses import dataclass

from dynts.config import CompressionConfig
from dynts.planning.cost import Planner, Workload

PUBLISHED_LENGTH = 16_384
PUBLISHED_BUDGETS = (5000, 3000)
"""Of AIME, AMC and GPQA, and of GK23EN and MATH500 (arXiv 2601.18383, section 5)."""
WINDOW_SHARE = 0.4
"""W_l / B of the larger budget, on both models."""
RETENTION_RATIOS = {"llama": 0.3}
"""By model type. Qwen2's 0.4 stands for all others."""
QUESTION_SHARE = 0.1
"""A question that takes more of the budget than this comes on top of it."""
_LEAST = 8


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A setting, and how it was found.

    Attributes:
        schedule: the setting; None where nothing has to be evicted, or nothing fits.
        reasons: sentences.
    """

    schedule: CompressionConfig | None
    reasons: list[str]

    def describe(self) -> str:
        """In one line."""
        found = "no recommendation"
        if self.schedule is not None:
            found = f"recommended: {self.schedule.describe()}"
        return f"{found} ({'; '.join(self.reasons)})"


def recommend(planner: Planner, work: Workload, model_type: str) -> Recommendation:
    """Recommend the larger of the published budgets, scaled to the length.

    Where the sequences do not fit into the memory, it is the largest one that does, down to the smaller published
    budget.

    Args:
        planner: the model on its device.
        work: what is generated.
        model_type: of the model's configuration, such as "llama".
    """
    largest, smallest = (max(_LEAST, round(budget * work.length / PUBLISHED_LENGTH)) for budget in PUBLISHED_BUDGETS)
    whole = work.question + work.length
    if whole <= largest:
        return Recommendation(None, [f"{whole} tokens need no eviction"])
    ratio = RETENTION_RATIOS.get(model_type, 0.4)
    reasons = [f"{PUBLISHED_BUDGETS[0]} was published for {PUBLISHED_LENGTH} generated tokens"]
    if work.length != PUBLISHED_LENGTH:
        reasons.append(f"scaled to {work.length} that is {largest}")
    for share in range(largest, smallest - 1, -max(1, largest // 100)):
        on_top = work.question if work.question > QUESTION_SHARE * share else 0
        schedule = CompressionConfig(share + on_top, round(WINDOW_SHARE * share), ratio)
        waiting = schedule.budget - schedule.kept_tokens(work.question)
        if planner.fitting(planner.sequence_bytes(schedule.budget, waiting), predictor=True) >= work.sequences:
            break
    else:
        return Recommendation(
            None,
            [
                f"{work.sequences} sequences at a time do not fit into the memory, not even with a budget of "
                f"{smallest} ({PUBLISHED_BUDGETS[1]} were published too): take fewer, or a larger device"
            ],
        )
    if share < largest:
        reasons.append(f"lowered to {share}, with which {work.sequences} sequences fit into the memory")
    if on_top:
        reasons.append(f"the question's {on_top} tokens come on top")
    reasons.append(f"the local window is {WINDOW_SHARE:.0%} of that and the retention ratio {ratio}, as published")
    return Recommendation(schedule, reasons)
