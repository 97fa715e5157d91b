"""These are the bodies that requests may have: those of OpenAI's API, and a plain one for curl.

A field that is not known here is refused by its name and never ignored.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import ErrorDetails

from serve.sampling_params import SamplingParams


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CommonRequest(_StrictModel):
    """These fields are common to all requests."""

    model: str | None = None
    """One of /v1/models. By default it is the first."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    user: str | None = None
    """It is accepted and not used."""

    @model_validator(mode="after")
    def _few_stops(self) -> Self:
        if len(self.stops) > 4 or "" in self.stops:
            raise ValueError("stop: at most 4 texts, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class StreamOptions(_StrictModel):
    include_usage: bool = False


class StreamableRequest(CommonRequest):
    n: int | None = Field(None, ge=1, le=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: only with stream: true")
        return self

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def max_new_tokens(self) -> int | None:
        return self.max_tokens

    @abstractmethod
    def logprob_alternatives(self) -> int | None:
        """Returns how many log-probs are given beside each token's own, or None for none at all."""

    def sampling(self, max_tokens: int, number: int) -> SamplingParams:
        """Returns the settings of the `number`-th of several answers, which has its own seed."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else (self.seed + number) % 2**63,
            stop=self.stops,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logprobs=self.logprob_alternatives(),
        )


class TextPart(_StrictModel):
    type: Literal["text"]
    text: str


class Message(_StrictModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    """It is accepted and not used, because chat templates know no names."""
    refusal: None = None
    """An answer has this field, and comes back with the next question."""

    def for_template(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": role, "content": content}


class ChatRequest(StreamableRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens: give one of them")
        return self

    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def logprob_alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(StreamableRequest):
    prompt: str | list[str] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def logprob_alternatives(self) -> int | None:
        return self.logprobs


class GenerateRequest(CommonRequest):
    """`POST /generate`: one prompt in, one text out."""

    prompt: str
    system: str | None = None

    def as_chat(self) -> ChatRequest:
        messages = [Message(role="user", content=self.prompt)]
        if self.system:
            messages.insert(0, Message(role="system", content=self.system))
        common = self.model_dump(exclude={"prompt", "system"})
        return ChatRequest(messages=messages, **common)


def explain_validation_error(error: ErrorDetails) -> tuple[str, str | None]:
    """Returns a message and the name of the parameter for an error of Pydantic."""
    path = ".".join(str(part) for part in error["loc"] if part != "body") or None
    if error["type"] == "extra_forbidden":
        return f"{path} is not supported by this server", path
    if error["type"] == "json_invalid":
        return "the body is not JSON", None
    return f"{path}: {error['msg']}" if path else str(error["msg"]), path
