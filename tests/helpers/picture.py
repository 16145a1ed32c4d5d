"""Draw the picture of docs/guides/view.md: a held-out problem as the embedded model solves it.

python tests/helpers/picture.py docs/images/view.png [--page view.html]
"""

import argparse
import tempfile
from pathlib import Path

from browser import chromium, set_screen
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.traces import Trace
from dynts.view.chosen import choose_methods, tokenize_chosen
from dynts.view.data import view_trace
from dynts.view.page import write_page

PROBLEM = 17


def main() -> None:
    """Solve the problem, write its page, and take the picture in the middle of its decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--page", type=Path, help="keep the page too")
    chosen = parser.parse_args()
    model, tokenizer = load_tiny_model()
    problem = make_problem(HELD_OUT[PROBLEM])
    (solution,) = solve(model, tokenizer, [problem])
    trace = Trace(f"problem-{PROBLEM}", problem.question, solution.text, problem.answer)
    tokens = tokenize_chosen(tokenizer, trace)
    predictors = {"answer": load_tiny_predictor("answer")}
    methods = choose_methods(["dynts", "rkv", "window"], predictors, native=True)
    config = schedule(budget_for(0.4))
    view = view_trace(model, tokenizer, trace, tokens, methods, config, predictors, name="embedded model")
    with tempfile.TemporaryDirectory() as folder:
        page = (chosen.page or Path(folder) / "page.html").resolve()
        write_page(view, page)
        with chromium(Path(folder) / "profile") as driver:
            set_screen(driver, 1440, 900)
            driver.get(f"{page.as_uri()}#step={solution.tokens // 2}")
            if not driver.save_screenshot(str(chosen.picture)):
                raise OSError(f"cannot write {chosen.picture}")


if __name__ == "__main__":
    main()
