"""lm_eval's command with the model `dynts`: `python -m dynts.harness.lm_eval --model dynts ...`."""

import os
import sys

import typer
from lm_eval.__main__ import cli_evaluate

from dynts.cli.console import console


def main() -> None:
    """Hand over to lm_eval's command; errors that a user can act on end it in one line."""
    try:
        debug, quiet = (bool(os.environ.get(name)) for name in ("DYNTS_DEBUG", "DYNTS_QUIET"))
        with console(debug=debug, quiet=quiet, again="responses are kept with --use_cache FILE only"):
            cli_evaluate()
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
