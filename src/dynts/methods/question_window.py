"""Question + window: keep the question and the most recent tokens, no older thinking."""

from dataclasses import dataclass

from dynts.methods.window import Window


@dataclass
class QuestionWindow(Window):
    """The ablation "without thinking tokens" of the DynTS release."""

    protect_question: bool = True
