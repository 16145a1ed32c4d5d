"""SGLang's offline engine in a process of its own: `python -m dynts.engines.sglang.engine_process FD`.

SGLang ends the process that started it when one of its own fails, kills all of its children when it shuts down, and
loads plugins once: an engine for each budget wants a process for each. Messages are pickled tuples over a pipe; when
the other side closes it, the engine ends.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from dynts.errors import DyntsError


def run(connection: Connection) -> None:
    """Start an engine and answer requests until the pipe is closed.

    It is given SGLang's arguments, the budget that it is to have, and, for each one that will be wanted, the plugin's
    environment variables; its own are there from the start. Then requests come: id, prompt, sampling parameters.
    """
    arguments, budget, budgets = connection.recv()
    try:
        _check(arguments, budgets)
        from sglang import Engine

        from dynts.engines.sglang.handshake import READY

        engine = Engine(**arguments)
        if engine.get_server_info().get(READY) != budget:
            raise DyntsError("SGLang has not loaded dynts' plugin: install dynts anew, in the environment of SGLang")
    except Exception as error:
        connection.send(error_of(error))
        return
    manager = engine.tokenizer_manager
    itemsize = manager.model_config.dtype.itemsize if manager.config_value("kv_cache_dtype") == "auto" else None
    connection.send((itemsize,))
    engine.loop.run_until_complete(_answer(engine, connection))
    engine.shutdown()


def error_of(error: Exception) -> str:
    """Return the message of what was raised, with its kind where that is not of dynts."""
    return str(error) if isinstance(error, DyntsError) else f"SGLang says {type(error).__name__}: {error}"


def _check(arguments: Mapping[str, Any], budgets: Sequence[Mapping[str, str]]) -> None:
    """Have SGLang and the plugin look at all that will be wanted, so that it shows before hours of work."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    own = dict(os.environ)
    for budget in budgets:
        os.environ.update(budget)
        load_plugins()
        settings = ServerArgs(**arguments)
        settings.resolve_once()
        settings.check_server_args()
    os.environ.clear()
    os.environ.update(own)


async def _answer(engine: Any, connection: Connection) -> None:
    closed, tasks = asyncio.Event(), set()
    loop = asyncio.get_running_loop()

    # a thread of its own, for the other side may hand over requests, which must be read, before it reads answers
    with ThreadPoolExecutor(1) as sender:

        async def answer(name: str, ids: list[int], parameters: dict[str, Any]) -> None:
            message = await _generate(engine, name, ids, parameters)
            await loop.run_in_executor(sender, connection.send, message)

        def take() -> None:
            try:
                task = asyncio.create_task(answer(*connection.recv()))
            except EOFError:
                loop.remove_reader(connection.fileno())
                closed.set()
                return
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_reader(connection.fileno(), take)
        await closed.wait()


async def _generate(engine: Any, name: str, ids: list[int], parameters: dict[str, Any]) -> tuple[Any, ...] | str:
    """Return a request's answer, or what went wrong."""
    # SGLang refuses more than fits; an answer that long has not ended anyway
    room = engine.tokenizer_manager.context_len - len(ids)
    if 0 < room < parameters["max_new_tokens"]:
        parameters["max_new_tokens"] = room
    try:
        written = await engine.async_generate(input_ids=ids, sampling_params=parameters)
    except Exception as error:
        return error_of(error)
    return name, written["output_ids"], written["meta_info"]["finish_reason"]


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as other:
        os.set_inheritable(other.fileno(), False)
        run(other)
