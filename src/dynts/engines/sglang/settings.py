"""The plugin's settings in SGLang: DYNTS_* variables of its processes; its own settings have no place for others."""

import os

from dynts.engines.settings import PluginSettings, without_settings

PARSER = "dynts"
"""The name of dynts' reasoning parser in SGLang."""
API_KEY = "DYNTS_API_KEY"
"""Tells the server's process what clients must send."""
_PLUGINS = "SGLANG_PLUGINS"
"""Names the plugins that SGLang loads; without it, all that are installed."""


def environment(settings: PluginSettings | None) -> dict[str, str]:
    """Return the variables of an SGLang that runs under settings, or as it is, whatever is set in this process."""
    found = without_settings(os.environ)
    if settings is not None:
        found |= settings.to_environment()
        if named := found.get(_PLUGINS):
            found[_PLUGINS] = f"{named},dynts"
    return found
