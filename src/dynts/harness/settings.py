"""What a harness is told of the model, as names and values."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from dynts.config import MethodOptions, ModelSource, Sampling
from dynts.errors import DyntsError
from dynts.options import build, check_values, option, options_of, part


@dataclass(frozen=True, slots=True)
class HarnessSettings:
    """A model, by what it decodes, and what of its texts counts.

    Args:
        source: the model, and how it is talked to.
        chosen: method, predictor and budget.
        thinking: whether a response is what follows the thinking; else it is all that the model writes.
        max_gen_toks: when to stop where the task does not say.
    """

    source: ModelSource = part()
    chosen: MethodOptions = part()
    thinking: bool = option(True, help="Hand over what follows the thinking; false: all that the model writes.")
    max_gen_toks: int = option(
        Sampling().max_new_tokens, help="Stop after this many tokens where the task does not say when."
    )


def read_harness_settings(values: Mapping[str, Any], where: str) -> HarnessSettings:
    """Return the settings that a harness passes on; `pretrained` names the model there.

    Args:
        values: by the names of the command line's options, with underscores; what is not given is as there.
        where: they stand, for messages.

    Raises:
        DyntsError: a name is unknown, or a value has a wrong type or is outside its range; it is named.
    """
    options = options_of(HarnessSettings)
    options = {"pretrained": options.pop("model")._replace(default=MISSING)} | options
    given = check_values(where, values, options)
    defaults = {name: own.default for name, own in options.items() if own.default is not MISSING}
    if "pretrained" not in given:
        raise DyntsError(f"{where}: pretrained is missing: give a folder or the id of a Hub repository")
    return build(HarnessSettings, {"model": given.pop("pretrained"), **defaults, **given})
