"""Run the command line in process."""

import sys

import pytest

from dynts.cli import main


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `dynts ...`."""
    monkeypatch.setattr(sys, "argv", ["dynts", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    print(out, err)  # for pytest's report of a failure
    return int(ended.value.code or 0), out, err
