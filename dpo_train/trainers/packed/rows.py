"""Token rows without padding, laid out so that a prompt is computed once for both completions.

Each trial has one row of tokens, its pairs behind one another as [prompt, chosen, rejected]; the
rejected completion's positions go on from the prompt's end. Which tokens see which is decided by
two indices: attention gathers [prompt, chosen] and [prompt, rejected] as rows of their own, is
causal there, and its output is gathered back (shared prefixes, arXiv:2410.20305, without a mask).
A completion's last token predicts nothing and is no input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """One preference pair as a stretch of tokens; indices count from the stretch's beginning."""

    ids: Ints
    positions: Ints
    chosen_row: Ints
    """Tokens that attention gathers for the chosen completion, in the order of their positions."""
    rejected_row: Ints
    home: Ints
    """Where each token's attention output stands: in the two rows behind one another."""
    predictors: Ints
    """The token at which each completion token is predicted, chosen first."""
    targets: Ints
    chosen_tokens: int
    rejected_tokens: int
    padded_tokens: int
    """Of the two rows [prompt, chosen] and [prompt, rejected] as a stock trainer computes them."""


def lay_out(prompt: list[int], chosen: list[int], rejected: list[int], shared: bool = True) -> Pair:
    """The pair with its prompt once, or twice if not `shared` (what a benchmark compares with)."""
    p, c, r = len(prompt), len(chosen), len(rejected)
    first = np.arange(p + c - 1)
    if shared:
        ids = prompt + chosen[:-1] + rejected[:-1]
        positions = np.concatenate([first, np.arange(p, p + r - 1)])
        second = np.concatenate([np.arange(p), np.arange(p + c - 1, p + c + r - 2)])
        home = np.concatenate([first, np.arange(p + c - 1 + p, p + c - 1 + p + r - 1)])
    else:
        ids = prompt + chosen[:-1] + prompt + rejected[:-1]
        positions = np.concatenate([first, np.arange(p + r - 1)])
        second = p + c - 1 + np.arange(p + r - 1)
        home = np.arange(len(ids))
    return Pair(
        ids=np.array(ids),
        positions=positions,
        chosen_row=first,
        rejected_row=second,
        home=home,
        predictors=np.concatenate([first[p - 1 :], second[p - 1 :]]),
        targets=np.array(chosen + rejected),
        chosen_tokens=c,
        rejected_tokens=r,
        padded_tokens=2 * p + c + r,
    )


def lay_out_all(columns: dict[str, list[Any]], shared: bool = True) -> list[Pair]:
    """The pairs of a prepared split."""
    ids = zip(columns["prompt_ids"], columns["chosen_ids"], columns["rejected_ids"], strict=True)
    return [lay_out(prompt, chosen, rejected, shared) for prompt, chosen, rejected in ids]


class Split:
    """The pairs of a prepared split, and the reference's log-probs: (pairs, 2), chosen first."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.pairs = lay_out_all(columns)
        reference = columns["ref_chosen_logps"], columns["ref_rejected_logps"]
        self.reference = np.stack(reference, axis=1)
        lengths = [len(pair.ids) for pair in self.pairs]
        self.longest, self.mean_length = max(lengths), sum(lengths) / len(lengths)
        self.tokens = np.array([[p.chosen_tokens, p.rejected_tokens] for p in self.pairs], float)


@dataclass(frozen=True)
class Rows:
    """What a forward needs for k trials with N tokens each; short trials are padded at their end.

    Padding repeats indices of its own trial's tokens: a trial that is NaN reaches no other, not
    even as 0 * NaN in a backward.
    """

    ids: Tensor
    """(k, N)"""
    positions: Tensor
    """(k, N)"""
    gather: Tensor
    """(rows, length): tokens of each attention row, in the k * N tokens."""
    home: Tensor
    """(k * N,): each token's place in the rows * length outputs of attention."""
    predictors: Tensor
    """(M,): where each completion token is predicted, in the k * N tokens."""
    targets: Tensor
    """(M,)"""
    completion: Tensor
    """(M,): which completion a token belongs to; pair i's are 2i (chosen) and 2i + 1."""
    pairs: int

    def tile(self, times: int) -> Rows:
        """The same rows, of one trial, for so many trials."""
        tokens, places, pairs = self.ids.numel(), self.gather.numel(), self.pairs
        again = torch.arange(times, device=self.ids.device)[:, None]

        def shift(index: Tensor, by: int) -> Tensor:
            return (index.reshape(1, -1) + again * by).flatten()

        return Rows(
            ids=self.ids.expand(times, -1),
            positions=self.positions.expand(times, -1),
            gather=shift(self.gather, tokens).view(-1, self.gather.shape[1]),
            home=shift(self.home, places),
            predictors=shift(self.predictors, tokens),
            targets=self.targets.repeat(times),
            completion=shift(self.completion, 2 * pairs),
            pairs=times * pairs,
        )


def collate(trials: Sequence[Sequence[Pair]], device: str) -> Rows:
    """Lays the pairs of each trial behind one another. No trial may have none."""
    tokens = max(sum(len(pair.ids) for pair in pairs) for pairs in trials)
    length = max(
        max(len(pair.chosen_row), len(pair.rejected_row)) for pairs in trials for pair in pairs
    )
    rows = 2 * sum(len(pairs) for pairs in trials)
    ids = np.zeros((len(trials), tokens), dtype=np.int64)
    positions = np.zeros_like(ids)
    home = np.zeros_like(ids)
    gather = np.empty((rows, length), dtype=np.int64)
    predictors, targets, sizes = [], [], []
    row = 0
    for trial, pairs in enumerate(trials):
        at = 0
        home[trial] = row * length
        for pair in pairs:
            start, end = trial * tokens + at, at + len(pair.ids)
            ids[trial, at:end] = pair.ids
            positions[trial, at:end] = pair.positions
            split = len(pair.chosen_row)
            in_second = pair.home >= split
            home[trial, at:end] = pair.home + row * length + in_second * (length - split)
            for tokens_of_row in (pair.chosen_row, pair.rejected_row):
                gather[row] = start
                gather[row, : len(tokens_of_row)] += tokens_of_row
                row += 1
            predictors.append(pair.predictors + start)
            targets.append(pair.targets)
            sizes += [pair.chosen_tokens, pair.rejected_tokens]
            at = end

    def tensor(values: Ints) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return Rows(
        ids=tensor(ids),
        positions=tensor(positions),
        gather=tensor(gather),
        home=tensor(home.ravel()),
        predictors=tensor(np.concatenate(predictors)),
        targets=tensor(np.concatenate(targets)),
        completion=tensor(np.repeat(np.arange(rows), sizes)),
        pairs=rows // 2,
    )
