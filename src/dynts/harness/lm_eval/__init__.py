"""The model `dynts` of lm-evaluation-harness. Importing this package registers it there."""

from dynts.extras import need

need("lm_eval", "lm-eval", "dynts.harness.lm_eval")

from dynts.harness.lm_eval.model import DyntsLM  # noqa: E402

__all__ = ["DyntsLM"]
