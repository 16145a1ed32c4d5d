"""Work spread over the actors of a Ray cluster: one engine each, dead ones replaced, their work handed out again."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol, Self

from dynts.errors import DyntsError
from dynts.extras import need
from dynts.options import option

LOCAL = "local"
_ATTEMPTS = 3
_GIVE = "give"
"""The group of calls that an actor takes while it works."""


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


Work = Callable[[Iterator[Any]], Iterable[tuple[str, Any]]]
"""What an actor does with items, which it takes as it has room: pairs of an item's id and its result, as each comes."""


class ActorPool:
    """Actors that each hold an engine, between `with` and the end of the block.

    `ray.util.ActorPool` waits for one result of a call and replaces no actor; here an actor is given items while it
    works, results stream, dead actors are replaced and their work is handed out again.

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
        # calls of a group run in the order in which they were sent, also while another method runs
        remote: Any = ray.remote  # its types lack groups
        self._remote = remote(num_cpus=cpus, num_gpus=gpus, concurrency_groups={_GIVE: 1})(_Actor)
        self._members = [self._member() for _ in range(actors)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for member in self._members:
            ray.kill(member.actor)

    def work(self, items: Iterable[Item], batch: int) -> Iterator[Any]:
        """Spread items over the actors, each of which has a batch in hand beyond the one that it works on.

        Args:
            items: the work, taken as actors have room.
            batch: items that an actor works on at a time.

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
        self._hand_out(again, coming, 2 * batch)
        while running := {member.results: member for member in self._members if member.results is not None}:
            [ready], _ = ray.wait(list(running), num_returns=1)
            member = running[ready]
            # of several that are ready `wait` takes the first
            self._members.remove(member)
            self._members.append(member)
            found = []
            try:
                identity, result = ray.get(next(member.results))
            except StopIteration:
                member.results, member.ended = None, False
            except RayTaskError as error:
                raise error.cause from error
            except RayActorError as error:
                self._members[-1] = self._member()
                if error.actor_init_failed:
                    # the message ends with the actor's own traceback
                    reason = str(error).strip().splitlines()[-1]
                    raise DyntsError(f"an actor could not start its engine: {reason}") from error
                # what it had in hand beyond them has killed nobody
                begun = list(islice(member.left, batch))
                attempts.update(begun)
                if exhausted := [name for name in begun if attempts[name] >= _ATTEMPTS]:
                    raise DyntsError(
                        f"actors that worked on {', '.join(exhausted[:3])} died {_ATTEMPTS} times ({error}): "
                        "look for a lack of memory, then run the same command again to continue"
                    ) from error
                self.say(f"an actor died with {len(begun)} traces under way: replaced, and they are handed out again")
                again.extend(member.left.values())
            else:
                del member.left[identity]
                found.append(result)
            self._hand_out(again, coming, 2 * batch)
            yield from found

    def _member(self) -> "_Member":
        return _Member(self._remote.remote(self.prepare))

    def _hand_out(self, again: list[Item], coming: Iterator[Item], most: int) -> None:
        """Give each item to the actor that has the fewest, up to `most`; where none is left, end their streams."""
        while members := [member for member in self._members if not member.ended]:
            member = min(members, key=lambda member: len(member.left))
            if len(member.left) >= most:
                return
            item = again.pop(0) if again else next(coming, None)
            if item is None:
                for member in members:
                    member.end()
                return
            member.give(item, most)


class _Member:
    """An actor, the stream of its results, and the items that it has not finished, in the order in which it got them.

    Args:
        actor: the handle of an `_Actor`.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.results: Any = None
        self.left: dict[str, Item] = {}
        self.ended = False

    def give(self, item: Item, most: int) -> None:
        """Let it work on an item, after those that it has; `most` is how many it ever has."""
        if self.results is None:
            self.results = self.actor.work.options(num_returns="streaming").remote(most)
        self._send(item)
        self.left[item.id] = item

    def end(self) -> None:
        """Let its stream end after the items that it has."""
        if self.results is not None:
            self._send(None)
            self.ended = True

    def _send(self, item: Item | None) -> None:
        self.actor.give.options(num_returns=0, concurrency_group=_GIVE).remote(item)


class _Actor:
    """Holds an engine, and the items that it was given and has not taken yet."""

    def __init__(self, prepare: Callable[[], Work]) -> None:
        self._work = prepare()
        self._given: SimpleQueue[Item | None] = SimpleQueue()

    def give(self, item: Item | None) -> None:
        """Add an item; None ends the stream."""
        self._given.put(item)

    def work(self, most: int) -> Iterator[tuple[str, Any]]:
        """Yield results, streamed.

        An engine that reads ahead of its rows might wait for items that come only after its own results. One that has
        taken all that are ever given at a time, `most`, gets them as a whole, and starts again with the next.
        """
        taken = done = 0
        ended = False

        def items() -> Iterator[Item]:
            nonlocal taken, ended
            while taken - done < most:
                item = self._given.get()
                if item is None:
                    ended = True
                    return
                taken += 1
                yield item

        while not ended:
            for result in self._work(items()):
                done += 1
                yield result
