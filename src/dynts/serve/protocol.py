"""What clients may ask and what they get, in the words of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_serializer
from pydantic_core import PydanticCustomError

_STOP_STRINGS = 16
_STOP_CHARACTERS = 200
_GREEDY = 1e-5
"""Temperatures below this are greedy: dividing by them overflows."""


def _only(*neutral: Any) -> Any:
    """A field that may only say what this server does anyway."""

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
    """The text of a message, which may come in parts."""
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
    """A list of prompts, each a text or token ids."""
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
        """The field that limits the completion's tokens, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def sampling(self) -> dict[str, Any]:
        """The given fields of `Sampling`, without the limit of new tokens."""
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
        """The message as chat templates take it."""
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


class ReplyMessage(BaseModel):
    """What the model wrote: its thinking, None if it did not think, and its answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ReplyMessage
    logprobs: None = None
    finish_reason: FinishReason


class Delta(BaseModel):
    """What comes next of an answer; fields that are None are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None

    @model_serializer
    def _given(self) -> dict[str, str]:
        return {name: value for name, value in self if value is not None}


class ChatChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class CompletionChoice(BaseModel):
    """A completion, or a piece of one."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Reply(BaseModel):
    """A whole answer or one event of a stream.

    Attributes:
        object: "chat.completion", "chat.completion.chunk" or "text_completion".
    """

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[CompletionChoice]
    usage: Usage | None = None
