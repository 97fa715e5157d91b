"""Defines the bodies of requests: those of OpenAI's API, and a simple one for curl.

A field that would change an answer but is not supported is refused by its name, never ignored.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import Field, field_validator, model_validator
from pydantic_core import ErrorDetails

from serve.generation_defaults import GenerationDefaults
from serve.openai_messages import Message, RequestModel
from serve.sampling_params import SamplingParams

_MOST_BIASED_TOKENS = 1024
_Number = TypeVar("_Number", int, float)


class CommonRequest(RequestModel):
    """The fields that all requests share."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
            "safety_identifier", "service_tier", "store", "user",
        }
    )  # fmt: skip
    neutral: ClassVar[dict[str, list[object]]] = {
        "n": [1],
        "stream": [False],
        "tools": [[]],
        "functions": [[]],
        "tool_choice": ["none", "auto"],
        "function_call": ["none", "auto"],
        "response_format": [{"type": "text"}],
        "modalities": [["text"]],
        "logprobs": [False],
        "suffix": [""],
        "echo": [False],
        "best_of": [1],
    }
    model: str | None = None
    """A name from /v1/models. The default is the first one."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """0 and -1 mean all tokens. Like min_p and repetition_penalty it is from vLLM's API."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: (
        dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = Field(None, max_length=_MOST_BIASED_TOKENS)

    @model_validator(mode="after")
    def _few_stops(self) -> Self:
        if len(self.stops) > 4 or "" in self.stops:
            raise ValueError("stop: at most 4 texts, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class StreamOptions(RequestModel):
    """Options of a stream."""

    ignored: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: bool | None = None


class StreamableRequest(CommonRequest):
    """The fields that requests of OpenAI's API share."""

    n: int | None = Field(None, ge=1, le=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.includes_usage and not self.stream:
            raise ValueError("stream_options.include_usage: only with stream: true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def max_new_tokens(self) -> int | None:
        """Returns the most tokens of the answer; None if the request does not limit them."""
        return self.max_tokens

    @abstractmethod
    def logprob_alternatives(self) -> int | None:
        """Returns how many alternatives are returned for each token, or None for no log-probs."""

    def sampling(
        self, max_tokens: int, number: int, defaults: GenerationDefaults
    ) -> SamplingParams:
        """Returns the settings of answer `number`. Several answers have different seeds."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_given(self.temperature, defaults.temperature),
            top_p=_given(self.top_p, defaults.top_p),
            top_k=max(_given(self.top_k, defaults.top_k), 0),
            min_p=_given(self.min_p, defaults.min_p),
            repetition_penalty=_given(self.repetition_penalty, defaults.repetition_penalty),
            seed=None if self.seed is None else (self.seed + number) % 2**63,
            stop=self.stops,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            logprobs=self.logprob_alternatives(),
        )


def _given(value: _Number | None, default: _Number) -> _Number:
    return default if value is None else value


class ChatRequest(StreamableRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        if self.max_tokens and (self.max_completion_tokens or self.max_tokens) != self.max_tokens:
            raise ValueError("max_tokens and max_completion_tokens: give one of them")
        return self

    def for_template(self) -> list[dict[str, str]]:
        """Returns the messages for a chat template."""
        return [message.for_template() for message in self.messages]

    def max_new_tokens(self) -> int | None:
        """Returns the most tokens of the answer; None if the request does not limit them."""
        return self.max_completion_tokens or self.max_tokens

    def logprob_alternatives(self) -> int | None:
        """Returns `top_logprobs`, or None for no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(StreamableRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=5)

    @field_validator("prompt", mode="before")
    @classmethod
    def _no_token_ids(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(isinstance(one, int | list) for one in prompt):
            raise ValueError("token ids are not supported; send a text, or a list of texts")
        return prompt

    @field_validator("logprobs", mode="before")
    @classmethod
    def _no_logprobs(cls, logprobs: Any) -> Any:
        return None if logprobs is False else logprobs

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def logprob_alternatives(self) -> int | None:
        """Returns `logprobs`, or None for no log-probs."""
        return self.logprobs


class GenerateRequest(CommonRequest):
    """`POST /generate`: one prompt in, one text out."""

    prompt: str
    system: str | None = None

    def as_chat(self) -> ChatRequest:
        """Returns the same request as a chat."""
        messages = [Message(role="user", content=self.prompt)]
        if self.system:
            messages.insert(0, Message(role="system", content=self.system))
        common = self.model_dump(exclude={"prompt", "system"})
        return ChatRequest(messages=messages, **common)


def explain_validation_error(error: ErrorDetails) -> tuple[str, str | None]:
    """Returns the message and the parameter's name for an error from Pydantic."""
    # Pydantic's location also names members of unions, which are no fields, so we remove them.
    names = [str(name) for name in error["loc"] if name not in ("body", "str")]
    path = ".".join(name for name in names if "[" not in name) or None
    if error["type"] == "extra_forbidden":
        return f"{path} is not supported by this server", path
    if error["type"] == "json_invalid":
        return "the body is not JSON", None
    own = error.get("ctx", {}).get("error")
    message = str(own) if isinstance(own, ValueError) else error["msg"]
    return f"{path}: {message}" if path else message, path
