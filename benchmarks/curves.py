"""DPO trainings recorded by `record_curves.py`: the values of each held-out pair at each report.

sample   the embedded model on its own data: 6 rates x 2 betas x 4 seeds
losses   the same model: sigmoid, ipo and hinge, betas from 0.02 to 1, rates from 2e-4 to 1e-2
real     SmolLM2-135M-Instruct with a LoRA on TruthfulQA pairs: 6 rates x 2 betas x 2 seeds
easy     the embedded model on pairs that any training gets right: 6 rates x 2 betas x 2 seeds
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from dpo_train.scoring.metrics import nll, share_right

FOLDER = Path(__file__).with_name("curves")
SETS = ("sample", "losses", "real", "easy")


@dataclass(frozen=True)
class Curves:
    """T trainings with R reports each, on P held-out pairs."""

    name: str
    margin: NDArray[np.float64]
    """Shape (T, R, P), in nats."""
    drift: NDArray[np.float64]
    """Shape (T, R), in nats per token; `sample` has none, so it has the mean of |margin|."""
    ranking: NDArray[np.float64] | None
    """Shape (T, R, P): 1 where the chosen completion is likelier per token; `sample` has none."""
    pairs_seen: NDArray[np.int64]
    """Shape (R,)."""
    rates: NDArray[np.float64]
    """Shape (T,)."""
    betas: NDArray[np.float64]

    @property
    def nll(self) -> NDArray[np.float64]:
        """Mean nll of each report, shape (T, R)."""
        return nll(self.margin)

    @property
    def right(self) -> NDArray[np.float64]:
        """Accuracy of each report, shape (T, R)."""
        return share_right(self.margin)


def load(name: str) -> Curves:
    """Load a recorded set."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return Curves(
            name,
            arrays["margin"].astype(float),
            arrays["drift"].astype(float),
            arrays["ranking"].astype(float) if "ranking" in arrays else None,
            arrays["pairs_seen"],
            arrays["rates"],
            arrays["betas"],
        )
