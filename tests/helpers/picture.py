"""Draw the pictures of README.md and docs/guides/view.md: a held-out problem as the embedded model solves it.

python tests/helpers/picture.py docs/images/view.png [--page view.html]
python tests/helpers/picture.py docs/images/decoding.gif
"""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from browser import chromium, set_screen
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.traces import Trace
from dynts.view.chosen import choose_methods, tokenize_chosen
from dynts.view.data import view_trace
from dynts.view.page import write_page

PROBLEM = 17


# of the moving picture
FRAMES, MILLISECONDS, COLOURS = 33, 350, 48


def main() -> None:
    """Solve the problem, write its page, and take a picture in the middle of its decoding, or a .gif of all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--page", type=Path, help="keep the page too")
    chosen = parser.parse_args()
    moving = chosen.picture.suffix == ".gif"
    model, tokenizer = load_tiny_model()
    problem = make_problem(HELD_OUT[PROBLEM])
    (solution,) = solve(model, tokenizer, [problem])
    trace = Trace(f"problem-{PROBLEM}", problem.question, solution.text, problem.answer)
    tokens = tokenize_chosen(tokenizer, trace)
    predictors = {"answer": load_tiny_predictor("answer")}
    methods = choose_methods(
        ["dynts", "window"] if moving else ["dynts", "rkv", "window"], predictors, native=not moving
    )
    config = schedule(budget_for(0.4))
    view = view_trace(model, tokenizer, trace, tokens, methods, config, predictors, name="embedded model")
    last = solution.tokens - 1
    steps = [last * frame // (FRAMES - 1) for frame in range(FRAMES)] if moving else [solution.tokens // 2]
    with tempfile.TemporaryDirectory() as folder:
        page = (chosen.page or Path(folder) / "page.html").resolve()
        write_page(view, page)
        with chromium(Path(folder) / "profile") as driver:
            set_screen(driver, *((1280, 960) if moving else (1440, 900)))
            frames = []
            for step in steps:
                driver.get("about:blank")
                driver.get(f"{page.as_uri()}#step={step}")
                frames.append(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    if moving:
        # one palette for all, or colours would flicker
        palette = frames[FRAMES // 2].quantize(COLOURS)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        waits = [MILLISECONDS] * (FRAMES - 1) + [4 * MILLISECONDS]
        frames[0].save(chosen.picture, save_all=True, append_images=frames[1:], duration=waits, loop=0, optimize=True)
    else:
        frames[0].save(chosen.picture)


if __name__ == "__main__":
    main()
