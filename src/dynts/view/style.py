"""What the pages that dynts writes have in common: colours, and a policy that lets them load nothing."""

import base64
import hashlib
from importlib.resources import files


def colours() -> str:
    """Return the style sheet that defines the colours of all pages, light and dark."""
    return (files("dynts.view") / "static" / "colours.css").read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """Return what a page's content security policy calls a script or a style sheet that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
