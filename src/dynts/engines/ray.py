"""Work spread over the actors of a Ray cluster: one engine each, dead ones replaced, their work handed out again."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from dynts.errors import DyntsError
from dynts.extras import need
from dynts.options import option

LOCAL = "local"
_ATTEMPTS = 3


class Item(Protocol):
    """A piece of work."""

    @property
    def id(self) -> str:
        """Tells it from the others."""
        ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the actors run.

    Args:
        address: of a running cluster, such as "auto" or "ray://head:10001"; "local" starts one on this machine.
        actors: how many; None takes one for each `gpus` GPUs of the cluster, without GPUs one for each machine. Actors
            on a machine without GPUs share its cores.
        gpus: of each actor; None takes 1 if the cluster has any.

    Raises:
        DyntsError: ray is not installed, or a number is too small.
    """

    address: str = option(
        LOCAL,
        command_line=None,
        flag="--ray",
        alone=LOCAL,
        metavar="[ADDRESS]",
        help="Spread the work over the actors of a Ray cluster: of the one at ADDRESS, or of one started here.",
    )
    actors: int | None = option(None, help="With --ray: how many actors (default: one for each GPU, or machine).")
    gpus: float | None = option(
        None, flag="--gpus-per-actor", help="With --ray: GPUs of each actor (default: 1 if the cluster has any)."
    )

    def __post_init__(self) -> None:
        need("ray", "ray", "--ray")
        if self.actors is not None and self.actors < 1:
            raise DyntsError(f"actors must be at least 1, got {self.actors}")
        if self.gpus is not None and self.gpus < 0:
            raise DyntsError(f"gpus must not be negative, got {self.gpus}")

    def connect(self) -> None:
        """Join the cluster, or start one; one that is joined already stays.

        Raises:
            DyntsError: there is none at the address.
        """
        import ray

        if ray.is_initialized():
            return
        try:
            ray.init(address=self.address, include_dashboard=False if self.address == LOCAL else None)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise DyntsError(
                f"cannot reach the Ray cluster {self.address}: {error}; start one with `ray start --head`"
            ) from error

    def shares(self) -> tuple[int, float, float]:
        """Say how many actors there will be, and how many CPUs and GPUs each gets.

        Ray lets an actor compute with as many threads as it has CPUs.
        """
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = sum(machine.get("GPU", 0.0) for machine in machines)
        gpus = self.gpus if self.gpus is not None else float(total > 0)
        if gpus:
            return self.actors or max(1, int(total / gpus)), 0, gpus
        cores = [machine["CPU"] for machine in machines if machine.get("CPU", 0) >= 1] or [1.0]
        actors = self.actors or len(cores)
        share = min(cores) / math.ceil(actors / len(cores))
        return actors, math.floor(share) if share > 1 else share, 0


Work = Callable[[Sequence[Any]], Iterable[tuple[str, Any]]]
"""What an actor does with some items: pairs of an item's id and its result, each as it comes."""


class ActorPool:
    """Actors that each hold an engine, between `with` and the end of the block.

    `ray.util.ActorPool` waits for one result of a call and replaces no actor; here results stream, dead actors are
    replaced and their work is handed out again.

    Args:
        cluster: where they run.
        prepare: called once in each actor: loads the engine and returns what works through items. It is pickled.
        say: told of actors that died.
    """

    def __init__(self, cluster: Cluster, prepare: Callable[[], Work], say: Callable[[str], object]) -> None:
        self.cluster = cluster
        self.prepare = prepare
        self.say = say

    def __enter__(self) -> Self:
        import ray

        self.cluster.connect()
        actors, cpus, gpus = self.cluster.shares()
        self._remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Actor)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, dict[str, Item]]] = {}
        for _ in range(actors):
            self._idle.append(self._remote.remote(self.prepare))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def work(self, items: Iterable[Item], chunk: int) -> Iterator[Any]:
        """Spread items over the actors.

        Args:
            items: the work, taken as actors become free.
            chunk: items that an actor gets at a time.

        Yields:
            Results in the order they come.

        Raises:
            DyntsError: an actor could not start its engine, or an item's actor died three times.
            Exception: what the work raised.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        coming = iter(items)
        again: list[Item] = []
        attempts: Counter[str] = Counter()
        while True:
            while self._idle and (taken := _take(again, coming, chunk)):
                actor = self._idle.pop()
                begun = actor.work.options(num_returns="streaming").remote(taken)
                self._busy[begun] = (actor, {item.id: item for item in taken})
            if not self._busy:
                return
            ready, _ = ray.wait(list(self._busy), num_returns=1)
            stream: Any = ready[0]
            actor, left = self._busy[stream]
            try:
                identity, result = ray.get(next(stream))
            except StopIteration:
                del self._busy[stream]
                self._idle.append(actor)
            except RayTaskError as error:
                raise error.cause from error
            except RayActorError as error:
                del self._busy[stream]
                self._idle.append(self._remote.remote(self.prepare))
                if error.actor_init_failed:
                    # the message ends with the actor's own traceback
                    reason = str(error).strip().splitlines()[-1]
                    raise DyntsError(f"an actor could not start its engine: {reason}") from error
                attempts.update(left.keys())
                if exhausted := [name for name in left if attempts[name] >= _ATTEMPTS]:
                    raise DyntsError(
                        f"actors that worked on {', '.join(exhausted[:3])} died {_ATTEMPTS} times ({error}): "
                        "look for a lack of memory, then run the same command again to continue"
                    ) from error
                self.say(f"an actor died with {len(left)} traces under way: replaced, and they are handed out again")
                again.extend(left.values())
            else:
                del left[identity]
                yield result


def _take(again: list[Item], coming: Iterator[Item], chunk: int) -> list[Item]:
    taken = again[:chunk]
    del again[:chunk]
    while len(taken) < chunk and (item := next(coming, None)) is not None:
        taken.append(item)
    return taken


class _Actor:
    """Holds an engine."""

    def __init__(self, prepare: Callable[[], Work]) -> None:
        self._work = prepare()

    def work(self, items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
        """Yield results, streamed."""
        yield from self._work(items)
