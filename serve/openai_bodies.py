"""The bodies of responses in OpenAI's format: which keys each has."""

from __future__ import annotations

from typing import TypedDict


class Fault(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: Fault


class Usage(TypedDict):
    """These are numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(TypedDict):
    role: str
    content: str
    refusal: None


class Delta(TypedDict, total=False):
    role: str
    content: str


class Content(TypedDict, total=False):
    """A choice has one of these, as its endpoint and a stream want it."""

    message: AnswerMessage
    delta: Delta
    text: str


class TokenLogprob(TypedDict):
    token: str
    logprob: float | None
    bytes: list[int] | None


class ChosenTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChosenTokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(Content):
    index: int
    logprobs: ChatLogprobs | CompletionLogprobs | None
    finish_reason: str | None


class Head(TypedDict):
    """Every body of a response begins with it."""

    id: str
    object: str
    created: int
    model: str


class Body(Head):
    """An event of a stream."""

    choices: list[Choice]


class BodyWithUsage(Body):
    """A whole response, or the last event of a stream."""

    usage: Usage


class ModelCard(TypedDict):
    id: str
    object: str
    created: int
    owned_by: str
