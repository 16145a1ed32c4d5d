"""Results that a benchmark writes row by row, so that the same command continues an interrupted one."""

import json
from pathlib import Path
from typing import Any

from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS


def read_rows(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The rows that are there already; none if there is no file. One made with other settings ends the program."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        raise SystemExit(f"{path} was made with {found['settings']}, not {settings}: move it away")
    return found["rows"]


def write_rows(path: Path, settings: dict[str, Any], rows: dict[str, Any]) -> None:
    """Replace what the file holds."""
    text = json.dumps({"settings": settings, "rows": rows}, indent=1)
    write_text_whole(path, f"{text}\n")


def shipped_weights() -> str:
    """Digests of the embedded model's weights and its predictors', for the settings of rows that depend on them."""
    hashes = json.loads((WEIGHTS / "training.json").read_text())["sha256"]
    return ", ".join(f"{name} {digest[:12]}" for name, digest in hashes.items() if name.endswith(".safetensors"))
