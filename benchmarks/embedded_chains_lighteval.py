"""The embedded model's task for lighteval (docs/guides/harnesses.md).

problems/test.jsonl is what embedded_problems.py writes.
"""

import re
from typing import Any

import numpy as np
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod


class LastBoxed(SampleLevelComputation):
    """Is the last boxed answer the gold answer, spaces aside?"""

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> float:
        """Return 1 or 0."""
        boxed = re.findall(r"\\boxed\{(.*?)\}", model_response.final_text[0])
        return float(bool(boxed) and boxed[-1].split() == doc.choices[0].split())


def ask(line: dict[str, str], task_name: str) -> Doc:
    """Return a problem as `dynts eval` asks it."""
    question = f"{line['question']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    return Doc(task_name=task_name, query=question, choices=[line["answer"]], gold_index=0)


PASS_AT_1 = SampleLevelMetric(
    metric_name="last_boxed",
    sample_level_fn=LastBoxed(),
    category=SamplingMethod.GENERATIVE,
    corpus_level_fn=np.mean,
    higher_is_better=True,
)

TASKS_TABLE = [
    LightevalTaskConfig(
        name="embedded_chains",
        prompt_function=ask,
        hf_repo="problems",
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[PASS_AT_1],
        generation_size=1000,
        stop_sequence=[],
    )
]
