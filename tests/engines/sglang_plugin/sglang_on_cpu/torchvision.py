"""Stands in for torchvision, which SGLang and transformers import at the top of modules for images: text needs none of
it."""

import sys
from unittest.mock import MagicMock

__version__ = "0.28"

for _name in ("io", "transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional"):
    sys.modules[f"{__name__}.{_name}"] = MagicMock()
