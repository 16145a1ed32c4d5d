"""SGLang offline: `dynts eval --engine sglang` beside `--engine transformers`, and an engine that ends."""

from pathlib import Path

import psutil
import pytest
from sglang_engines import ENVIRONMENT, SERVER, needs_sglang

from dynts.config import ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.engines.engine import FULL_CACHE, Request
from dynts.engines.sglang.offline import SglangSpec
from dynts.errors import DyntsError
from dynts.methods import DynTS
from dynts.tiny import WEIGHTS
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.problems import Problem
from engine_eval import CONFIG, check_equal_to_transformers

pytestmark = [needs_sglang, pytest.mark.timeout(600)]

SETTINGS = {**SERVER, "context_length": 2048}
del SETTINGS["dtype"], SETTINGS["max_running_requests"]
ARM = Arm(DynTS(), CONFIG, str(WEIGHTS / "answer"))


def requests(arm: Arm[str]) -> list[Request]:
    made = {str(number): make_problem(number) for number in HELD_OUT[:3]}
    return [Request(Problem(name, item.question, item.answer), 0, 0, arm) for name, item in made.items()]


def spec(settings: dict[str, object]) -> SglangSpec:
    source = ModelSource(str(WEIGHTS), dtype="float32")
    return SglangSpec(source, Sampling(200, temperature=0.7), (FULL_CACHE, ARM), 2, settings)


@pytest.mark.slow
def test_texts_and_measurements_equal_those_of_transformers(tmp_path: Path) -> None:
    methods = check_equal_to_transformers(tmp_path, "sglang", SETTINGS, ENVIRONMENT, "--method", "full,dynts")
    assert methods == {"full", "dynts, answer label"}


def test_what_the_plugin_refuses_shows_before_an_engine_without_it_works(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DyntsError, match="pages of 16 tokens: use --page-size 1"):
        list(spec({**SETTINGS, "page_size": 16}).start().generate(requests(FULL_CACHE)))
    assert "SGLang draws by the requests' seeds with enable_deterministic_inference only" in caplog.text


def test_an_engine_that_ends_is_an_error_and_leaves_nothing_behind() -> None:
    engine = spec(SETTINGS).start()
    done = engine.generate(requests(ARM))
    first = next(done)
    assert first.lengths is not None
    assert first.lengths.compactions
    others = psutil.Process(engine.process.pid).children(recursive=True)
    assert len(others) >= 2, "a scheduler and a detokenizer"
    engine.process.kill()
    with pytest.raises(DyntsError, match=r"SGLang's engine has ended \(exit code -9\)"):
        list(done)
    assert not psutil.wait_procs(others, timeout=20)[1]
