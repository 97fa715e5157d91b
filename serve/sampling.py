"""The next token of each answer from its logits: greedy, or drawn with the request's settings."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

_GREEDY = 1e-4
"""Below it a logit divided by the temperature may overflow, and the likeliest is drawn anyway."""


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn, in the terms of OpenAI's API."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    """How many alternatives to tell beside the token's own log-prob; None tells nothing."""

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
    """(token id, log-prob) of the likeliest, the best first."""


def choose(
    logits: torch.Tensor,
    sampling: list[Sampling],
    generators: list[torch.Generator | None],
    written: list[list[int]],
) -> list[TokenChoice]:
    """One token for each row of logits of shape (answers, vocabulary).

    `written` are the tokens of each answer so far, for the penalties: a logit loses
    `presence_penalty` once and `frequency_penalty` as often as its token stands there.
    """
    if all(s.temperature < _GREEDY and s.logprobs is None and not _penal(s) for s in sampling):
        return [TokenChoice(token) for token in logits.argmax(dim=-1).tolist()]
    rows = logits.float().cpu()
    return [
        _choose_one(row, s, generator, ids)
        for row, s, generator, ids in zip(rows, sampling, generators, written, strict=True)
    ]


def _penal(sampling: Sampling) -> bool:
    return bool(sampling.frequency_penalty or sampling.presence_penalty)


def _choose_one(
    row: torch.Tensor, sampling: Sampling, generator: torch.Generator | None, ids: list[int]
) -> TokenChoice:
    if ids and _penal(sampling):
        counts = torch.bincount(torch.tensor(ids), minlength=len(row)).float()
        row = row - sampling.frequency_penalty * counts
        row = row - sampling.presence_penalty * (counts > 0)
    if sampling.temperature < _GREEDY:
        token = int(row.argmax())
    else:
        token = _draw(row / sampling.temperature, sampling.top_p, generator)
    if sampling.logprobs is None:
        return TokenChoice(token)
    logprobs = row.log_softmax(dim=-1)
    best = logprobs.topk(min(sampling.logprobs, len(row)))
    alternatives = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenChoice(token, float(logprobs[token]), alternatives)


def _draw(row: torch.Tensor, top_p: float, generator: torch.Generator | None) -> int:
    """From the fewest likeliest tokens that hold `top_p` (nucleus sampling, arXiv:1904.09751)."""
    probabilities = row.softmax(dim=-1)
    if top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, order = probabilities.sort(descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    beyond[0] = False  # a top_p may be smaller than a float32 can be
    ordered[beyond] = 0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])
