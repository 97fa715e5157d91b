"""This draws the next token of each answer from its logits, by the settings of its request."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

_GREEDY_TEMPERATURE = 1e-4
"""Below it a logit divided by the temperature may overflow, and the likeliest is drawn anyway."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are drawn, in the terms of OpenAI's API."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    """How many alternatives are given beside the token's own log-prob. None gives no log-probs."""

    def generator(self) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


@dataclass(frozen=True)
class TokenChoice:
    id: int
    logprob: float | None = None
    alternatives: list[tuple[int, float]] = field(default_factory=list)
    """(token id, log-prob) of the likeliest tokens, the best first."""


def sample_next_tokens(
    logits: torch.Tensor,
    params: list[SamplingParams],
    generators: list[torch.Generator | None],
    output_ids: list[list[int]],
) -> list[TokenChoice]:
    """Draws one token for each row of logits of shape (requests, vocabulary).

    `output_ids` are the tokens of each answer so far, for the penalties: a logit loses
    `presence_penalty` once and `frequency_penalty` as often as its token stands there.
    """
    if all(
        p.temperature < _GREEDY_TEMPERATURE and p.logprobs is None and not _has_penalty(p)
        for p in params
    ):
        return [TokenChoice(token) for token in logits.argmax(dim=-1).tolist()]
    rows = logits.float().cpu()
    return [
        _sample_one(row, p, generator, ids)
        for row, p, generator, ids in zip(rows, params, generators, output_ids, strict=True)
    ]


def _has_penalty(params: SamplingParams) -> bool:
    return bool(params.frequency_penalty or params.presence_penalty)


def _sample_one(
    row: torch.Tensor, params: SamplingParams, generator: torch.Generator | None, ids: list[int]
) -> TokenChoice:
    if ids and _has_penalty(params):
        counts = torch.bincount(torch.tensor(ids), minlength=len(row)).float()
        row = row - params.frequency_penalty * counts
        row = row - params.presence_penalty * (counts > 0)
    if params.temperature < _GREEDY_TEMPERATURE:
        token = int(row.argmax())
    else:
        token = _sample_nucleus(row / params.temperature, params.top_p, generator)
    if params.logprobs is None:
        return TokenChoice(token)
    logprobs = row.log_softmax(dim=-1)
    best = logprobs.topk(min(params.logprobs, len(row)))
    alternatives = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenChoice(token, float(logprobs[token]), alternatives)


def _sample_nucleus(row: torch.Tensor, top_p: float, generator: torch.Generator | None) -> int:
    """Draws from the fewest likeliest tokens that together have the probability `top_p`.

    This is nucleus sampling (arXiv:1904.09751).
    """
    probabilities = row.softmax(dim=-1)
    if top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, order = probabilities.sort(descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    beyond[0] = False  # a top_p may be smaller than a float32 can be
    ordered[beyond] = 0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])
