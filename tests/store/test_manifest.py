"""What a folder's manifest records of the software that made it."""

from importlib.metadata import PackageNotFoundError

import pytest

from dynts.store import manifest


@pytest.mark.quick
def test_cudnn_is_among_the_versions_where_torch_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.0", "nvidia-cudnn-cu13": "9.19.0"}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(manifest, "version", version)
    assert installed.items() < manifest.versions().items()
    del installed["nvidia-cudnn-cu13"]
    assert "nvidia-cudnn-cu13" not in manifest.versions()
