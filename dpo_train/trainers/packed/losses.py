"""TRL's losses as formulas of summed log-probs, each pair with its own trial's beta.

Pure functions; the judge is TRL itself (tests/dpo_train/trainers/packed/test_engine.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairScores:
    """Of N pairs, perhaps of several trials: every tensor has shape (N,)."""

    chosen: Tensor
    """Log pi of the chosen completion, summed over its tokens, in nats."""
    rejected: Tensor
    ref_chosen: Tensor
    """Log pi_ref of the chosen completion."""
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    beta: Tensor
    smoothing: Tensor
    """`label_smoothing` of the pair's trial."""
    tau: Tensor
    """`discopop_tau` of the pair's trial."""
    token_share: Tensor
    """Pairs of the pair's batch by chosen tokens of the batch: turns `sft`'s mean over the tokens
    of a batch into a mean over its pairs."""

    @property
    def delta_chosen(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def delta_rejected(self) -> Tensor:
        return self.rejected - self.ref_rejected

    @property
    def scaled_margin(self) -> Tensor:
        """beta times (Delta chosen - Delta rejected), what most losses look at."""
        return self.beta * (self.delta_chosen - self.delta_rejected)

    @property
    def mean_margin(self) -> Tensor:
        """Delta chosen - Delta rejected, each by its own tokens."""
        return self.delta_chosen / self.chosen_tokens - self.delta_rejected / self.rejected_tokens


def pair_losses(names: tuple[str, ...], weights: tuple[float, ...], scores: PairScores) -> Tensor:
    """The loss of each pair, shape (N,); a trial's step loss is their mean over its batch."""
    terms = [weight * LOSSES[name](scores) for name, weight in zip(names, weights, strict=True)]
    return torch.stack(terms).sum(dim=0)


def _exo_pair(s: PairScores) -> Tensor:
    """EXO, arXiv:2402.00856 eq. 16, of two completions."""
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
    # DPO, arXiv:2305.18290 eq. 7; with smoothing cDPO, as in robust's paper eq. 3.
    "sigmoid": lambda s: (
        -(1 - s.smoothing) * logsigmoid(s.scaled_margin)
        - s.smoothing * logsigmoid(-s.scaled_margin)
    ),
    # SLiC, arXiv:2305.10425.
    "hinge": lambda s: torch.relu(1 - s.scaled_margin),
    # IPO, arXiv:2310.12036 eq. 17, by tokens as its authors told TRL's.
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
    # BCO, arXiv:2404.04656, of pairs and without its running mean, as TRL has it.
    "bco_pair": lambda s: (
        -logsigmoid(s.beta * s.delta_chosen) - logsigmoid(-s.beta * s.delta_rejected)
    ),
    # SPPO, arXiv:2405.00675 eq. 4.7, the winner's probability being 1.
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
    # DPO with each completion's log-ratio by its tokens, arXiv:2411.15124 eq. 6.
    "sigmoid_norm": lambda s: -logsigmoid(s.beta * s.mean_margin),
}
"""What is packed. `aot` and `aot_unpaired` sort over a batch, so their pairs have no loss alone."""
