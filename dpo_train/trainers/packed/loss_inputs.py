"""Everything that the losses of a pass need beside its log-probs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpo_train.scoring import metrics
from dpo_train.trainers.packed.losses import PairScores, pair_losses
from dpo_train.trainers.packed.rows import Split, to_device
from dpo_train.trainers.packed.trial import PackedTrial


class LossInputs:
    """The reference's log-probs, the trial and the loss of each of the P pairs of a pass."""

    def __init__(
        self, trials: Sequence[PackedTrial], indices: list[list[int]], split: Split, device: str
    ) -> None:
        """Copies the inputs to the device. indices: each trial's pairs, as indices into `split`."""
        # The trial of each pair, and the constants of its loss.
        pairs = [index for of_trial in indices for index in of_trial]
        owners = [number for number, of_trial in enumerate(indices) for _ in of_trial]
        of_trials = np.array(
            [
                [*constants(trial, split.tokens[trial.batch, 0]), 1 / len(trial.batch)]
                for trial in trials
            ]
        )
        # The fields of PairScores after the first two, and the pair's share of its batch: (P,).
        columns = np.concatenate(
            [split.reference[pairs], split.tokens[pairs], of_trials[owners]], axis=1
        )
        *self._columns, self._share = to_device(columns.astype(np.float32), device).T
        self._trials = len(trials)
        self._owner = to_device(np.array(owners), device)
        # Which pairs belong to a trial before its first step.
        is_first = np.array([trials[number].is_reference for number in owners])
        self._is_first = to_device(is_first, device)[:, None] if is_first.any() else None
        # The pairs of each kind of loss, which are computed together.
        self._pairs_by_terms = {
            terms: to_device(
                np.array([n for n, at in enumerate(owners) if trials[at].loss_terms == terms]),
                device,
            )
            for terms in dict.fromkeys(trial.loss_terms for trial in trials)
        }

    def losses(self, logps: Tensor) -> Tensor:
        """Returns what the pass adds to the loss of each trial's step, shape (k,).

        logps: (P, 2), in nats. Before a trial's first step the policy is the reference, but two
        passes over rows of different shapes round differently, so we take the reference's values.
        """
        if self._is_first is not None:
            exact = torch.stack(self._columns[:2], dim=1) + (logps - logps.detach())
            logps = torch.where(self._is_first, exact, logps)
        sums = torch.zeros(self._trials, device=logps.device)
        for terms, index in self._pairs_by_terms.items():
            scores = PairScores(*logps[index].T, *(column[index] for column in self._columns))
            losses = pair_losses(*terms, scores) * self._share[index]
            sums = sums.index_add(0, self._owner[index], losses)
        return sums


def constants(trial: PackedTrial, chosen_tokens: metrics.Floats) -> list[float]:
    """Returns the last fields of PairScores, which are equal for all pairs of a batch.

    chosen_tokens: (P,), tokens of the chosen completions of the batch or the eval split.
    """
    dpo = trial.config.dpo
    token_share = len(chosen_tokens) / chosen_tokens.sum()
    return [dpo.beta, dpo.label_smoothing, dpo.discopop_tau, token_share]
