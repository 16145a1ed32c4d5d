import pytest

pytest.importorskip("pyarrow", reason="the folder of traces needs pyarrow: pip install 'dynts-kv[collect]'")
