"""Whether the engine of vLLM's server died, which the server itself does not say when it has ended."""

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIDDLEWARE = "dynts.engines.vllm.watch.EngineWatch"
engine_died = False
"""Whether the server of this process has ended because its engine did."""


class EngineWatch:
    """Notes `engine_died` as the app shuts down.

    Args:
        app: vLLM's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the app is asked, and watch how it ends.

        Args:
            scope: what is asked of the app.
            receive: gives the request's body, or says that the app starts or ends.
            send: takes the answer.
        """
        await self.app(scope, _watching(scope, receive) if scope["type"] == "lifespan" else receive, send)


def _watching(scope: Scope, receive: Receive) -> Receive:
    asked = False

    def noting(shut_down: Callable[..., None]) -> Callable[..., None]:
        def noted(*args: Any, **kwargs: Any) -> None:
            nonlocal asked
            asked = True
            shut_down(*args, **kwargs)

        return noted

    async def watched() -> Message:
        global engine_died
        message = await receive()
        engine = scope["app"].state.engine_client
        if message["type"] == "lifespan.startup":
            # an engine that was told to end, by a signal to the server, counts as one in error too
            engine.shutdown = noting(engine.shutdown)
        elif message["type"] == "lifespan.shutdown":
            engine_died = engine.errored and not asked
        return message

    return watched
