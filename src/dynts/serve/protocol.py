"""What clients may ask and what they get, in the words of OpenAI's API.

Requests are pydantic models of our own: `openai.types` describes requests as dictionaries that check nothing, and a
client gets an error that names the field here. `openai` stays what the tests ask with.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_LONGEST = 1000
"""Characters of a message: a field's name, which it repeats, may be as long as the request."""
_STOP_STRINGS = 16
_STOP_CHARACTERS = 200
_GREEDY = 1e-5
"""Temperatures below this are greedy: dividing by them overflows."""


def _only(*neutral: Any) -> Any:
    """Make a field that may only say what this server does anyway."""

    def check(value: Any) -> None:
        # 0 == False in Python, but `logprobs: 0` asks for the log-probabilities of what was chosen
        if value is not None and not any(
            value == item and isinstance(value, bool) == isinstance(item, bool) for item in neutral
        ):
            raise PydanticCustomError("unsupported", "not supported by this server: leave it out")

    return Annotated[Any, AfterValidator(check), Field(default=None)]


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("surrogate", "must be valid Unicode: it holds half of a surrogate pair") from None
    return value


def _joined_parts(value: Any) -> Any:
    """Join the text of a message, which may come in parts."""
    if not isinstance(value, list):
        return value
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    if not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("parts", "only parts of type 'text' are supported: this is a text model")
    return "".join(texts)  # type: ignore[arg-type]


def _stop_strings(value: Any) -> Any:
    strings = [value] if isinstance(value, str) else value or []
    if not isinstance(strings, list) or len(strings) > _STOP_STRINGS:
        raise PydanticCustomError("stop", f"must be a string or a list of at most {_STOP_STRINGS} strings")
    if not all(isinstance(string, str) and 0 < len(string) <= _STOP_CHARACTERS for string in strings):
        raise PydanticCustomError("stop", f"stop strings must have 1 to {_STOP_CHARACTERS} characters")
    return strings


def _prompts(value: Any) -> Any:
    """Return a list of prompts, each a text or token ids."""
    single = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    prompts = [value] if single else value
    if not isinstance(prompts, list) or not prompts:
        raise PydanticCustomError("prompt", "must be a string, a list of strings, or lists of token ids")
    for prompt in prompts:
        is_ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not is_ids:
            raise PydanticCustomError("prompt", "must be a string, a list of strings, or lists of token ids")
        if isinstance(prompt, str):
            _text(prompt)
    return prompts


Text = Annotated[str, AfterValidator(_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Any = None


class GenerationRequest(_Strict):
    """Fields that both endpoints have. None leaves a setting to the server."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 and 0 draw from all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Text] | None, BeforeValidator(_stop_strings)] = None
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    frequency_penalty: _only(0)  # type: ignore[valid-type]
    presence_penalty: _only(0)  # type: ignore[valid-type]
    logit_bias: _only({})  # type: ignore[valid-type]
    logprobs: _only(False)  # type: ignore[valid-type]

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """Return the field that limits the completion's tokens, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def sampling(self) -> dict[str, Any]:
        """Return the given fields of `Sampling`, without the limit of new tokens."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "seed")}
        if self.temperature is not None and self.temperature < _GREEDY:
            given["temperature"] = 0.0
        if self.top_k is not None and self.top_k < 1:
            given["top_k"] = 2**31 - 1
        return {name: value for name, value in given.items() if value is not None}


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text | None, BeforeValidator(_joined_parts)] = None
    reasoning_content: Text | None = None
    name: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: _only()  # type: ignore[valid-type]
    function_call: _only()  # type: ignore[valid-type]
    tool_calls: _only([])  # type: ignore[valid-type]

    def for_template(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content or ""}
        return message | ({"reasoning_content": self.reasoning_content} if self.reasoning_content else {})


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] | None = None
    top_logprobs: _only(0)  # type: ignore[valid-type]
    tools: _only([])  # type: ignore[valid-type]
    tool_choice: _only("none", "auto")  # type: ignore[valid-type]
    functions: _only([])  # type: ignore[valid-type]
    response_format: _only({"type": "text"})  # type: ignore[valid-type]
    modalities: _only(["text"])  # type: ignore[valid-type]
    parallel_tool_calls: Any = None

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """`max_completion_tokens`, or its older name."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().token_limit


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    best_of: _only(1)  # type: ignore[valid-type]
    echo: _only(False)  # type: ignore[valid-type]
    suffix: _only("")  # type: ignore[valid-type]


FinishReason = Literal["stop", "length"]


class CacheUsage(BaseModel):
    """What the KV cache did for a request, all its completions together.

    Attributes:
        method: what was kept.
        budget: most cached tokens of a completion; None without one.
        compactions: of the completions' rows.
        evicted_tokens: likewise.
        peak_cached_tokens: most tokens that one completion had in the cache, its prompt included.
    """

    method: str
    budget: int | None
    compactions: int = 0
    evicted_tokens: int = 0
    peak_cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens of a request. The token that ends a turn counts as generated; a prompt counts once whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    dynts: CacheUsage


@dataclass(eq=False)
class ApiError(Exception):
    """What a request is answered with instead of a completion.

    Args:
        status: the HTTP status.
        message: names the value, the limit and the fix.
        param: the field that is wrong, if one is.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON object of the answer."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        error = {"message": _plain(self.message), "type": kind, "param": self.param and _plain(self.param)}
        return {"error": {**error, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Return the HTTP headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def _plain(text: str) -> str:
    """Return the text, no longer than is useful, without halves of surrogate pairs, which UTF-8 cannot hold."""
    return text[:_LONGEST].encode("utf-8", "replace").decode()
