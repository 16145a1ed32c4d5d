"""How many tokens are cached at each step of a generation."""

from dynts.config import CompressionConfig


def cached_tokens(prompt: int, generated: int, schedule: CompressionConfig | None) -> tuple[list[int], int]:
    """Tokens that each decode step attends to, its own included, and the number of compactions.

    The first token comes from the prefill and the last one is not fed back, so there are `generated - 1` steps.

    Args:
        prompt: tokens of the question.
        generated: tokens generated.
        schedule: the budget; None never evicts.

    Raises:
        DyntsError: the budget is too small for the question.
    """
    if schedule is None:
        return list(range(prompt + 1, prompt + generated)), 0
    schedule.check_question(prompt)
    lengths, length, compactions = [], prompt, 0
    if length >= schedule.budget:
        length, compactions = schedule.kept_tokens(prompt), 1
    for _ in range(generated - 1):
        length += 1
        lengths.append(length)
        if length >= schedule.budget:
            length, compactions = schedule.kept_tokens(prompt), compactions + 1
    return lengths, compactions
