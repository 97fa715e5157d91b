"""What says how the tokens of an answer are drawn: its settings, and what it has drawn so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are drawn, in the terms of OpenAI's API and of transformers."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """Only so many of the likeliest tokens can be drawn. 0 stands for all."""
    min_p: float = 0.0
    """Only tokens of at least this share of the likeliest one's probability can be drawn."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and the answer are divided by it, or multiplied below 0."""
    frequency_penalty: float = 0.0
    """A logit loses it each time that its token stands in the answer."""
    presence_penalty: float = 0.0
    """A logit loses it once if its token stands in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """What is added to the logits of single tokens."""
    logprobs: int | None = None
    """How many alternatives are given beside the token's own log-prob. None gives no log-probs."""


class SamplingState:
    """What the next token of one answer depends on, beside the model's logits."""

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
        """What is added to the logits of these tokens: the bias less the penalties."""

    def append(self, token: int) -> None:
        """Counts a token of the answer."""
        params = self.params
        if params.repetition_penalty != 1:
            self.repeated.add(token)
        if params.frequency_penalty or params.presence_penalty:
            loss = params.frequency_penalty
            if token not in self._output_ids:
                self._output_ids.add(token)
                loss += params.presence_penalty
            self.additions[token] = self.additions.get(token, 0.0) - loss
