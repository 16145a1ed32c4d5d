"""The model card of a predictor checkpoint."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from dynts.predictor.config import PredictorConfig
from dynts.predictor.label import LABELS

_TEXT = """
# Importance predictor for {base_model}

A small MLP that reads the last hidden state of `{base_model}` and scores how much the thinking token at hand will
matter ({meaning}). The Python library dynts uses the scores to evict unimportant tokens from the KV cache while the
model reasons, after *Dynamic Thinking-Token Selection* ([arXiv 2601.18383](https://arxiv.org/abs/2601.18383)).

```python
import dynts

predictor = dynts.ImportancePredictor.from_pretrained("path/or/repo-id")
with dynts.compress(model, method="dynts", config=dynts.CompressionConfig(), predictor=predictor) as session:
    out = model.generate(**inputs, max_new_tokens=16384)
```

It works with this base model only (other dtypes, quantisations and light fine-tunes of it included).

## Training

{training}

## Held-out metrics

{metrics}
"""


def model_card(config: PredictorConfig) -> ModelCard:
    """Card with the base model, the training settings and the metrics beside those of trivial predictors."""
    base_model = config.base_model or "an unnamed model"
    data = ModelCardData(library_name="dynts", tags=["kv-cache", "reasoning", "token-eviction"])
    body = _TEXT.format(
        base_model=base_model,
        meaning=LABELS[config.label].meaning if config.label in LABELS else config.label,
        training=_table(
            {"label": config.label, "all tokens": config.all_tokens, "transform": config.transform, **config.training}
        ),
        metrics=_metrics(config.metrics),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items() if not isinstance(value, dict)]
    return "\n".join(["| setting | value |", "|---|---|", *lines])


def _metrics(metrics: dict[str, Any]) -> str:
    if not metrics:
        return "Not measured."
    names = list(next(iter(metrics.values())))
    lines = [
        f"| {predictor.replace('_', ' ')} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |"
        for predictor, values in metrics.items()
    ]
    header = "| predictor | " + " | ".join(name.replace("_", " ") for name in names) + " |"
    return "\n".join([header, "|---" * (len(names) + 1) + "|", *lines])
