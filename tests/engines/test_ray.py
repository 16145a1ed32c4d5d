"""Actors of a Ray cluster that die: their work is handed out again, and nothing is lost or made twice."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adder import Adder, rows_of, run
from dynts.collect.collect import engines
from dynts.config import ModelSource
from dynts.engines.ray import ActorPool, Cluster, Item, Work
from dynts.errors import DyntsError
from dynts.tiny import WEIGHTS, load_tiny_model
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.traces.sets import as_sets
from dynts.training.config import LabelOptions
from dynts.training.labeller import LabellerSpec
from dynts.training.labelling import label_on_cluster, label_traces
from recipes.embedded_model.solution import write_response
from summer import SlowAdderSpec

ray = pytest.importorskip("ray", reason="actors need ray: pip install 'dynts-kv[ray]'")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One small cluster on this machine; its processes find the helpers."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "helpers"), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def kill_actors(pids: Path, moments: list[float]) -> threading.Thread:
    """Kill the actor that started last, at each of these moments after the first has started."""

    def work() -> None:
        while not pids.exists():
            time.sleep(0.05)
        for pause in moments:
            time.sleep(pause)
            os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_traces_of_killed_actors_are_made_again(sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(sums, tmp_path / "whole", Adder())
    pids = tmp_path / "pids"
    spec = SlowAdderSpec(str(pids))
    killer = kill_actors(pids, [0.55])
    with engines(spec, Cluster(actors=2), print) as generate:
        run(sums, tmp_path / "out", generate)  # type: ignore[arg-type]
    killer.join()
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert capsys.readouterr().out.count("an actor died with") == 1
    assert len(pids.read_text().split()) == 3, "two actors, and one that replaced the dead one"


@pytest.mark.slow
def test_a_trace_that_kills_every_actor_is_named(sums: Path, tmp_path: Path) -> None:
    spec = SlowAdderSpec(str(tmp_path / "pids"), batch=1, deadly="sum-7")
    ended = pytest.raises(DyntsError, match=r"actors that worked on sum-7#0 died 3 times")
    with ended, engines(spec, Cluster(actors=2), print) as generate:
        run(sums, tmp_path / "out", generate)  # type: ignore[arg-type]
    assert set(rows_of(tmp_path / "out")) >= {f"sum-{x}#0" for x in range(7)}


@pytest.mark.slow
def test_an_engine_that_does_not_start_is_no_reason_to_try_again(sums: Path, tmp_path: Path) -> None:
    ended = pytest.raises(DyntsError, match=r"an actor could not start its engine.*IsADirectoryError")
    with ended, engines(SlowAdderSpec(str(tmp_path)), Cluster(actors=1), print) as generate:
        run(sums, tmp_path / "out", generate)  # type: ignore[arg-type]


class Row(NamedTuple):
    """A piece of work, which an actor does as its id says."""

    id: str


def rows(*names: str) -> list[Row]:
    return [Row(name) for name in names]


def test_actors_are_given_items_while_they_work(tmp_path: Path) -> None:
    """A slow item holds no other back; actors may die, read ahead or fail meanwhile."""
    died = tmp_path / "died"

    def prepare() -> Work:
        def work(items: Iterator[Row]) -> Iterator[tuple[str, str]]:
            slow = []
            for item in items:
                if item.id == "ahead":
                    slow.extend(items)
                if item.id == "deadly" and not died.exists():
                    died.touch()
                    os._exit(1)
                if item.id == "fails":
                    raise ZeroDivisionError(item.id)
                if item.id == "slow":
                    slow.append(item)
                else:
                    yield item.id, item.id
            yield from ((item.id, item.id) for item in slow)

        return work

    numbers = [str(number) for number in range(20)]
    said: list[str] = []
    with ActorPool(Cluster(actors=1), prepare, said.append) as pool:
        assert list(pool.work(rows("slow", *numbers), 2)) == [*numbers, "slow"], "one stream, without waves"
        found = list(pool.work(rows("ahead", *numbers), 2))
        assert sorted(found) == sorted(["ahead", *numbers]), "an engine that takes all it can get waits for no more"
        found = list(pool.work(rows("slow", *numbers[:10], "deadly", *numbers[10:]), 2))
        assert sorted(found) == sorted(["slow", "deadly", *numbers]), "nothing is lost, nothing comes twice"
        assert found[:10] == numbers[:10]
        assert found[-1] == "slow"
        assert said == ["an actor died with 2 traces under way: replaced, and they are handed out again"]
        assert not list(pool.work([], 2))
        with pytest.raises(ZeroDivisionError, match="fails"):
            list(pool.work(rows(*numbers, "fails"), 2))


class Ask:
    """A piece of work for an actor."""

    id = "cores"


def test_actors_without_gpus_share_the_cores() -> None:
    """Ray lets an actor compute with as many threads as it has CPUs."""

    def prepare() -> Work:
        def work(items: Iterator[Item]) -> Iterator[tuple[str, Any]]:
            for item in items:
                yield item.id, ray.get_runtime_context().get_assigned_resources()["CPU"]

        return work

    with ActorPool(Cluster(), prepare, print) as pool:
        assert list(pool.work([Ask()], 1)) == [2], "all cores of the one machine"
        shares = [Cluster(actors=actors).shares() for actors in (None, 1, 2, 4)]
    assert shares == [(1, 2, 0), (1, 2, 0), (2, 1, 0), (4, 0.5, 0)]


def test_labels_made_by_actors_are_those_made_here(tmp_path: Path) -> None:
    lines = []
    for seed in PREDICTOR[:8]:
        item = make_problem(seed, steps=range(4, 6))
        row = {"question": item.question, "response": write_response(item)}
        lines.append(json.dumps({**row, "answer": item.answer}))
    traces = tmp_path / "traces.jsonl"
    traces.write_text("\n".join(lines))
    model, tokenizer = load_tiny_model()
    whole = label_traces(model, tokenizer, traces, tmp_path / "whole", name="tiny", future_window=75)
    spec = LabellerSpec(ModelSource(str(WEIGHTS)), LabelOptions(future_window=75))
    folder = label_on_cluster(
        spec, Cluster(actors=1), as_sets(traces), tmp_path / "out", "tiny", lambda done, total: None, print
    )
    assert folder.manifest == whole.manifest
    for index in whole.indices:
        assert folder.is_whole(index)
        assert folder.read(index).info == whole.read(index).info
        # another process may round differently
        one, other = (part.read(index).hidden for part in (folder, whole))
        assert (one - other).abs().max() < 1e-4
