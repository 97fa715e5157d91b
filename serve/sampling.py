"""Draws the next token of each answer from its logits, by the settings of its request.

All answers of a batch are drawn together, on the device of the logits. Each draws the same token as
it would alone: every step works row by row, and equal logits are in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch.nn.utils.rnn import pad_sequence

from serve.sampling_params import SamplingParams, SamplingState

_GREEDY_TEMPERATURE = 1e-4
"""Below this temperature we take the likeliest token: dividing a logit by it might overflow."""
_BLOCK = 256
"""Size of the blocks of tokens for which one sum and one largest logit are computed."""
_SMALL_BLOCK = 32
"""Size of blocks where more blocks than searched tokens are needed."""
_FEW = 1024
"""A nucleus is first searched among tokens with a probability above (1 - top_p) / _FEW."""


@dataclass(frozen=True)
class TokenChoice:
    """The drawn token, with log-probs if they were requested."""

    id: int
    logprob: float | None = None
    alternatives: list[tuple[int, float]] = field(default_factory=list)
    """The (token id, log-prob) of the likeliest tokens, the best first."""


def sample_next_tokens(logits: torch.Tensor, states: list[SamplingState]) -> list[TokenChoice]:
    """Draws one token for each row of logits of shape (requests, vocabulary), on their device.

    The repetition penalty is applied to the model's logits first, then the bias and the other
    penalties are added. Log-probs are computed from these logits at temperature 1. Temperature,
    top_k, top_p and min_p follow, in the order of transformers. Raises FloatingPointError if the
    largest logit of a row is not finite.
    """
    # The fast path: only likeliest tokens of unchanged logits.
    params = [state.params for state in states]
    is_greedy = [p.temperature < _GREEDY_TEMPERATURE for p in params]
    is_changed = any(state.repeated or state.additions for state in states)
    if all(is_greedy) and not is_changed and all(p.logprobs is None for p in params):
        best = logits.max(dim=-1)
        _check(best.values)
        return [TokenChoice(token) for token in best.indices.tolist()]
    # Penalties and bias.
    scores = _penalised(logits.float(), states)
    maxima = _by_block(scores, torch.amax, _BLOCK)
    _check(maxima.amax(dim=-1))
    # The rows by the way in which they are drawn: likeliest token, all tokens, or a part of them.
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    greedy: list[int] = []
    whole: list[int] = []
    cut: list[int] = []
    for row, p in enumerate(params):
        is_cut = p.top_p < 1 or p.min_p > 0 or 0 < p.top_k < scores.shape[1]
        (greedy if is_greedy[row] else cut if is_cut else whole).append(row)
    # The draws.
    if greedy:
        tokens[greedy] = _likeliest(_rows(scores, greedy), _rows(maxima, greedy))
    for rows, draw in ((whole, _draw_from_all), (cut, _draw_from_likeliest)):
        if rows:
            temperatures = scores.new_tensor([params[row].temperature for row in rows])[:, None]
            below = _rows(scores, rows) - _rows(maxima, rows).amax(dim=-1, keepdim=True)
            weights = below.div_(temperatures).exp_()
            tokens[rows] = draw(weights, [states[row] for row in rows])
    return _with_logprobs(scores, tokens, params)


def _check(largest: torch.Tensor) -> None:
    if not bool(largest.isfinite().all()):
        raise FloatingPointError("the model's logits are no numbers")


# Penalties and bias


def _penalised(scores: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """Returns the logits after the penalties and the bias of each row, or `scores` without any."""
    if any(state.repeated for state in states):
        at = _indices([state.repeated for state in states], scores.device)
        penalties = [[s.params.repetition_penalty] * len(s.repeated) for s in states]
        penalty = scores.new_tensor(list(chain.from_iterable(penalties)))
        old = scores[at]
        scores = scores.index_put(at, torch.where(old < 0, old * penalty, old / penalty))
    if any(state.additions for state in states):
        at = _indices([state.additions for state in states], scores.device)
        added = chain.from_iterable(state.additions.values() for state in states)
        scores = scores.index_put(at, scores.new_tensor(list(added)), accumulate=True)
    return scores


def _indices(
    tokens: list[set[int]] | list[dict[int, float]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows and the columns of the tokens of each row."""
    rows = [row for row, own in enumerate(tokens) for _ in own]
    both = torch.tensor([rows, list(chain.from_iterable(tokens))], device=device)
    return both[0], both[1]


# Draws. Weights are probabilities, scaled in each row so that the largest is 1.


def _likeliest(scores: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
    """Returns the index of each row's largest score, given the maxima of blocks of _BLOCK."""
    block = maxima.argmax(dim=-1, keepdim=True)
    inside = _inside(scores, block, -torch.inf)
    return block.squeeze(1) * _BLOCK + inside.argmax(dim=-1)


def _draw_from_all(weights: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """Draws one index of each row, with one number from the row's own generator.

    Sums in float32 would round unlikely tokens away, and sums of all tokens in float64 are slow. So
    we first find the block, then the index in it, and need float64 only for the sums of blocks and
    of one block's tokens.
    """
    block_sums = _by_block(weights, torch.sum, _BLOCK).double()
    sums = block_sums.cumsum(dim=-1)
    at = _uniform(states, sums.device) * sums[:, -1:]
    block = _first_beyond(sums, at)
    rest = at - (sums.gather(1, block) - block_sums.gather(1, block))
    inside = _inside(weights, block, 0).double().cumsum(dim=-1)
    return (block * _BLOCK + _first_beyond(inside, rest)).squeeze(1)


def _draw_from_likeliest(weights: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """Draws from the tokens that top_k, top_p and min_p leave."""
    params = [state.params for state in states]
    return _draw_from_candidates(weights, params, _uniform(states, weights.device), _FEW)


def _draw_from_candidates(
    weights: torch.Tensor, params: list[SamplingParams], drawn: torch.Tensor, few: int
) -> torch.Tensor:
    """Draws one index of each row with given numbers `drawn`, of shape (rows, 1).

    Sorting the vocabulary is slow, so we sort only candidates: tokens above a bound below which no
    token remains. For top_p (nucleus sampling, arXiv:1904.09751) the bound is a probability of
    (1 - top_p) / `few`. It is exact if `few` is the size of the vocabulary, because all tokens
    below it together have less than 1 - top_p. A smaller `few` is a guess: rows whose candidates
    have less than `top_p` in total are drawn again with the exact bound.
    """
    # The settings of each row.
    size, device = weights.shape[1], weights.device
    settings = [[p.top_p, p.min_p, min(p.top_k or size, size)] for p in params]
    top_p, min_p, top_k = (
        torch.tensor(one, dtype=torch.float64, device=device)[:, None]
        for one in zip(*settings, strict=True)
    )
    total = _by_block(weights, torch.sum, _BLOCK).double().sum(dim=-1, keepdim=True)
    maxima = _by_block(weights, torch.amax, _SMALL_BLOCK)

    # The candidates. top_p is a share of what top_k leaves, so with top_k only its bound counts.
    by_count = _nth_largest(maxima, [p.top_k for p in params]).double()
    by_mass = torch.maximum((1 - top_p) * total / few, min_p).clamp(max=1)
    bound = torch.where(top_k < size, by_count, by_mass)
    candidates, ids = _at_least(weights, maxima, _SMALL_BLOCK, bound.float(), 0)
    mass = candidates.sum(dim=-1, keepdim=True, dtype=torch.float64)
    # Rows with too few candidates are drawn again with the exact bound.
    is_short = (top_k >= size) & (bound > min_p) & (mass < top_p * total)
    if few < size and bool(is_short.any()):
        tokens = torch.empty(len(params), dtype=torch.int64, device=device)
        for found, enough in (((~is_short).nonzero(), few), (is_short.nonzero(), size)):
            if rows := found[:, 0].tolist():
                own = [params[row] for row in rows]
                given = _rows(weights, rows), own, _rows(drawn, rows)
                tokens[rows] = _draw_from_candidates(*given, enough)
        return tokens

    # The draw from the sorted candidates that remain.
    ordered, order = candidates.sort(descending=True, stable=True)
    ordered = ordered.double()
    ordered[torch.arange(ordered.shape[1], device=device) >= top_k] = 0
    sums = ordered.cumsum(dim=-1)
    nucleus = top_p * torch.where(top_k < size, sums[:, -1:], total)
    is_removed = (sums - ordered >= nucleus) | (ordered < min_p)
    is_removed[:, 0] = False  # a tiny top_p may round to 0
    kept = ordered.masked_fill(is_removed, 0).cumsum(dim=-1)
    picked = _first_beyond(kept, drawn * kept[:, -1:])
    return ids.gather(1, order.gather(1, picked)).squeeze(1)


def _uniform(states: list[SamplingState], device: torch.device) -> torch.Tensor:
    """Returns one number between 0 and 1 for each row, of shape (rows, 1)."""
    drawn = [torch.rand(1, generator=s.generator, dtype=torch.float64) for s in states]
    return torch.stack(drawn).to(device)


def _first_beyond(sums: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Returns the first index of each row whose sum is larger than `at`.

    At most it is the last index that adds to the sum.
    """
    last = torch.searchsorted(sums, sums[:, -1:].contiguous()).clamp(max=sums.shape[1] - 1)
    return torch.minimum(torch.searchsorted(sums, at, right=True), last)


# Log-probs


def _with_logprobs(
    scores: torch.Tensor, tokens: torch.Tensor, params: list[SamplingParams]
) -> list[TokenChoice]:
    """Returns the drawn tokens, with log-probs in the rows that request them."""
    choices = [TokenChoice(token) for token in tokens.tolist()]
    requested = [row for row, p in enumerate(params) if p.logprobs is not None]
    if not requested:
        return choices
    counts = [params[row].logprobs or 0 for row in requested]
    scores = _rows(scores, requested)
    maxima = _by_block(scores, torch.amax, _SMALL_BLOCK)
    totals = scores.logsumexp(dim=-1, keepdim=True)
    own = (scores.gather(1, _rows(tokens, requested)[:, None]) - totals).squeeze(1).tolist()
    bound = _nth_largest(maxima, counts)
    found, ids = _at_least(scores, maxima, _SMALL_BLOCK, bound, -torch.inf)
    ordered, order = found.sort(descending=True, stable=True)
    most = max(counts)
    values = (ordered[:, :most] - totals).tolist()
    indices = ids.gather(1, order[:, :most]).tolist()
    for row, count, logprob, *best in zip(requested, counts, own, indices, values, strict=True):
        alternatives = list(zip(*best, strict=True))[:count]
        choices[row] = TokenChoice(choices[row].id, logprob, alternatives)
    return choices


# Blocks of neighbouring tokens. The last block of a row may have fewer tokens.


def _by_block(x: torch.Tensor, reduce: Callable[..., torch.Tensor], length: int) -> torch.Tensor:
    """Returns each block reduced to one value, of shape (rows, blocks)."""
    whole = x.shape[1] // length * length
    reduced = [reduce(x[:, :whole].unflatten(1, (-1, length)), dim=-1)] if whole else []
    if whole < x.shape[1]:
        reduced.append(reduce(x[:, whole:], dim=-1, keepdim=True))
    return torch.cat(reduced, dim=1)


def _inside(x: torch.Tensor, blocks: torch.Tensor, padding: float) -> torch.Tensor:
    """Returns one block of each row, of shape (rows, _BLOCK); `blocks` has the shape (rows, 1)."""
    at = blocks * _BLOCK + torch.arange(_BLOCK, device=x.device)
    inside = x.gather(1, at.clamp(max=x.shape[1] - 1))
    return inside.masked_fill(at >= x.shape[1], padding)


def _nth_largest(maxima: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Returns a lower bound of each row's `count`-th largest element, of shape (rows, 1).

    It is the `count`-th largest of the blocks' maxima, which are elements too. It is -inf if there
    are fewer blocks, and any value for a count of 0.
    """
    blocks = maxima.shape[1]
    most = min(max(counts), blocks)
    if most == 0:
        return torch.zeros_like(maxima[:, :1])
    at = torch.tensor([[min(max(count, 1), most) - 1] for count in counts], device=maxima.device)
    is_more = torch.tensor([[count > blocks] for count in counts], device=maxima.device)
    return maxima.topk(most).values.gather(1, at).masked_fill(is_more, -torch.inf)


def _at_least(
    x: torch.Tensor, maxima: torch.Tensor, length: int, bound: torch.Tensor, padding: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the elements of each row that reach its bound, and their columns, in ascending order.

    Both have the shape (rows, most elements of a row). Rows with fewer elements end with `padding`.
    `maxima` are those of blocks of this length: only blocks that reach the bound are read.
    """
    # Read only blocks that reach the bound, if these are few.
    rows, size = x.shape
    row, block = (maxima >= bound).nonzero(as_tuple=True)
    if len(row) < maxima.numel() // 8:
        columns = block[:, None] * length + torch.arange(length, device=x.device)
        elements = x.flatten()[row[:, None] * size + columns.clamp(max=size - 1)]
        is_found = (elements >= bound[row]) & (columns < size)
        elements, columns, row = (
            elements[is_found],
            columns[is_found],
            row[is_found.nonzero()[:, 0]],
        )
    else:
        is_found = x >= bound
        elements, (row, columns) = x[is_found], is_found.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=rows).tolist()
    found = pad_sequence(list(elements.split(counts)), True, padding)
    return found, pad_sequence(list(columns.split(counts)), True)


def _rows(x: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    if len(numbers) == len(x):
        return x
    return x.index_select(0, torch.tensor(numbers, device=x.device))
