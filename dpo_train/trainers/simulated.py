"""A session that follows a given curve without torch, to test everything around the training."""

import json
import math
import random
import time
import zlib
from pathlib import Path

import numpy as np

from dpo_train.config import TrainConfig
from dpo_train.errors import OutOfMemory
from dpo_train.scoring import metrics
from dpo_train.scoring.evaluation import Evaluation, named
from dpo_train.trainers.session import diverged


class SimulatedSession:
    """A session whose accuracy rises from 0.5 to a ceiling that depends on the learning rate.

    Every number is a function of the config and `pairs_seen`. So a trial that is restored or
    trained again gives the same curve.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._curve = config.simulated
        self._pairs_seen = 0
        self._left = config.simulated.seconds_per_report
        self.pairs_total = self._curve.pairs * config.optim.epochs
        self.reference_pairs = 0
        self.tokens_at_once = 0

    @property
    def pairs_done(self) -> int:
        """Pairs trained so far, by the time that has passed."""
        length = self._curve.seconds_per_report
        share = 1 - self._left / length if length else 0.0
        next_at = min(self._config.next_evaluation(self._pairs_seen), self.pairs_total)
        return self._pairs_seen + int(share * (next_at - self._pairs_seen))

    @property
    def pairs_at_once(self) -> int:
        """The configured pairs of a pass."""
        return self._config.optim.pairs_at_once

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Sleep for `seconds`, or until the next evaluation, which is returned."""
        if self._left > seconds:
            time.sleep(seconds)
            self._left -= seconds
            return None
        return self.advance()

    def advance(self) -> Evaluation:
        """Sleep until the next evaluation, and return it. Raises Diverged and OutOfMemory."""
        time.sleep(self._left)
        self._left = self._curve.seconds_per_report

        # Go on to the pairs of the next evaluation, or fail as the curve says.
        optim = self._config.optim
        first_report = self._pairs_seen == 0
        target = min(self._config.next_evaluation(self._pairs_seen), self.pairs_total)
        steps = math.ceil(target / optim.batch_size)
        self._pairs_seen = min(steps * optim.batch_size, self.pairs_total)
        if optim.learning_rate > self._curve.diverges_above and not first_report:
            raise diverged(math.nan, steps, optim.learning_rate)
        memory = self._curve.memory_pairs
        if memory is not None and optim.pairs_at_once > memory and not first_report:
            raise OutOfMemory(f"no memory for {optim.pairs_at_once} pairs at once")

        # Report numbers that fit the accuracy.
        accuracy = self._accuracy()
        margin = 20 * (accuracy - 0.5)
        values = metrics.pair_values(_pairs(accuracy))
        report = {
            **{f"eval/{name}": value for name, value in metrics.means(values).items()},
            "eval/accuracy": accuracy,
            "eval/ranking": accuracy,
            "eval/nll": math.log1p(math.exp(-0.1 * margin)),
            "eval/margin": margin,
            "eval/drift": abs(margin) / 50,
            "eval/chosen_shift": -margin / 2,
            "eval/rejected_shift": -1.5 * margin,
            "eval/loss": math.log1p(math.exp(-self._config.dpo.beta * margin)),
            "pairs_seen": self._pairs_seen,
            "step": math.ceil(self._pairs_seen / optim.batch_size),
            "epoch": self._pairs_seen / self._curve.pairs,
            "train_seconds": self._curve.seconds_per_report,
            "eval_seconds": 0.0,
        }
        return Evaluation(report, named(values))

    def _accuracy(self) -> float:
        decades = abs(math.log10(self._config.optim.learning_rate / self._curve.best_learning_rate))
        ceiling = max(0.5, 0.95 - 0.1 * decades)
        learned = self._pairs_seen / self._curve.pairs
        mean = 0.5 + (ceiling - 0.5) * (1 - math.exp(-4 * learned))
        state = f"{self._config.seed} {self._pairs_seen} {self._config.optim.learning_rate!r}"
        noise = random.Random(zlib.crc32(state.encode())).gauss(0, self._curve.noise)
        return min(1.0, max(0.0, mean + noise))

    def save(self, folder: Path) -> int:
        """Write pairs_seen, and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "simulated.json").write_text(json.dumps({"pairs_seen": self._pairs_seen}))
        return self._pairs_seen

    def restore(self, folder: Path) -> None:
        """Go on from a saved folder."""
        self._pairs_seen = json.loads((folder / "simulated.json").read_text())["pairs_seen"]

    def export(self, folder: Path) -> None:
        """Write the state, because there are no weights."""
        self.save(folder)

    def close(self) -> None:
        """Do nothing."""


def _pairs(accuracy: float) -> metrics.PairLogps:
    """Return 100 pairs of which the share `accuracy` has a margin above 0.

    Their margins fall evenly from the first to the last, so the last pairs are hard for all trials.
    """
    margins = (100 * accuracy - np.arange(100) - 0.5) / 5
    zeros, tokens = np.zeros(100), np.full(100, 20.0)
    return metrics.PairLogps(margins / 2, -margins / 2, zeros, zeros, tokens, tokens)
