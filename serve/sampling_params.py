"""Defines how the tokens of an answer are drawn: its settings, and its state so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class SamplingParams:
    """The settings of one answer, in the terms of OpenAI's API and of transformers."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """How many of the likeliest tokens can be drawn. 0 means all."""
    min_p: float = 0.0
    """The least probability of a token that can be drawn, as a share of the likeliest one's."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in the prompt and the answer, and multiplies negative
    ones."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the token is in the answer."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once if the token is in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Values that are added to the logits of single tokens."""
    logprobs: int | None = None
    """How many alternatives are returned beside the token's own log-prob. None: no log-probs."""


class SamplingState:
    """What the draw of an answer's next token depends on, beside the model's logits."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self.params = params
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self._output_ids: set[int] = set()
        self.repeated = set(prompt_ids) if params.repetition_penalty != 1 else set()
        """The tokens whose logits `repetition_penalty` changes."""
        self.additions = dict(params.logit_bias)
        """What is added to the logits of tokens: the bias minus the penalties."""

    def append(self, token: int) -> None:
        """Updates the penalties after a token of the answer."""
        params = self.params
        if params.repetition_penalty != 1:
            self.repeated.add(token)
        if params.frequency_penalty or params.presence_penalty:
            penalty = params.frequency_penalty
            if token not in self._output_ids:
                self._output_ids.add(token)
                penalty += params.presence_penalty
            self.additions[token] = self.additions.get(token, 0.0) - penalty
