"""What the losses of a pass need beside its log-probs."""

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
    """Of the pairs of a pass, on its device: the reference's log-probs, owners and losses."""

    def __init__(
        self, trials: Sequence[PackedTrial], parts: list[list[int]], split: Split, device: str
    ) -> None:
        """parts: the pairs of each trial, by their numbers in the split."""
        numbers = [number for part in parts for number in part]
        owners = [place for place, part in enumerate(parts) for _ in part]
        of_trial = np.array(
            [
                [*constants(trial, split.tokens[trial.batch, 0]), 1 / len(trial.batch)]
                for trial in trials
            ]
        )
        known = np.concatenate(
            [split.reference[numbers], split.tokens[numbers], of_trial[owners]], axis=1
        )
        *self._columns, self._share = to_device(known.astype(np.float32), device).T
        self._count = len(trials)
        self._owner = to_device(np.array(owners), device)
        begin = np.array([trials[place].is_reference for place in owners])
        self._begins = to_device(begin, device)[:, None] if begin.any() else None
        self._of_terms = {
            terms: to_device(
                np.array([n for n, at in enumerate(owners) if trials[at].loss_terms == terms]),
                device,
            )
            for terms in dict.fromkeys(trial.loss_terms for trial in trials)
        }

    def losses(self, logps: Tensor) -> Tensor:
        """What each trial's part adds to the loss of its step, shape (k,). logps: (pairs, 2).

        Before a trial's first step its log-probs are the reference's to the bit: two passes over
        rows of different shapes round differently.
        """
        if self._begins is not None:
            exact = torch.stack(self._columns[:2], dim=1) + (logps - logps.detach())
            logps = torch.where(self._begins, exact, logps)
        sums = torch.zeros(self._count, device=logps.device)
        for terms, index in self._of_terms.items():
            scores = PairScores(*logps[index].T, *(column[index] for column in self._columns))
            losses = pair_losses(*terms, scores) * self._share[index]
            sums = sums.index_add(0, self._owner[index], losses)
        return sums


def constants(trial: PackedTrial, chosen_tokens: metrics.Floats) -> list[float]:
    """The last fields of PairScores, the same for all pairs over which a mean is taken."""
    dpo = trial.config.dpo
    token_share = len(chosen_tokens) / chosen_tokens.sum()
    return [dpo.beta, dpo.label_smoothing, dpo.discopop_tau, token_share]
