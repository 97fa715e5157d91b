"""The eval pairs of a packed engine: as rows of passes, and as each trial's values of them."""

from __future__ import annotations

import numpy as np
import torch

from dpo_train.scoring import metrics
from dpo_train.trainers.packed.loss_inputs import constants
from dpo_train.trainers.packed.losses import PairScores, pair_losses
from dpo_train.trainers.packed.rows import Rows, Split, collate
from dpo_train.trainers.packed.trial import PackedTrial

_LAYOUTS_KEPT = 16
"""The tokens of a pass change with the trials that share an engine."""


class HeldOutPairs:
    """An eval split on a device."""

    def __init__(self, split: Split, device: str) -> None:
        self.split = split
        self._device = device
        self._rows_by_size: dict[int, list[tuple[list[int], Rows]]] = {}

    def rows(self, tokens: int) -> list[tuple[list[int], Rows]]:
        """The pairs' numbers and their rows, at most so many tokens together where a single pair
        has no more, of like length together; laid out once for all trials."""
        if tokens in self._rows_by_size:
            return self._rows_by_size[tokens]
        pairs = self.split.pairs
        lengths = [len(pair.ids) for pair in pairs]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        parts: list[list[int]] = [[]]
        for number in order:
            if parts[-1] and sum(lengths[n] for n in parts[-1]) + lengths[number] > tokens:
                parts.append([])
            parts[-1].append(number)
        if len(self._rows_by_size) >= _LAYOUTS_KEPT:
            self._rows_by_size.clear()
        self._rows_by_size[tokens] = [
            (part, collate([[pairs[number] for number in part]], self._device)) for part in parts
        ]
        return self._rows_by_size[tokens]

    def values(
        self, trial: PackedTrial, logps: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    ) -> dict[str, metrics.Floats] | None:
        """Each held-out metric's value of each pair, with `loss` the trial's own, from log-probs of
        shape (pairs, 2) in nats. None where one is no number."""
        if not np.isfinite(logps).all():
            return None
        known = [*logps.T, *self.split.reference.T, *self.split.tokens.T]
        rest = constants(trial, self.split.tokens[:, 0])
        scores = [torch.from_numpy(column) for column in known]
        scores += [torch.full((len(logps),), value, dtype=torch.float64) for value in rest]
        losses = pair_losses(*trial.loss_terms, PairScores(*scores))
        values = metrics.pair_values(metrics.PairLogps(*known))
        return {**values, "loss": losses.numpy()}
