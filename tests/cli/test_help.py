"""The options of every command: as they were before dataclasses declared them, and as the documentation says."""

import inspect
import json
import re
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import typer
from typer.main import get_command
from typer.utils import get_params_from_function

from dynts.cli import app
from dynts.cli.reference import reference

pytestmark = pytest.mark.quick

NEW = {"--settings", "--debug", "--quiet"}
"""Options that commands have got on purpose: all of them, where before four had --settings and none the others."""


def described(app: typer.Typer) -> dict[str, Any]:
    """What a user can give each command, and what its help says."""
    listed = {name: command for name, command in get_command(app).commands.items() if name != "analyze"}
    listed |= {f"analyze {name}": command for name, command in get_command(app).commands["analyze"].commands.items()}
    found = {}
    for name, entry in listed.items():
        command: Any = entry.made
        assert entry.help == command.help
        kinds = {
            key: item.annotation for key, item in get_params_from_function(inspect.unwrap(command.callback)).items()
        }
        options = {item.opts[0]: option(item, kinds[item.name]) for item in command.params if item.name != "help"}
        panel = entry.rich_help_panel if isinstance(entry.rich_help_panel, str) else None
        found[name] = {"help": command.help, "panel": panel, "options": options}
    return found


def option(item: Any, kind: Any) -> dict[str, Any]:
    """One option, without what it does not have."""
    if get_origin(kind) in (Union, types.UnionType):
        [kind] = (each for each in get_args(kind) if each is not type(None))
    facts = {
        "kind": re.sub(r"typing\.|pathlib\.(_local\.)?|<class '|'>", "", str(kind)),
        "flags": [*item.opts, *item.secondary_opts],
        "argument": item.param_type_name == "argument",
        "default": item.default,
        "required": item.required,
        "range": [item.min, item.max] if getattr(item, "min", None) is not None else None,
        "metavar": item.metavar,
        "envvar": item.envvar,
        "help": item.help,
    }
    return {name: value for name, value in facts.items() if value not in (None, False)}


def test_every_command_has_the_options_that_it_had() -> None:
    before = json.loads((Path(__file__).parent / "help_before.json").read_text(encoding="utf-8"))
    now = described(app)
    assert list(now) == list(before)
    for name, command in before.items():
        told = now[name]["options"]
        assert told.keys() >= NEW
        for flag in NEW - command["options"].keys():
            del told[flag]
        assert now[name] == command


def test_the_page_of_options_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "options.md"
    assert page.read_text(encoding="utf-8") == reference(), "run `make options`"
