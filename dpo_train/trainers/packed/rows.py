"""The tokens of a pass, laid out so that a prompt is computed once for both completions.

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

_TOKENS_MULTIPLE = {"cpu": 1, "cuda": 64}
"""A trial's tokens are padded to a multiple of this: a GPU's matrix products want such sizes."""
_LENGTH_MULTIPLE = {"cpu": 1, "cuda": 8}
"""The same of the rows that attention reads."""
_IS_PADDED_TO_LONGEST = {"cpu": False, "cuda": True}
"""Whether each trial is padded to the longest of its pass. On a GPU the adapters of all trials are
one batched product, which needs trials of one size; on a CPU they are one product a trial."""


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
    """What a forward needs for T tokens: those of k trials, one trial behind the other.

    Padding repeats indices of its own trial's tokens: a trial that is NaN reaches no other, not
    even as 0 * NaN in a backward. Each trial and each attention row has padding at its end. No
    output of it is used, so its gradient is zero: what has no place of its own is gathered from it.
    """

    ids: Tensor
    """(k, T / k) where all trials have the same number of tokens, (1, T) otherwise."""
    positions: Tensor
    """The shape of `ids`."""
    gather: Tensor
    """(rows, length): tokens of each attention row, in the T tokens."""
    home: Tensor
    """(T,): each token's place in the rows * length outputs of attention."""
    gather_back: Tensor
    """(2, T): where `gather` has put each token, in a chosen and in a rejected row."""
    home_back: Tensor
    """(rows * length,): the token whose home each output is."""
    predictors: Tensor
    """(M,): where each completion token is predicted, in the T tokens."""
    targets: Tensor
    """(M,)"""
    completion: Tensor
    """(M,): which completion a token belongs to; pair i's are 2i (chosen) and 2i + 1."""
    pairs: int
    longest: int
    """The most tokens of an attention row, without padding."""
    token_counts: tuple[int, ...]
    """The tokens of each trial, with its padding; their sum is T."""

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
            gather_back=torch.stack([shift(index, places) for index in self.gather_back]),
            home_back=shift(self.home_back, tokens),
            predictors=shift(self.predictors, tokens),
            targets=self.targets.repeat(times),
            completion=shift(self.completion, 2 * pairs),
            pairs=times * pairs,
            longest=self.longest,
            token_counts=times * self.token_counts,
        )


def token_counts(trials: Sequence[Sequence[Pair]], device: str) -> tuple[int, ...]:
    """The tokens of each trial in a pass over these pairs, with the padding."""
    multiple = _TOKENS_MULTIPLE[device]
    counts = [_padded(sum(len(pair.ids) for pair in pairs), multiple) for pairs in trials]
    return (max(counts),) * len(counts) if _IS_PADDED_TO_LONGEST[device] else tuple(counts)


def collate(trials: Sequence[Sequence[Pair]], device: str) -> Rows:
    """Lays the pairs of each trial behind one another. No trial may have none."""
    counts = token_counts(trials, device)
    ends = np.cumsum(counts)
    lengths = np.array(
        [
            len(side)
            for pairs in trials
            for pair in pairs
            for side in (pair.chosen_row, pair.rejected_row)
        ]
    )
    rows, length = len(lengths), _padded(lengths.max(), _LENGTH_MULTIPLE[device])
    ids = np.zeros(ends[-1], dtype=np.int64)
    positions = np.zeros_like(ids)
    home = np.zeros_like(ids)
    is_token = np.zeros_like(ids, dtype=bool)
    gather = np.empty((rows, length), dtype=np.int64)
    owner = np.empty(rows, dtype=np.int64)
    predictors, targets, sizes = [], [], []
    row = 0
    for trial, pairs in enumerate(trials):
        start = ends[trial] - counts[trial]
        home[start : ends[trial]] = row * length
        owner[row : row + 2 * len(pairs)] = trial
        for pair in pairs:
            stretch = slice(start, start + len(pair.ids))
            ids[stretch] = pair.ids
            positions[stretch] = pair.positions
            is_token[stretch] = True
            split = len(pair.chosen_row)
            in_second = pair.home >= split
            home[stretch] = pair.home + row * length + in_second * (length - split)
            for tokens_of_row in (pair.chosen_row, pair.rejected_row):
                gather[row] = start
                gather[row, : len(tokens_of_row)] += tokens_of_row
                row += 1
            predictors.append(pair.predictors + start)
            targets.append(pair.targets)
            sizes += [pair.chosen_tokens, pair.rejected_tokens]
            start += len(pair.ids)
    is_in_row = np.arange(length) < lengths[:, None]
    outputs = np.arange(rows * length).reshape(rows, length)
    padding_outputs = np.searchsorted(owner, np.arange(len(trials))) * length + length - 1
    gather_back = np.tile(np.repeat(padding_outputs, counts), (2, 1))
    for side in (0, 1):
        used = is_in_row[side::2]
        gather_back[side, gather[side::2][used]] = outputs[side::2][used]
    home_back = np.repeat(ends[owner] - 1, length)
    home_back[home[is_token]] = np.flatnonzero(is_token)
    shape = (len(trials), -1) if len(set(counts)) == 1 else (1, -1)

    def tensor(values: Ints) -> Tensor:
        return to_device(values, device)

    return Rows(
        ids=tensor(ids).view(shape),
        positions=tensor(positions).view(shape),
        gather=tensor(gather),
        home=tensor(home),
        gather_back=tensor(gather_back),
        home_back=tensor(home_back),
        predictors=tensor(np.concatenate(predictors)),
        targets=tensor(np.concatenate(targets)),
        completion=tensor(np.repeat(np.arange(rows), sizes)),
        pairs=rows // 2,
        longest=int(lengths.max()),
        token_counts=counts,
    )


def _padded(longest: int, multiple: int) -> int:
    """With room for at least one token of padding."""
    return (longest // multiple + 1) * multiple


def to_device(values: NDArray[Any], device: str) -> Tensor:
    """A copy to a GPU is from pinned memory: it does not wait for what the GPU still computes."""
    made = torch.from_numpy(values)
    return made.pin_memory().to(device, non_blocking=True) if device == "cuda" else made
