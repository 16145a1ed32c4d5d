"""A page of 16,384 tokens and three methods; as a script, how long a move of its slider takes in headless Chromium.

python tests/helpers/long_page.py
"""

import tempfile
from pathlib import Path
from statistics import median

import torch

from browser import chromium, set_screen
from dynts.config import CompressionConfig
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace
from dynts.view.data import ShownImportance, TraceView
from dynts.view.forced_decode import Eviction, KeptTokens
from dynts.view.page import write_page

TOKENS, QUESTION, ANSWER = 16_384, 200, 600
CONFIG = CompressionConfig(budget=5000, local_window=2000, retention_ratio=0.4)
KV_HEADS = 112

_MOVE = """
const done = arguments[arguments.length - 1];
const slider = document.getElementById("step");
const scripting = [], frames = [];
const steps = arguments[0].slice();
function next() {
  if (!steps.length) return done([scripting, frames]);
  slider.value = steps.shift();
  const start = performance.now();
  slider.dispatchEvent(new Event("input"));
  scripting.push(performance.now() - start);
  // the frame after it was styled, laid out and painted
  requestAnimationFrame(() => setTimeout(() => { frames.push(performance.now() - start); next(); }));
}
next();
"""


def long_view() -> TraceView:
    """Made-up text, importance and evictions, these as many as budget, local window and ratio of the paper give."""
    generator = torch.Generator().manual_seed(0)
    kept_tokens = CONFIG.kept_tokens(QUESTION)
    steps = range(CONFIG.budget - QUESTION, TOKENS - QUESTION - 1, CONFIG.budget - kept_tokens)
    methods = [KeptTokens("dynts", 1), KeptTokens("window", 1), KeptTokens("rkv, native", KV_HEADS)]
    for method in methods:
        left = torch.full((TOKENS,), method.sets)
        for step in steps:
            older = torch.arange(QUESTION, QUESTION + step - CONFIG.local_window)
            held = older[left[older] > 0]
            if method.sets == 1:
                count = CONFIG.budget - kept_tokens
                changed = held[torch.randperm(len(held), generator=generator)[:count]].sort().values
                left[changed] = 0
            else:
                changed = held
                left[held] = (left[held] * torch.rand(len(held), generator=generator)).floor().long()
            method.evictions.append(Eviction(step, CONFIG.budget, kept_tokens, changed, left[changed]))
    texts = [f" word{index % 900}" if index % 40 else "\n" for index in range(TOKENS)]
    tokens = TokenizedTrace((0,) * TOKENS, QUESTION, TOKENS - ANSWER - 1, TOKENS - ANSWER)
    values = torch.rand(tokens.thinking_end - QUESTION, generator=generator)
    noisy = values + torch.rand(len(values), generator=generator)
    importances = [
        ShownImportance("true", "answer", values),
        ShownImportance("true", "future", values.square()),
        ShownImportance("predicted", "answer", noisy),
    ]
    trace = Trace("long", "?", "", "")
    return TraceView(trace, "made-up", tokens, texts, CONFIG, importances, methods)


def measure() -> None:
    """Print what a move takes: by one step, over a compaction, and across the trace."""
    view = long_view()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        write_page(view, path)
        print(f"page: {path.stat().st_size / 1e6:.2f} MB, {TOKENS} tokens, {len(view.kept)} methods")
        with chromium(Path(folder) / "profile") as driver:
            set_screen(driver, 1400, 900)
            driver.get(path.as_uri())
            entry = "performance.getEntriesByType('navigation')[0]"
            load = f"return {entry}.loadEventEnd - {entry}.startTime"
            print(f"load: {driver.execute_script(load):.0f} ms")
            compaction = view.kept[0].evictions[3].step
            moves = {
                "one step": list(range(9000, 9040)),
                "over a compaction": [compaction - 1, compaction] * 20,
                "first to last step": [0, TOKENS] * 20,
            }
            for name, steps in moves.items():
                scripting, frames = driver.execute_async_script(_MOVE, steps)
                print(
                    f"{name}: scripting median {median(scripting):.1f} ms, most {max(scripting):.1f} ms; "
                    f"until the frame is there median {median(frames):.0f} ms, most {max(frames):.0f} ms"
                )


if __name__ == "__main__":
    measure()
