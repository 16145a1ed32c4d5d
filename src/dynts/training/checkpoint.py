"""Continue an interrupted training exactly where it was."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynts.errors import DyntsError
from dynts.files import write_whole
from dynts.manifest import differences


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that holds the state of a training, always whole.

    Args:
        path: the file.
        minutes: how often to write it, besides the end of each epoch; 0 writes it after every step.
    """

    path: Path
    minutes: float = 10.0

    def __post_init__(self) -> None:
        if not self.minutes >= 0:
            raise DyntsError(f"the minutes between checkpoints must not be negative, got {self.minutes}")

    def save(self, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Replace what the file held.

        Raises:
            DyntsError: the disk is full or not writable.
        """
        found = {"settings": dict(settings), "state": dict(state)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, lambda partial: torch.save(found, partial))
        # torch reports a full disk as a RuntimeError
        except (OSError, RuntimeError) as error:
            raise DyntsError(
                f"cannot write the checkpoint {self.path} ({error}): make room, then run the same command again"
            ) from error

    def load(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state to continue from, on the CPU; None if there is none yet.

        Raises:
            DyntsError: the file is damaged, or of a training with other settings; the differing fields are named.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            recorded, state = dict(found["settings"]), dict(found["state"])
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise DyntsError(f"{self.path} is damaged or no checkpoint of dynts: remove it to start over") from error
        if details := differences(recorded, settings):
            raise DyntsError(
                f"{self.path} is of a training with other settings ({details}): repeat those, remove it to start over, "
                "or choose another folder"
            )
        return state
