"""The manifest of a folder that a long command fills: the settings that determined its content, and what is known besides."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from dynts.errors import DyntsError
from dynts.store.files import sync, sync_folder, write_whole
from dynts.store.jsonlines import read_object

MANIFEST_FILE = "manifest.json"


def read_manifest(path: Path, made_by: str) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        DyntsError: there is none, or it is damaged; the message names the command that writes such folders.
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


@contextmanager
def settled_manifest(path: Path, settings: Mapping[str, Any], made_by: str) -> Iterator[dict[str, Any] | None]:
    """Check that a folder is new, or was made with the same settings; nobody else changes its manifest meanwhile.

    Args:
        path: the folder; made if it does not exist.
        settings: what determines the content.
        made_by: the command, for messages.

    Yields:
        The manifest that was there, None if the folder is new.

    Raises:
        DyntsError: the folder holds other things, or other settings; the differing fields are named.
    """
    make_folder(path, made_by)
    with FileLock(path / ".manifest.lock"):
        if not (path / MANIFEST_FILE).exists():
            yield None
            return
        old = read_manifest(path, made_by)
        # through JSON, so that tuples compare equal to the lists that are read back
        new = json.loads(json.dumps(dict(settings)))
        there, new = _flat(old["settings"]), _flat(new)
        if details := differences(there, new, _short):
            raise DyntsError(f"{path} was made with other settings ({details}): repeat those, or choose another folder")
        yield old


def write_manifest(path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a manifest whole and through to the disk, and return it as it will be read."""
    manifest: dict[str, Any] = json.loads(json.dumps({"settings": dict(settings), **facts}))

    def write(partial: Path) -> None:
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        sync(partial)  # without its manifest a folder of days of work would be lost

    write_whole(path / MANIFEST_FILE, write)
    sync_folder(path)
    return manifest


def differences(there: Mapping[str, Any], now: Mapping[str, Any], show: Callable[[Any], str] = str) -> str:
    """The fields in which recorded settings differ from those of now, for a message; empty if there are none."""
    return "; ".join(
        f"{name}: {show(there.get(name))} there, {show(now.get(name))} now"
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name)
    )


def warn_versions(
    there: Mapping[str, str], now: Mapping[str, str], warn: Callable[[str], object] | None = None
) -> None:
    """Say which versions differ from those that the folder was started with."""
    if differing := [
        f"{name} {there[name]} there, {now.get(name)} now" for name in there if there[name] != now.get(name)
    ]:
        message = f"dynts: warning: continuing with other versions ({'; '.join(differing)})"
        (warn or (lambda text: print(text, file=sys.stderr)))(message)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under names such as "sampling.seed"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
