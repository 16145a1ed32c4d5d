"""The endpoints, and what stands before them: the API key, the size of requests, and the count of how they ended."""

import asyncio
import hmac
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynts.serve.admission import Admission
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError, ChatRequest, CompletionRequest, GenerationRequest
from dynts.serve.replies import Exchange

OUTCOME = "dynts.outcome"
"""In a request's scope: the status to count, where it is not the one that was sent."""
_CLIENT_LEFT = 499


def create_app(
    admission: Admission, batcher: Batcher, metrics: Metrics, api_key: str | None, max_body_bytes: int
) -> FastAPI:
    """Build the application.

    Args:
        admission: what the server takes.
        batcher: what generates.
        metrics: what it counts in.
        api_key: what clients of /v1 must send; None lets everyone in.
        max_body_bytes: of a request.
    """
    app = FastAPI(title="dynts", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, api_key=api_key, max_body_bytes=max_body_bytes, metrics=metrics)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return error_response(_validation_error(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return error_response(ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return error_response(ApiError(500, "the server failed on this request; its log says why", code="failed"))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        return await _answer(request, http, admission, batcher)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: CompletionRequest, http: Request) -> Response:
        return await _answer(request, http, admission, batcher)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [admission.model_card()]}

    @app.get("/v1/models/{name:path}")  # names of the Hub hold a slash
    async def model(name: str) -> dict[str, Any]:
        admission.check_model(name)
        return admission.model_card()

    @app.get("/health", response_model=None)
    async def health() -> Response:
        alive = batcher.alive
        return JSONResponse({"status": "ok" if alive else "ending"}, 200 if alive else 503)

    @app.get("/metrics", response_model=None)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


class EventStream(StreamingResponse):
    """The events of an exchange, which is given up when the client leaves."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until nobody listens."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.exchange.cancel():
                failure = self.exchange.failure
                scope[OUTCOME] = failure.status if failure else _CLIENT_LEFT


class Guard:
    """ASGI middleware for the paths under /v1; others pass.

    Ready-made ones do not do: Starlette's limit of bodies does not name the limit, and Prometheus middlewares count a
    stream that nobody reads any more as answered.

    Args:
        app: what it guards.
        api_key: what clients must send as `Authorization: Bearer ...`; None lets everyone in.
        max_body_bytes: of a request.
        metrics: what to count in.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int, metrics: Metrics) -> None:
        self.app = app
        self.api_key = api_key
        self.max_body_bytes = max_body_bytes
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if self._knows_key(dict(scope["headers"])):
                await self.app(scope, self._limited(receive), noted)
            else:
                error = ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
                await error_response(error)(scope, receive, noted)
        finally:
            self.metrics.requests.labels(str(scope.get(OUTCOME, status))).inc()

    def _knows_key(self, headers: dict[bytes, bytes]) -> bool:
        if self.api_key is None:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {self.api_key}".encode())

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                # the one error that FastAPI lets through while it reads a body
                raise HTTPException(413, f"the request is larger than {self.max_body_bytes} bytes: shorten it")
            return message

        return limited


def error_response(error: ApiError) -> JSONResponse:
    """Return the response that an error is."""
    return JSONResponse(error.body, error.status, error.headers)


async def _answer(request: GenerationRequest, http: Request, admission: Admission, batcher: Batcher) -> Response:
    exchange = await Exchange.begin(request, admission, batcher)
    if request.stream:
        return EventStream(exchange)
    answer, left = asyncio.create_task(exchange.whole()), asyncio.create_task(_left(http.receive))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(answer.result()) if answer.done() else Response(status_code=_CLIENT_LEFT)
    finally:
        exchange.cancel()
        answer.cancel()
        left.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _validation_error(first: dict[str, Any]) -> ApiError:
    """Return what is wrong with the fields of a request, the first of several faults."""
    field = ".".join(map(str, first["loc"][1:]))
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is no valid JSON: {first['ctx']['error']}")
        case _ if not field:
            return ApiError(400, "the body must be a JSON object, sent with Content-Type: application/json")
        case "extra_forbidden":
            return ApiError(400, f"unknown field {field!r}: leave it out", field)
        case "missing":
            return ApiError(400, f"field {field!r} is missing", field)
        case _:
            given = f", got {first['input']!r}" if isinstance(first["input"], int | float | str) else ""
            return ApiError(400, f"field {field!r}: {first['msg']}{given}", field)
