"""Listen, and end in good order."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from transformers import PreTrainedTokenizerBase

from dynts.chat.options import ChatOptions
from dynts.chat.written import ClosingWatch
from dynts.config import Sampling
from dynts.decode.checkpoint import check_checkpoint
from dynts.decode.compress import Session
from dynts.errors import DyntsError
from dynts.models.shape import ModelShape
from dynts.serve.admission import Admission
from dynts.serve.app import create_app
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics

log = logging.getLogger(__name__)

_LAST_WORDS = 5.0
"""Seconds for clients to read the error that ends their request, and for the batch to notice."""


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket at that address, before a model loads; it refuses connections until it is listened to.

    Args:
        host: to listen on.
        port: likewise; 0 takes a free one.

    Raises:
        DyntsError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise DyntsError(f"cannot listen at {host}:{port} ({error}): choose another --host or --port") from error
    return bound


def cache_bytes(session: Session, rows: int) -> int:
    """Return the most bytes that the keys and values of so many rows take, which the budget bounds.

    Prompts that are being read, and beginnings that are kept for other prompts, come on top.

    Args:
        session: of a method that evicts.
        rows: at a time.
    """
    weight = cast(Any, session.model.get_input_embeddings()).weight
    return rows * ModelShape.of(session.model.config).kv_bytes(session.config.budget, weight.element_size())


def serve_session(
    session: Session,
    tokenizer: PreTrainedTokenizerBase,
    bound: socket.socket,
    *,
    name: str,
    sampling: Sampling,
    chat: ChatOptions,
    api_key: str | None,
    max_batch: int,
    max_waiting: int,
    prefill_tokens: int,
    max_body_bytes: int,
    drain_seconds: float,
    announce: Callable[[str], object],
) -> None:
    """Serve until SIGTERM or SIGINT, then take no more connections, finish what is under way, and return.

    Args:
        session: an entered `compress` context.
        tokenizer: the model's.
        bound: where to listen, from `bind`.
        name: of the model, as clients call it.
        sampling: where a request leaves it open; its `max_new_tokens` is the limit for all.
        chat: how the model is talked to.
        api_key: what clients must send; None lets everyone in.
        max_batch: completions at a time.
        max_waiting: completions that may wait; the smaller of the two is the limit of one request.
        prefill_tokens: of prompts to read between two decode steps.
        max_body_bytes: of a request.
        drain_seconds: for requests under way at the end; then they get an error.
        announce: told of the address when it can be used, and of what the cache will take at most.

    Raises:
        DyntsError: the tokenizer cannot decode piece by piece, or the checkpoint asks for what cannot be done.
    """
    if not tokenizer.is_fast:
        raise DyntsError(f"{type(tokenizer).__name__} has no fast version, which serving needs: add a tokenizer.json")
    model = session.model
    check_checkpoint(model)
    admission = Admission(
        name=name,
        tokenizer=tokenizer,
        vocabulary=len(cast(Any, model.get_input_embeddings().weight)),
        positions=getattr(model.config, "max_position_embeddings", None),
        method=type(session.method).__name__,
        schedule=session.config if session.method.evicts else None,
        defaults=sampling,
        max_completions=min(max_batch, max_waiting),
        chat=chat,
        watch=ClosingWatch(log.warning, "give the markers that the model writes by --think-start and --think-end"),
    )
    metrics = Metrics()
    batcher = Batcher(session, tokenizer, max_batch, max_waiting, metrics, chat.format(tokenizer), prefill_tokens)
    app = create_app(admission, batcher, metrics, api_key, max_body_bytes)
    # uvicorn sends the signal that ended it to whoever handled it before: an end in good order is no failure
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    room = ""
    if session.method.evicts:
        size = f"{cache_bytes(session, max_batch) / 2**20:,.1f} MiB of keys and values"
        room = f"\nat most {max_batch} x {session.config.budget:,} cached tokens, {size}"

    def ready(address: str) -> None:
        announce(f"serving {name} at {address}{room}")

    _Server(app, batcher, drain_seconds, ready).run([bound])
    if not batcher.stop(_LAST_WORDS):
        # a thread inside a forward pass would abort the interpreter's own way out
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Server(uvicorn.Server):
    def __init__(self, app: FastAPI, batcher: Batcher, drain_seconds: float, ready: Callable[[str], object]) -> None:
        grace = int(drain_seconds + _LAST_WORDS)
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=grace)
        super().__init__(config)
        self.batcher = batcher
        self.drain_seconds = drain_seconds
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            self.ready(f"http://{where}:{port}/v1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self.drain_seconds, self.batcher.stop, 0)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
