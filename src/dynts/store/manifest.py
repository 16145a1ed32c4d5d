"""The manifest of a folder that a long command fills: the settings that determined its content, and facts besides.

A folder of durable records is a manifest, a lock (`dynts.store.lock`), and what was made so far: journals, a line for
each piece of work (`dynts.store.journal`), or whole files (`dynts.store.files`). The same command again makes what it
lacks.
"""

import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from dynts import __version__
from dynts.errors import DyntsError
from dynts.store.files import sync, sync_folder, write_whole, writing_to
from dynts.store.jsonlines import read_object

MANIFEST_FILE = "manifest.json"
_CUDNN = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")  # torch brings one of them; what attention costs depends on it
_PACKAGES = ("torch", "transformers", "vllm", "sglang", "math-verify", "pyarrow", "datasets", *_CUDNN)

log = logging.getLogger(__name__)


def read_manifest(path: Path, made_by: str) -> dict[str, Any]:
    """Read the manifest of a folder.

    Args:
        path: the folder.
        made_by: the command that writes such folders, for messages.

    Raises:
        DyntsError: there is none, or it is damaged.
    """
    if not (path / MANIFEST_FILE).exists():
        raise DyntsError(f"{path} holds no {MANIFEST_FILE}: give a folder written by `{made_by}`")
    try:
        manifest = read_object(path / MANIFEST_FILE)
    except DyntsError as error:
        raise DyntsError(f"{path / MANIFEST_FILE} is damaged ({error}): start anew in another folder") from error
    if not isinstance(manifest.get("settings"), dict):
        raise DyntsError(f"{path / MANIFEST_FILE} is not a manifest: give a folder written by `{made_by}`")
    return manifest


def make_folder(path: Path, made_by: str) -> None:
    """Make a folder, or find it empty or with a manifest.

    Args:
        path: the folder.
        made_by: the command that writes such folders, for messages.

    Raises:
        DyntsError: it holds other things.
    """
    # hidden files are dynts' own: locks, and what a killed process was writing
    if path.exists() and (
        not path.is_dir()
        or (not (path / MANIFEST_FILE).exists() and any(not entry.name.startswith(".") for entry in path.iterdir()))
    ):
        raise DyntsError(f"{path} exists and is no folder written by `{made_by}`: choose a new or empty folder")
    path.mkdir(parents=True, exist_ok=True)


def settle(
    path: str | Path,
    settings: Mapping[str, Any],
    made_by: str,
    facts: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Write the manifest of a new folder, or continue a folder with the same settings; other versions get a warning.

    Args:
        path: the folder; made if it does not exist.
        settings: what determines the content; must match on resuming.
        made_by: the command that writes such folders, for messages.
        facts: what is recorded besides, anew by each run. A function is called for a new folder only, while other
            processes of the job wait.

    Returns:
        The manifest. Its "versions" are those that the folder was started with.

    Raises:
        DyntsError: the folder holds other things, or other settings (the differing fields are named); a full disk.
    """
    path = Path(path)
    with writing_to(path):
        make_folder(path, made_by)
        with _settled(path, settings, made_by) as old:
            made = versions() if old is None else old.get("versions", {})
            if old is not None:
                _warn_versions(made)
                if callable(facts):
                    return old
            found = facts() if callable(facts) else facts
            return _write(path, {"settings": dict(settings), **found, "versions": made})


def check_settings(path: Path, settings: Mapping[str, Any], made_by: str) -> None:
    """Refuse a folder with other settings, as `settle` would, and write nothing.

    Args:
        path: the folder, which need not exist.
        settings: what determines the content.
        made_by: the command that writes such folders, for messages.

    Raises:
        DyntsError: names the differing fields.
    """
    if (path / MANIFEST_FILE).exists():
        with _settled(path, settings, made_by):
            pass


def differences(there: Mapping[str, Any], now: Mapping[str, Any], show: Callable[[Any], str] = str) -> str:
    """Describe the fields in which recorded settings differ from those of now; empty if there are none.

    Args:
        there: the recorded ones.
        now: those of now.
        show: makes text of a value.
    """
    return "; ".join(
        f"{name}: {show(there.get(name))} there, {show(now.get(name))} now"
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name)
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, dynts and the installed packages that have a part in the records."""
    found = {"python": platform.python_version(), "dynts": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _settled(path: Path, settings: Mapping[str, Any], made_by: str) -> Iterator[dict[str, Any] | None]:
    """Give the manifest that is there, None if the folder is new, checked; nobody else changes it meanwhile."""
    with FileLock(path / ".manifest.lock"):
        if not (path / MANIFEST_FILE).exists():
            yield None
            return
        old = read_manifest(path, made_by)
        # through JSON, so that tuples compare equal to the lists that are read back
        new = json.loads(json.dumps(dict(settings)))
        if details := differences(_flat(old["settings"]), _flat(new), _short):
            raise DyntsError(f"{path} was made with other settings ({details}): repeat those, or choose another folder")
        yield old


def _write(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write a manifest whole and through to the disk, and return it as it will be read."""
    text = json.dumps(manifest, indent=2)

    def write(partial: Path) -> None:
        partial.write_text(f"{text}\n", encoding="utf-8")
        sync(partial)  # without its manifest a folder of days of work would be lost

    write_whole(path / MANIFEST_FILE, write)
    sync_folder(path)
    found: dict[str, Any] = json.loads(text)
    return found


def _warn_versions(there: Mapping[str, str]) -> None:
    now = versions()
    if differing := [
        f"{name} {there[name]} there, {now.get(name)} now" for name in there if there[name] != now.get(name)
    ]:
        log.warning("continuing with other versions (%s)", "; ".join(differing))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under names such as "sampling.seed"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
