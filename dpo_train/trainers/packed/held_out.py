"""The eval pairs of a packed engine: their rows for a pass, and each trial's values of them."""

from __future__ import annotations

import numpy as np
import torch

from dpo_train.scoring import metrics
from dpo_train.trainers.packed.loss_inputs import constants
from dpo_train.trainers.packed.losses import PairScores, pair_losses
from dpo_train.trainers.packed.rows import Rows, Split, collate
from dpo_train.trainers.packed.trial import PackedTrial

_LAYOUTS_KEPT = 16
"""The tokens of a pass change with the trials that share an engine, and each size has a layout."""


class HeldOutPairs:
    """The P pairs of an eval split, on a device."""

    def __init__(self, split: Split, device: str) -> None:
        self.split = split
        self._device = device
        self._rows_by_size: dict[int, list[tuple[list[int], Rows]]] = {}

    def rows(self, tokens: int) -> list[tuple[list[int], Rows]]:
        """Returns, for each pass, the indices of its pairs and their rows.

        A pass has at most `tokens` tokens or one pair. Pairs of similar length go together. The
        rows serve all trials, so they are laid out once.
        """
        if tokens in self._rows_by_size:
            return self._rows_by_size[tokens]

        # Fill one pass after the other, from the shortest pair to the longest.
        pairs = self.split.pairs
        lengths = [len(pair.ids) for pair in pairs]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        passes: list[list[int]] = [[]]
        for index in order:
            if passes[-1] and sum(lengths[n] for n in passes[-1]) + lengths[index] > tokens:
                passes.append([])
            passes[-1].append(index)

        if len(self._rows_by_size) >= _LAYOUTS_KEPT:
            self._rows_by_size.clear()
        self._rows_by_size[tokens] = [
            (indices, collate([[pairs[index] for index in indices]], self._device))
            for indices in passes
        ]
        return self._rows_by_size[tokens]

    def values(
        self, trial: PackedTrial, logps: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    ) -> dict[str, metrics.Floats] | None:
        """Returns each metric's value of each pair, shape (P,), and the trial's own `loss`.

        logps: (P, 2), in nats. Returns None if one of them is not finite.
        """
        if not np.isfinite(logps).all():
            return None
        columns = [*logps.T, *self.split.reference.T, *self.split.tokens.T]
        scores = [torch.from_numpy(column) for column in columns]
        scores += [
            torch.full((len(logps),), value, dtype=torch.float64)
            for value in constants(trial, self.split.tokens[:, 0])
        ]
        losses = pair_losses(*trial.loss_terms, PairScores(*scores))
        values = metrics.pair_values(metrics.PairLogps(*columns))
        return {**values, "loss": losses.numpy()}
