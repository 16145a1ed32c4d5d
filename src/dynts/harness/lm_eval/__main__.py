"""lm_eval's command with the model `dynts`: `python -m dynts.harness.lm_eval --model dynts ...`."""

import os
import sys

import typer
from lm_eval.__main__ import cli_evaluate

from dynts.cli.console import console


def main() -> None:
    """Hand over to lm_eval's command; errors that a user can act on end it in one line."""
    try:
        with console(debug=bool(os.environ.get("DYNTS_DEBUG")), quiet=bool(os.environ.get("DYNTS_QUIET"))):
            cli_evaluate()
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
