"""Data sets that need no column mapping, by name."""

from dynts.collect.source import ProblemSource

PRESETS = {
    "math-train": ProblemSource(
        "EleutherAI/hendrycks_math",
        split="train",
        configs=(
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        question_column="problem",
        answer_column="solution",
        gold="boxed",
        keep_columns=("level", "type"),
    ),
    "gsm8k-train": ProblemSource(
        "openai/gsm8k",
        split="train",
        configs=("main",),
        question_column="question",
        answer_column="answer",
        gold="hashes",
    ),
}
