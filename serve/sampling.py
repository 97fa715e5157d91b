"""This draws the next token of each answer from its logits, by the settings of its request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

_GREEDY_TEMPERATURE = 1e-4
"""Below it a logit divided by the temperature may overflow, and the likeliest is drawn anyway."""
_BLOCK = 256
"""Tokens whose probabilities are summed up at once."""


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
    """Draws one token for each row of logits of shape (requests, vocabulary), on their device.

    `output_ids` are the tokens of each answer so far, for the penalties: a logit loses
    `presence_penalty` once and `frequency_penalty` as often as its token stands there. What a
    request draws does not depend on the others. Raises FloatingPointError for logits of which the
    largest is no finite number.
    """
    greedy = [p.temperature < _GREEDY_TEMPERATURE for p in params]
    is_plain = all(p.logprobs is None and not _has_penalty(p) for p in params)
    if all(greedy) and is_plain:
        return [TokenChoice(token) for token in logits.argmax(dim=-1).tolist()]
    scores = _penalised(logits.float(), params, output_ids)
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise FloatingPointError("the model's logits are no numbers")
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    whole = [n for n, p in enumerate(params) if not greedy[n] and p.top_p >= 1]
    nucleus = [n for n, p in enumerate(params) if not greedy[n] and p.top_p < 1]
    for rows, draw in (
        ([n for n, is_greedy in enumerate(greedy) if is_greedy], _likeliest),
        (whole, _from_all),
        (nucleus, _from_nucleus),
    ):
        if rows:
            asked, own = [params[n] for n in rows], [generators[n] for n in rows]
            tokens[rows] = draw(_rows(scores, rows), asked, own)
    return _with_logprobs(scores, tokens, params)


def _has_penalty(params: SamplingParams) -> bool:
    return bool(params.frequency_penalty or params.presence_penalty)


def _penalised(
    scores: torch.Tensor, params: list[SamplingParams], output_ids: list[list[int]]
) -> torch.Tensor:
    rows, tokens, losses = [], [], []
    for row, (p, ids) in enumerate(zip(params, output_ids, strict=True)):
        if _has_penalty(p):
            for token, count in Counter(ids).items():
                rows.append(row)
                tokens.append(token)
                losses.append(p.presence_penalty + p.frequency_penalty * count)
    if not rows:
        return scores
    at = torch.tensor([rows, tokens], device=scores.device)
    return scores.index_put((at[0], at[1]), -scores.new_tensor(losses), accumulate=True)


def _likeliest(scores: torch.Tensor, *_: Any) -> torch.Tensor:
    return scores.argmax(dim=-1)


def _from_all(
    scores: torch.Tensor, params: list[SamplingParams], generators: list[torch.Generator | None]
) -> torch.Tensor:
    return _pick(_probabilities(scores, params), generators)


def _from_nucleus(
    scores: torch.Tensor, params: list[SamplingParams], generators: list[torch.Generator | None]
) -> torch.Tensor:
    """Draws from the fewest likeliest tokens that together have the probability `top_p`.

    This is nucleus sampling (arXiv:1904.09751). All tokens of a probability below (1 - top_p) /
    vocabulary together have less than 1 - top_p, so the nucleus is among the others: a thousand
    are sorted, not the whole vocabulary.
    """
    probabilities = _probabilities(scores, params)
    top_p = scores.new_tensor([p.top_p for p in params])[:, None]
    is_candidate = probabilities >= (1 - top_p) / probabilities.shape[1]
    counts = is_candidate.sum(dim=-1).tolist()
    candidates = pad_sequence(list(probabilities[is_candidate].split(counts)), batch_first=True)
    tokens = pad_sequence(list(is_candidate.nonzero()[:, 1].split(counts)), batch_first=True)
    ordered, order = candidates.sort(descending=True, stable=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    beyond[:, 0] = False  # a top_p may be smaller than a float32 can be
    picked = _pick(ordered.masked_fill(beyond, 0), generators)[:, None]
    return tokens.gather(1, order.gather(1, picked)).squeeze(1)


def _probabilities(scores: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    return (scores / scores.new_tensor([p.temperature for p in params])[:, None]).softmax(dim=-1)


def _pick(probabilities: torch.Tensor, generators: list[torch.Generator | None]) -> torch.Tensor:
    """One index of each row, by one number that the row's own generator draws.

    First the block of it is found, then its place there: the sums in float64 that this takes are
    those of a few hundred blocks and of one. A float32 near 1 would round unlikely tokens away.
    """
    padding = -probabilities.shape[1] % _BLOCK
    blocks = pad(probabilities, (0, padding)).unflatten(-1, (-1, _BLOCK))
    block_sums = blocks.sum(dim=-1).double()
    sums = block_sums.cumsum(dim=-1)
    drawn = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    at = drawn.to(sums.device)[:, None] * sums[:, -1:]
    block = _first_beyond(sums, at)
    rest = at - (sums.gather(1, block) - block_sums.gather(1, block))
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double()
    return (block * _BLOCK + _first_beyond(inside.cumsum(dim=-1), rest)).squeeze(1)


def _first_beyond(sums: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The first place of each row whose sum is larger; at most the last that adds anything."""
    last = torch.searchsorted(sums, sums[:, -1:].contiguous()).clamp(max=sums.shape[1] - 1)
    return torch.minimum(torch.searchsorted(sums, at, right=True), last)


def _with_logprobs(
    scores: torch.Tensor, tokens: torch.Tensor, params: list[SamplingParams]
) -> list[TokenChoice]:
    choices = [TokenChoice(token) for token in tokens.tolist()]
    asked = [n for n, p in enumerate(params) if p.logprobs is not None]
    if not asked:
        return choices
    rows = _rows(scores, asked)
    totals = rows.logsumexp(dim=-1, keepdim=True)
    most = min(max(params[n].logprobs or 0 for n in asked), rows.shape[1])
    best = rows.topk(most)
    own = (rows.gather(1, _rows(tokens, asked)[:, None]) - totals).squeeze(1).tolist()
    values, indices = (best.values - totals).tolist(), best.indices.tolist()
    for row, n in enumerate(asked):
        alternatives = list(zip(indices[row], values[row], strict=True))[: params[n].logprobs]
        choices[n] = TokenChoice(choices[n].id, own[row], alternatives)
    return choices


def _rows(x: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    if len(numbers) == len(x):
        return x
    return x.index_select(0, torch.tensor(numbers, device=x.device))
