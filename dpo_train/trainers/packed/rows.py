"""Lays out the tokens of a pass so that each prompt is computed once for both its completions.

The pairs of a trial follow one another, each as [prompt, chosen, rejected]. The positions of the
rejected completion continue from the end of the prompt. Two indices decide which tokens see which:
attention gathers [prompt, chosen] and [prompt, rejected] as separate rows and is causal in each
row; its outputs are then gathered back into the order of the tokens (shared prefixes,
arXiv:2410.20305, without a mask). A completion's last token predicts nothing and is no input.
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
"""A trial's tokens are padded to a multiple of this, which suits a GPU's matrix products."""
_LENGTH_MULTIPLE = {"cpu": 1, "cuda": 8}
"""An attention row is padded to a multiple of this."""
_IS_PADDED_TO_LONGEST = {"cpu": False, "cuda": True}
"""Whether each trial is padded to the longest trial of its pass. On a GPU the adapters of all
trials are one batched product, which needs trials of equal length; on a CPU each trial has its own
product."""


@dataclass(frozen=True)
class Pair:
    """The tokens of one preference pair; indices count from the pair's first token."""

    ids: Ints
    positions: Ints
    chosen_row: Ints
    """Tokens that attention gathers for the chosen completion, in the order of their positions."""
    rejected_row: Ints
    """Tokens that attention gathers for the rejected completion."""
    output_index: Ints
    """For each token, the index of its attention output. The outputs of the chosen row are numbered
    first, then those of the rejected row."""
    predictors: Ints
    """The token that predicts each completion token, chosen first."""
    targets: Ints
    """The completion tokens, chosen first."""
    chosen_tokens: int
    rejected_tokens: int
    padded_tokens: int
    """Tokens of the rows [prompt, chosen] and [prompt, rejected] that a stock trainer computes."""


def lay_out(prompt: list[int], chosen: list[int], rejected: list[int], shared: bool = True) -> Pair:
    """Returns the pair's layout.

    Its prompt appears once. If not `shared`, it appears twice; only a benchmark uses that, for
    comparison.
    """
    p, c, r = len(prompt), len(chosen), len(rejected)
    chosen_row = np.arange(p + c - 1)
    if shared:
        ids = prompt + chosen[:-1] + rejected[:-1]
        positions = np.concatenate([chosen_row, np.arange(p, p + r - 1)])
        rejected_row = np.concatenate([np.arange(p), np.arange(p + c - 1, p + c + r - 2)])
        # The prompt's outputs are taken from the chosen row.
        rejected_outputs = np.arange(p + c - 1 + p, p + c - 1 + p + r - 1)
        output_index = np.concatenate([chosen_row, rejected_outputs])
    else:
        ids = prompt + chosen[:-1] + prompt + rejected[:-1]
        positions = np.concatenate([chosen_row, np.arange(p + r - 1)])
        rejected_row = p + c - 1 + np.arange(p + r - 1)
        output_index = np.arange(len(ids))
    return Pair(
        ids=np.array(ids),
        positions=positions,
        chosen_row=chosen_row,
        rejected_row=rejected_row,
        output_index=output_index,
        predictors=np.concatenate([chosen_row[p - 1 :], rejected_row[p - 1 :]]),
        targets=np.array(chosen + rejected),
        chosen_tokens=c,
        rejected_tokens=r,
        padded_tokens=2 * p + c + r,
    )


def lay_out_all(columns: dict[str, list[Any]], shared: bool = True) -> list[Pair]:
    """Returns the layouts of all pairs of a prepared split."""
    ids = zip(columns["prompt_ids"], columns["chosen_ids"], columns["rejected_ids"], strict=True)
    return [lay_out(prompt, chosen, rejected, shared) for prompt, chosen, rejected in ids]


class Split:
    """A prepared split with P pairs and the reference's log-probs of them."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.pairs = lay_out_all(columns)
        reference = columns["ref_chosen_logps"], columns["ref_rejected_logps"]
        self.reference = np.stack(reference, axis=1)
        """(P, 2): chosen, rejected; in nats."""
        lengths = [len(pair.ids) for pair in self.pairs]
        self.longest, self.mean_length = max(lengths), sum(lengths) / len(lengths)
        self.tokens = np.array([[p.chosen_tokens, p.rejected_tokens] for p in self.pairs], float)
        """(P, 2): completion tokens."""


@dataclass(frozen=True)
class Rows:
    """The inputs of a forward over T tokens, those of k trials one after the other.

    Padding repeats indices of its own trial's tokens, so that a trial that is NaN reaches no other
    one, not even as 0 * NaN in a backward. Each trial and each attention row ends with padding.
    Outputs at padding are never used, so their gradient is zero. Where an inverse index has no real
    entry, it points to padding.
    """

    ids: Tensor
    """(k, T / k) where all trials have the same number of tokens, (1, T) otherwise."""
    positions: Tensor
    """Positions of the tokens, in the shape of `ids`."""
    gather: Tensor
    """(rows, length): the tokens of each attention row, as indices into the T tokens."""
    output_index: Tensor
    """(T,): the index of each token's output in the rows * length outputs of attention."""
    gather_inverse: Tensor
    """(2, T): where `gather` puts each token, in a chosen row and in a rejected row."""
    output_index_inverse: Tensor
    """(rows * length,): the token to which each output of attention belongs."""
    predictors: Tensor
    """(M,): the token that predicts each completion token, as an index into the T tokens."""
    targets: Tensor
    """(M,): the completion tokens."""
    completion: Tensor
    """(M,): the completion of each token; pair i has 2i (chosen) and 2i + 1 (rejected)."""
    pairs: int
    longest: int
    """Tokens of the longest attention row, without padding."""
    token_counts: tuple[int, ...]
    """The tokens of each trial, with its padding; their sum is T."""

    def tile(self, times: int) -> Rows:
        """Returns these rows of one trial, repeated for `times` trials."""
        tokens, outputs, pairs = self.ids.numel(), self.gather.numel(), self.pairs
        copies = torch.arange(times, device=self.ids.device)[:, None]

        def shift(index: Tensor, by: int) -> Tensor:
            return (index.reshape(1, -1) + copies * by).flatten()

        return Rows(
            ids=self.ids.expand(times, -1),
            positions=self.positions.expand(times, -1),
            gather=shift(self.gather, tokens).view(-1, self.gather.shape[1]),
            output_index=shift(self.output_index, outputs),
            gather_inverse=torch.stack([shift(index, outputs) for index in self.gather_inverse]),
            output_index_inverse=shift(self.output_index_inverse, tokens),
            predictors=shift(self.predictors, tokens),
            targets=self.targets.repeat(times),
            completion=shift(self.completion, 2 * pairs),
            pairs=times * pairs,
            longest=self.longest,
            token_counts=times * self.token_counts,
        )


def token_counts(trials: Sequence[Sequence[Pair]], device: str) -> tuple[int, ...]:
    """Returns the tokens of each trial in a pass over these pairs, with padding."""
    multiple = _TOKENS_MULTIPLE[device]
    counts = [_padded(sum(len(pair.ids) for pair in pairs), multiple) for pairs in trials]
    return (max(counts),) * len(counts) if _IS_PADDED_TO_LONGEST[device] else tuple(counts)


def collate(trials: Sequence[Sequence[Pair]], device: str) -> Rows:
    """Lays the pairs of each trial one after the other. Each trial needs at least one pair."""
    # Sizes: tokens of each trial, and attention rows of equal length.
    counts = token_counts(trials, device)
    ends = np.cumsum(counts)
    lengths = np.array(
        [
            len(tokens_of_row)
            for pairs in trials
            for pair in pairs
            for tokens_of_row in (pair.chosen_row, pair.rejected_row)
        ]
    )
    rows, length = len(lengths), _padded(lengths.max(), _LENGTH_MULTIPLE[device])
    ids = np.zeros(ends[-1], dtype=np.int64)
    positions = np.zeros_like(ids)
    output_index = np.zeros_like(ids)
    is_token = np.zeros_like(ids, dtype=bool)
    gather = np.empty((rows, length), dtype=np.int64)
    owner = np.empty(rows, dtype=np.int64)  # the trial of each row

    # Each pair's tokens, shifted to where the pair begins, and its two attention rows.
    predictors, targets, completion_tokens = [], [], []
    row = 0
    for trial, pairs in enumerate(trials):
        start = ends[trial] - counts[trial]
        output_index[start : ends[trial]] = row * length
        owner[row : row + 2 * len(pairs)] = trial
        for pair in pairs:
            stretch = slice(start, start + len(pair.ids))
            ids[stretch] = pair.ids
            positions[stretch] = pair.positions
            is_token[stretch] = True
            chosen_length = len(pair.chosen_row)
            in_second = pair.output_index >= chosen_length
            shift = row * length + in_second * (length - chosen_length)
            output_index[stretch] = pair.output_index + shift
            for tokens_of_row in (pair.chosen_row, pair.rejected_row):
                gather[row] = start
                gather[row, : len(tokens_of_row)] += tokens_of_row
                row += 1
            predictors.append(pair.predictors + start)
            targets.append(pair.targets)
            completion_tokens += [pair.chosen_tokens, pair.rejected_tokens]
            start += len(pair.ids)

    # The inverse indices, for the backward. They point to padding until they are set.
    is_in_row = np.arange(length) < lengths[:, None]
    outputs = np.arange(rows * length).reshape(rows, length)
    padding_outputs = np.searchsorted(owner, np.arange(len(trials))) * length + length - 1
    gather_inverse = np.tile(np.repeat(padding_outputs, counts), (2, 1))
    for side in (0, 1):
        used = is_in_row[side::2]
        gather_inverse[side, gather[side::2][used]] = outputs[side::2][used]
    output_index_inverse = np.repeat(ends[owner] - 1, length)
    output_index_inverse[output_index[is_token]] = np.flatnonzero(is_token)

    # Everything as tensors on the device.
    shape = (len(trials), -1) if len(set(counts)) == 1 else (1, -1)

    def tensor(values: Ints) -> Tensor:
        return to_device(values, device)

    return Rows(
        ids=tensor(ids).view(shape),
        positions=tensor(positions).view(shape),
        gather=tensor(gather),
        output_index=tensor(output_index),
        gather_inverse=tensor(gather_inverse),
        output_index_inverse=tensor(output_index_inverse),
        predictors=tensor(np.concatenate(predictors)),
        targets=tensor(np.concatenate(targets)),
        completion=tensor(np.repeat(np.arange(rows), completion_tokens)),
        pairs=rows // 2,
        longest=int(lengths.max()),
        token_counts=counts,
    )


def _padded(length: int, multiple: int) -> int:
    """Returns the next multiple above `length`, so that there is padding of one token or more."""
    return (length // multiple + 1) * multiple


def to_device(values: NDArray[Any], device: str) -> Tensor:
    """Copies an array to the device.

    A plain copy to a GPU waits for what the GPU still computes, so we copy from pinned memory.
    """
    copied = torch.from_numpy(values)
    return copied.pin_memory().to(device, non_blocking=True) if device == "cuda" else copied
