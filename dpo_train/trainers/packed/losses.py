"""TRL's losses as formulas of summed log-probs, each pair with its own trial's beta.

They are pure functions; tests/dpo_train/trainers/packed/test_engine.py compares them with TRL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairScores:
    """Log-probs and constants of P pairs, perhaps of several trials; each tensor has shape (P,)."""

    chosen: Tensor
    """Log pi of the chosen completion, summed over its tokens, in nats."""
    rejected: Tensor
    """Log pi of the rejected completion."""
    ref_chosen: Tensor
    """Log pi_ref of the chosen completion."""
    ref_rejected: Tensor
    """Log pi_ref of the rejected completion."""
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    beta: Tensor
    smoothing: Tensor
    """`label_smoothing` of the pair's trial."""
    tau: Tensor
    """`discopop_tau` of the pair's trial."""
    token_share: Tensor
    """Pairs of the pair's batch, divided by the batch's chosen tokens. It turns `sft`'s mean over
    tokens into a mean over pairs."""

    @property
    def delta_chosen(self) -> Tensor:
        """Delta of the chosen completion, log pi - log pi_ref."""
        return self.chosen - self.ref_chosen

    @property
    def delta_rejected(self) -> Tensor:
        """Delta of the rejected completion."""
        return self.rejected - self.ref_rejected

    @property
    def scaled_margin(self) -> Tensor:
        """beta * (Delta chosen - Delta rejected), on which most losses depend."""
        return self.beta * (self.delta_chosen - self.delta_rejected)

    @property
    def mean_margin(self) -> Tensor:
        """Delta chosen - Delta rejected, each divided by its own tokens."""
        return self.delta_chosen / self.chosen_tokens - self.delta_rejected / self.rejected_tokens


def pair_losses(names: tuple[str, ...], weights: tuple[float, ...], scores: PairScores) -> Tensor:
    """Returns the loss of each pair, shape (P,). The loss of a step is its mean over the batch.

    names, weights: the terms of the loss, as in `LOSSES`, and the weight of each.
    """
    terms = [weight * LOSSES[name](scores) for name, weight in zip(names, weights, strict=True)]
    return torch.stack(terms).sum(dim=0)


def _exo_pair(s: PairScores) -> Tensor:
    """EXO for two completions, arXiv:2402.00856 eq. 16."""
    won, lost = logsigmoid(s.scaled_margin), logsigmoid(-s.scaled_margin)
    return won.exp() * (won - torch.log1p(-s.smoothing)) + lost.exp() * (
        lost - torch.log(s.smoothing)
    )


def _nca_pair(s: PairScores) -> Tensor:
    """NCA, arXiv:2402.05369."""
    chosen, rejected = s.beta * s.delta_chosen, s.beta * s.delta_rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _discopop(s: PairScores) -> Tensor:
    """DiscoPOP, arXiv:2406.08414 eq. 5."""
    share = torch.sigmoid(s.scaled_margin / s.tau)
    return -logsigmoid(s.scaled_margin) * (1 - share) + torch.exp(-s.scaled_margin) * share


LOSSES: dict[str, Callable[[PairScores], Tensor]] = {
    # DPO, arXiv:2305.18290 eq. 7; with smoothing it is cDPO, arXiv:2403.00409 eq. 3.
    "sigmoid": lambda s: (
        -(1 - s.smoothing) * logsigmoid(s.scaled_margin)
        - s.smoothing * logsigmoid(-s.scaled_margin)
    ),
    # SLiC, arXiv:2305.10425.
    "hinge": lambda s: torch.relu(1 - s.scaled_margin),
    # IPO, arXiv:2310.12036 eq. 17, with means over tokens as its authors advised TRL.
    "ipo": lambda s: (s.mean_margin - 1 / (2 * s.beta)) ** 2,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    # Robust DPO, arXiv:2403.00409 eq. 4.
    "robust": lambda s: (
        (
            -(1 - s.smoothing) * logsigmoid(s.scaled_margin)
            + s.smoothing * logsigmoid(-s.scaled_margin)
        )
        / (1 - 2 * s.smoothing)
    ),
    # BCO, arXiv:2404.04656, for pairs and without its running mean, like TRL.
    "bco_pair": lambda s: (
        -logsigmoid(s.beta * s.delta_chosen) - logsigmoid(-s.beta * s.delta_rejected)
    ),
    # SPPO, arXiv:2405.00675 eq. 4.7, where the chosen completion wins with probability 1.
    "sppo_hard": lambda s: (
        (s.delta_chosen - 0.5 / s.beta) ** 2 + (s.delta_rejected + 0.5 / s.beta) ** 2
    ),
    # APO-zero, arXiv:2408.06266 eq. 7.
    "apo_zero": lambda s: (
        1 - torch.sigmoid(s.beta * s.delta_chosen) + torch.sigmoid(s.beta * s.delta_rejected)
    ),
    # APO-down, arXiv:2408.06266 eq. 8.
    "apo_down": lambda s: (
        torch.sigmoid(s.beta * s.delta_chosen) + 1 - torch.sigmoid(s.scaled_margin)
    ),
    "discopop": _discopop,
    # The mean negative log-prob of the batch's chosen tokens.
    "sft": lambda s: -s.chosen * s.token_share,
    # DPO with each completion's log-ratio divided by its tokens, arXiv:2411.15124 eq. 6.
    "sigmoid_norm": lambda s: -logsigmoid(s.beta * s.mean_margin),
}
"""The losses that can be packed. `aot` and `aot_unpaired` sort the pairs of a batch, so a pair has
no loss of its own there."""
