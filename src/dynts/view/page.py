"""Write a trace's page: one HTML file that loads nothing."""

import base64
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from dynts.store.files import write_text_whole
from dynts.training.metrics import trace_metrics
from dynts.training.transforms import transform_labels
from dynts.view.data import ShownImportance, TraceView
from dynts.view.forced_decode import KeptTokens
from dynts.view.style import colours, policy_hash

_SCRIPTS = ("cache.js", "text.js", "chart.js", "details.js", "main.js")


def write_page(view: TraceView, path: Path) -> None:
    """Write the page of a trace, all or nothing.

    Args:
        view: what it shows.
        path: of the file.
    """
    write_text_whole(path, page(view))


def page(view: TraceView) -> str:
    """Return the page of a trace.

    Text of the trace reaches it as JSON only, from which the script makes text nodes. The page's content security
    policy allows this script and this style sheet, by their hashes, and nothing else: no other script, no network.
    """
    static = files("dynts.view") / "static"
    style = colours() + (static / "style.css").read_text(encoding="utf-8")
    script = "".join((static / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    template = Template((static / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"dynts view: {view.trace.id}"),
        style=style,
        script=script,
        style_hash=policy_hash(style),
        script_hash=policy_hash(script),
        data=embed(page_data(view)),
    )


def embed(data: Any) -> str:
    """JSON for a script element, which no text in it can close."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def page_data(view: TraceView) -> dict[str, Any]:
    """Return what the script reads, arrays as little-endian bytes in base64."""
    tokens, config = view.tokens, view.config
    return {
        "id": view.trace.id,
        "model": view.model,
        "texts": view.texts,
        "questionEnd": tokens.question_end,
        "thinkingEnd": tokens.thinking_end,
        "answerStart": tokens.answer_start,
        "budget": config.budget,
        "localWindow": config.local_window,
        "retentionRatio": config.retention_ratio,
        "selected": config.selected_tokens(tokens.question_end),
        "importances": [_importance(item, view.importances) for item in view.importances],
        "methods": [_method(item) for item in view.kept],
    }


def _importance(importance: ShownImportance, everything: list[ShownImportance]) -> dict[str, Any]:
    """Values, and in whole percent how many of the trace's thinking tokens rank no higher (0: no value)."""
    values = importance.values.numpy()
    percent = np.ceil(100 * transform_labels(values, "rank"))
    labels = [item for item in everything if item.kind == "true" and importance.kind == "predicted"]
    agreement = {label.name: trace_metrics(values, label.values.numpy()) for label in labels}
    return {
        "kind": importance.kind,
        "name": importance.name,
        "values": _bytes(values, "<f4"),
        "percent": _bytes(np.nan_to_num(percent), "u1"),
        "agreement": {
            name: {"kendallTau": metrics["kendall_tau"], "top30Overlap": metrics["top30_overlap"]}
            for name, metrics in agreement.items()
        },
    }


def _method(kept: KeptTokens) -> dict[str, Any]:
    evictions = kept.evictions
    return {
        "name": kept.name,
        "sets": kept.sets,
        "steps": _bytes([item.step for item in evictions], "<u4"),
        "before": _bytes([item.before for item in evictions], "<u4"),
        "after": _bytes([item.after for item in evictions], "<u4"),
        "changed": _bytes([len(item.positions) for item in evictions], "<u4"),
        "positions": _bytes(_joined([item.positions.numpy() for item in evictions]), "<u4"),
        "holders": _bytes(_joined([item.holders.numpy() for item in evictions]), "<u2"),
    }


def _joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])


def _bytes(values: npt.ArrayLike, dtype: str) -> str:
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()
