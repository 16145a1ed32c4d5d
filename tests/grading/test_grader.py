"""Grading in processes of its own: what hangs or dies there is counted, and nothing is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from dynts.errors import DyntsError
from dynts.grading.grader import Grader, Verdict
from kept_graders import own_graders

ENDLESS = r"\boxed{9^{9^{9^9}}}"
ANSWERS = [(r"\boxed{x + 1}", "1 + x"), (r"\boxed{3}", "4"), ("no box", "4"), (r"\boxed{\frac{1}{2}}", "0.5")]
VERDICTS = [Verdict.CORRECT, Verdict.WRONG, Verdict.UNGRADABLE, Verdict.CORRECT]


@pytest.fixture(autouse=True, scope="module")
def _own_graders() -> Iterator[None]:
    with own_graders():
        yield


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "dynts.grading.worker" in child.cmdline():
                found.append(child)
        except psutil.Error:  # gone in the meantime
            continue
    return found


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():  # a failure ends in the time limit of the test
        time.sleep(0.05)


def test_a_worker_starts_with_the_first_answer_and_ends_with_the_grader_which_can_be_used_again() -> None:
    grader = Grader()
    for _ in range(2):
        assert workers() == []
        assert [grader.grade(*answer) for answer in ANSWERS] == VERDICTS
        assert len(workers()) == 1
        grader.close()
    assert workers() == []


def test_a_batch_keeps_its_order_and_survives_endless_answers() -> None:
    hostile = [ENDLESS, r"\boxed{(x+1)^{100000}}", r"\boxed{2^{2^{36}}}", f"\\boxed{{{'(' * 3000}1{')' * 3000}}}"]
    with Grader(2, seconds=0.7) as grader:
        found = list(grader.grade_all([*ANSWERS, *((answer, "5") for answer in hostile), *ANSWERS]))
    assert workers() == []
    assert found == [*VERDICTS, *[Verdict.FAILED] * len(hostile), *VERDICTS]


def test_math_verify_alone_grades_within_the_same_limit_and_odd_text_passes_the_pipe() -> None:
    with Grader(seconds=0.7) as grader:
        assert grader.grade("The answer is 5.", "5", "math-verify") is Verdict.CORRECT
        assert grader.grade("The answer is 5.", "5") is Verdict.UNGRADABLE
        assert grader.grade(r"\boxed{6}", "5", "math-verify") is Verdict.WRONG
        assert grader.grade(ENDLESS, "5", "math-verify") is Verdict.FAILED
        assert grader.grade(r"\boxed{\frac{1}{2}}", r"\frac12", "math-verify") is Verdict.CORRECT
        assert grader.grade("\ud800\x00\n\r\u2028é \\boxed{\n5\n}" + "a" * 200_000, "5\n") is Verdict.CORRECT


def test_threads_share_a_grader() -> None:
    answers = [(f"\\boxed{{{index} + x}}", f"x + {index % 3}") for index in range(24)]
    with Grader(2) as grader, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda answer: grader.grade(*answer), answers))
        assert len(workers()) <= 2
    assert found == [Verdict.CORRECT if index < 3 else Verdict.WRONG for index in range(24)]


def test_a_worker_that_dies_is_replaced() -> None:
    found: list[Verdict] = []
    with Grader(seconds=100) as grader:
        grader.grade(r"\boxed{5}", "5")
        (worker,) = workers()
        thread = threading.Thread(target=lambda: found.append(grader.grade(ENDLESS, "5")))
        thread.start()
        before = worker.cpu_times().user
        wait_until(lambda: worker.cpu_times().user > before + 0.1)
        worker.kill()
        thread.join()
        assert found == [Verdict.FAILED]
        assert grader.grade(r"\boxed{5}", "5") is Verdict.CORRECT
        # one that died idle blames no answer
        (worker,) = workers()
        worker.kill()
        # a zombie whose threads are still ending cannot be waited for yet
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        assert grader.grade(r"\boxed{5}", "5") is Verdict.CORRECT


def grade_in_a_daemon(results: "multiprocessing.Queue[list[str]]") -> None:
    with Grader() as grader:
        results.put([verdict.value for verdict in grader.grade_all(ANSWERS)])


def test_a_daemonic_process_can_grade() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=grade_in_a_daemon, args=(results,), daemon=True)
    process.start()
    assert results.get() == [verdict.value for verdict in VERDICTS]
    process.join()


# tests that run in the background of a shell inherit that interrupts are ignored
SCRIPT = f"""
import signal
from dynts.grading.grader import Grader
signal.signal(signal.SIGINT, signal.default_int_handler)
with Grader(seconds=SECONDS) as grader:
    print(grader.grade(r"\\boxed{{x + 1}}", "1 + x"), flush=True)
    print(grader.grade(r"{ENDLESS}", "5"), flush=True)
"""


def run_script(seconds: float) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """A script without a `__main__` guard, from standard input, that is grading the endless answer; and its worker."""
    script = subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert script.stdin is not None
    assert script.stdout is not None
    script.stdin.write(SCRIPT.replace("SECONDS", str(seconds)))
    script.stdin.close()
    assert script.stdout.readline() == "correct\n"
    (worker,) = psutil.Process(script.pid).children()
    return script, worker


def test_a_script_without_a_main_guard_can_grade() -> None:
    script, worker = run_script(1)
    assert script.stdout is not None
    assert script.stdout.read() == "grader_failed\n"
    assert script.wait() == 0
    assert not worker.is_running()


def test_an_interrupt_leaves_no_worker() -> None:
    script, worker = run_script(1000)
    # like the terminal, which sends it to both
    worker.send_signal(signal.SIGINT)
    script.send_signal(signal.SIGINT)
    assert script.stderr is not None
    assert "KeyboardInterrupt" in script.stderr.read()
    assert script.wait() != 0
    assert not worker.is_running()


def test_a_killed_process_leaves_no_worker() -> None:
    script, worker = run_script(1)
    script.kill()
    script.wait()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_a_grader_is_not_shared_with_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader()
    monkeypatch.setattr("dynts.grading.grader.os.getpid", lambda: os.getppid())
    with pytest.raises(DyntsError, match="make one in each process"):
        grader.grade(r"\boxed{5}", "5")


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader() as grader, pytest.raises(DyntsError, match=r"does not start; .*dynts\.grading\.worker"):
        grader.grade(r"\boxed{5}", "5")


def test_settings_are_checked() -> None:
    with pytest.raises(DyntsError, match="processes must be a whole number of at least 1, got 0"):
        Grader(0)
    with pytest.raises(DyntsError, match="seconds must be positive, got 0"):
        Grader(seconds=0)
