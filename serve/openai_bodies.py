"""Defines the keys of response bodies in OpenAI's format."""

from __future__ import annotations

from typing import TypedDict


class Fault(TypedDict):
    """The description of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of an error response."""

    error: Fault


class Usage(TypedDict):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(TypedDict):
    """The message of a whole chat answer."""

    role: str
    content: str
    refusal: None


class Delta(TypedDict, total=False):
    """A piece of a chat answer in a stream."""

    role: str
    content: str


class Content(TypedDict, total=False):
    """The content of a choice. The endpoint and streaming decide which field it has."""

    message: AnswerMessage
    delta: Delta
    text: str


class TokenLogprob(TypedDict):
    """A token of a chat answer with its log-prob."""

    token: str
    logprob: float | None
    bytes: list[int] | None


class ChosenTokenLogprob(TokenLogprob):
    """The drawn token, with its alternatives."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """The log-probs of a chat answer."""

    content: list[ChosenTokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """The log-probs of a completion."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(Content):
    """One of the answers in a response."""

    index: int
    logprobs: ChatLogprobs | CompletionLogprobs | None
    finish_reason: str | None


class Head(TypedDict):
    """The fields that all response bodies share."""

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
    """A model in the list of models."""

    id: str
    object: str
    created: int
    owned_by: str
