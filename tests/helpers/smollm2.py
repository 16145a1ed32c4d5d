"""SmolLM2-135M-Instruct, which the environment variable SMOLLM2 names the folder of, and questions under one system
prompt."""

import os
from typing import Any

import pytest

from dynts.store.jsonlines import read_objects
from shared_data import BENCHMARKS

MODEL = os.environ.get("SMOLLM2", "")
QUESTIONS = BENCHMARKS / "gsm8k.jsonl"
SYSTEM = " ".join(
    [
        "You are a careful teacher of arithmetic. Read the question twice before you begin.",
        "Write down what is given and what is asked, each with its unit.",
        "Work in small steps, one line a step, and say in words what each step finds.",
        "Never skip a step because it looks easy, and never do two things on one line.",
        "When a quantity changes over time, make a list of its values in order.",
        "When there are several people or things, give each a name and keep to it.",
        "Check each sum by doing it the other way round: a difference by adding, a quotient by multiplying.",
        "If a check fails, say so, cross out the line, and do it again from the line before.",
        "Round only at the end, and only if the question asks for it.",
        "Do not use the calculator of another program, and do not guess.",
        "After the last step read the question a third time, and make sure that it asks for what you have found.",
        "Then write the answer alone on a line of its own, as a number, without its unit.",
    ]
)

needs_smollm2 = pytest.mark.skipif(
    not MODEL or not QUESTIONS.exists(),
    reason="SMOLLM2 does not name the folder of SmolLM2-135M-Instruct, or the shared benchmarks are not beside this",
)


def questions(tokenizer: Any) -> list[list[int]]:
    """Sixteen prompts as token ids."""
    conversations = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["question"]}]
        for _, row in read_objects(QUESTIONS)
    ][:16]
    return [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        for turns in conversations
    ]
