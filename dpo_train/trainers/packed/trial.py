"""One trial of a pack: its adapter, its optimizer, the order of its pairs, its reports."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.adamw import adamw
from transformers import get_scheduler

from dpo_train.config import OptimConfig, TrainConfig
from dpo_train.scoring import metrics
from dpo_train.scoring.evaluation import Evaluation, named
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.adapters import Layout
from dpo_train.trainers.session import diverged

_STATE = ("weights", "first_moment", "second_moment")
"""The vectors of a saved state, by the names of a trial's attributes."""


@dataclass(frozen=True)
class _Interval:
    """What was recorded since the last report."""

    losses: list[float] = field(default_factory=list)
    """The loss of each step."""
    tokens: int = 0
    """Tokens that a stock trainer would have computed, with both copies of each prompt."""
    pairs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Progress:
    """The content of progress.json in a saved state."""

    step: int
    pairs_seen: int
    since_report: _Interval

    @classmethod
    def read(cls, file: Path) -> _Progress:
        """Reads progress.json."""
        content = json.loads(file.read_text())
        # Earlier versions saved only at reports, so they wrote no interval.
        interval = _Interval(**(content.get("since_report") or {}))
        return cls(content["step"], content["pairs_seen"], interval)


class PackedTrial:
    """A trial that trains with TRL's AdamW, on batches in the order of TRL's data loader."""

    def __init__(self, config: TrainConfig, layout: Layout, train_pairs: int, device: str) -> None:
        assert config.lora is not None
        self.config = config

        # The adapter, its gradient and moments, as flat vectors of shape (layout.size,).
        self.own_layout = layout
        self.layout = layout
        """The layout that the vectors have now. In a pack it is the pack's layout, which also has
        room for the ranks and layers of the other trials."""
        is_quantised = config.model.quantization is not None
        base_dtype = torch.float32 if is_quantised else getattr(torch, config.model.dtype)
        self.weights = adapters.initial(layout, config.seed, base_dtype).to(device)
        self.gradient = torch.zeros_like(self.weights)
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        self.steps = torch.zeros((), device=device)
        self.root_of_scale = math.sqrt(config.lora.alpha / config.lora.r)
        """A pass computes with A and B times this factor, and gives the gradients of the products.
        So `end_step` multiplies the gradients by the factor."""
        names, weights = config.dpo.losses, config.dpo.loss_weights
        self.loss_terms = tuple(names), tuple(weights or [1.0] * len(names))
        """Names and weights of the loss; trials with the same ones are computed together."""

        # How far the trial is.
        self.pairs_seen = 0
        self.pairs_total = train_pairs * config.optim.epochs
        self.step = 0
        """The number of complete steps."""
        self.is_due = False
        """Whether an evaluation comes before the next step."""
        self.batch: list[int] = []
        """Indices of the pairs of the step that is being computed."""
        self.computed = 0
        """How many pairs of the batch have been computed."""
        self._train_pairs = train_pairs
        total_steps = self._steps_per_epoch * config.optim.epochs
        self._rate_factor = learning_rate_factor(config.optim, total_steps)

        # What is summed up for the next report.
        self._step_loss = torch.zeros((), device=device)
        self._step_tokens = 0
        self._batches = self._draw_batches()
        self._restored_interval = _Interval()
        self.resume()

    def next_pairs(self, most: int) -> list[int]:
        """Returns the indices of the next pairs to compute: at most `most`, never of two steps.

        A batch is divided into passes of similar size.
        """
        if not self.batch:
            self.batch, self.computed = next(self._batches), 0
        left = len(self.batch) - self.computed
        size = math.ceil(left / math.ceil(left / most))
        return self.batch[self.computed : self.computed + size]

    def add_computed(self, pairs: int, loss: Tensor, tokens: int) -> bool:
        """Counts computed pairs and adds their part of the step's loss.

        Returns whether the batch is complete, so that the step can end.
        """
        self.computed += pairs
        self._step_loss = self._step_loss + loss
        self._step_tokens += tokens
        return self.computed == len(self.batch)

    def restart_step(self) -> None:
        """Forgets what was computed of the step, because memory ran out in the middle of it."""
        self.computed = self._step_tokens = 0
        self.gradient.zero_()
        self._step_loss = torch.zeros_like(self._step_loss)

    def end_step(self) -> None:
        """Clips the gradient, updates the adapter and moves on to the next step.

        The gradient must be that of the whole batch.
        """
        # Clip as torch.nn.utils.clip_grad_norm_ does.
        optim = self.config.optim
        norm = torch.linalg.vector_norm(self.gradient) * self.root_of_scale
        clip = (optim.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.gradient.mul_(clip * self.root_of_scale)

        # Update.
        adamw(
            [self.weights],
            [self.gradient],
            [self.first_moment],
            [self.second_moment],
            [],
            [self.steps],
            fused=True,
            amsgrad=False,
            beta1=optim.beta1,
            beta2=optim.beta2,
            lr=optim.learning_rate * self._rate_factor(self.step),
            weight_decay=optim.weight_decay,
            eps=optim.epsilon,
            maximize=False,
        )
        self.gradient.zero_()

        # Record the step, and see whether an evaluation comes next.
        self._losses.append(self._step_loss)
        self._tokens += self._step_tokens
        self._step_tokens = 0
        self._step_loss = torch.zeros_like(self._step_loss)
        due_at = self.config.next_evaluation(self.pairs_seen)
        self.step += 1
        self.pairs_seen += len(self.batch)
        self.batch, self.computed = [], 0
        is_last = self.pairs_seen == self.pairs_total
        self.is_due = is_last or self.pairs_seen >= due_at

    def change_layout(self, layout: Layout) -> None:
        """Converts all vectors to another layout. Entries that only the new layout has are zero
        and stay zero."""
        if layout == self.layout:
            return
        for name in (*_STATE, "gradient"):
            setattr(self, name, self.layout.convert(getattr(self, name), layout))
        self.layout = layout

    def report(self, values: dict[str, metrics.Floats] | None, eval_seconds: float) -> Evaluation:
        """Returns the trial's evaluation.

        `values` has, for each metric, an array of shape (P,): its value for each eval pair. Raises
        Diverged if a loss since the last report is not finite, or if `values` is None.
        """
        # What was recorded since the last report.
        seconds = time.monotonic() - self._began_at - eval_seconds
        losses = torch.stack(self._losses).cpu()
        tokens, pairs = self._tokens, self.pairs_seen - self._began_with_pairs
        rate = self.config.optim.learning_rate
        for offset in (~losses.isfinite()).nonzero()[:1].flatten().tolist():
            raise diverged(float(losses[offset]), self.step - len(losses) + 1 + offset, rate)
        if values is None:
            raise diverged(math.nan, self.step, rate)

        # The next interval begins.
        self.is_due = False
        on_gpu = self.weights.device.type == "cuda"
        self._begin_interval(_Interval())
        report = {
            **{f"eval/{name}": value for name, value in metrics.means(values).items()},
            "train/loss": float(losses.mean()),
            "pairs_seen": self.pairs_seen,
            "step": self.step,
            "epoch": self.step / self._steps_per_epoch,
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "train_seconds": seconds,
            "eval_seconds": eval_seconds,
            # All trials on the device share it.
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        }
        return Evaluation(report, named(values))

    def resume(self) -> None:
        """Begins the interval of the next report, or continues the one of a restored state."""
        self._begin_interval(self._restored_interval)
        self._restored_interval = _Interval()

    def _begin_interval(self, interval: _Interval) -> None:
        self._losses: list[Tensor] = [self._step_loss.new_tensor(loss) for loss in interval.losses]
        self._tokens = interval.tokens
        self._began_at = time.monotonic() - interval.seconds
        self._began_with_pairs = self.pairs_seen - interval.pairs

    @property
    def is_reference(self) -> bool:
        """Whether the policy still is the reference, as no step has changed the adapter."""
        return self.step == 0

    @property
    def vector_bytes(self) -> int:
        """The most bytes that the trial's vectors take: weights, gradient and two moments, and a
        second copy of weights and gradient while a new pack replaces the old one."""
        return 6 * self.weights.nbytes

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self._train_pairs / self.config.optim.batch_size)

    def _draw_batches(self, epoch: int = 0, skipped: int = 0) -> Iterator[list[int]]:
        """Yields the indices of each batch, as accelerate's SeedableRandomSampler draws them for
        transformers' Trainer. Begins after `skipped` steps of `epoch`."""
        size = self.config.optim.batch_size
        while True:
            generator = torch.Generator().manual_seed(self.config.seed + epoch)
            order = torch.randperm(self._train_pairs, generator=generator).tolist()
            for step in range(skipped, self._steps_per_epoch):
                yield order[step * size : (step + 1) * size]
            epoch, skipped = epoch + 1, 0

    @property
    def own_weights(self) -> Tensor:
        """The adapter in the trial's own layout, on the CPU: (own_layout.size,)."""
        return self.layout.convert(self.weights, self.own_layout).cpu()

    def save(self, folder: Path) -> None:
        """Writes the state after the last complete step, from which the trial can continue."""
        vectors = {
            name: self.layout.convert(getattr(self, name), self.own_layout).cpu() for name in _STATE
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(vectors, folder / "trial.safetensors")
        interval = _Interval(
            losses=[float(loss) for loss in self._losses],
            tokens=self._tokens,
            pairs=self.pairs_seen - self._began_with_pairs,
            seconds=time.monotonic() - self._began_at,
        )
        progress = _Progress(self.step, self.pairs_seen, interval)
        (folder / "progress.json").write_text(json.dumps(asdict(progress)))

    def restore(self, folder: Path) -> None:
        """Continues from a state that `save` has written."""
        for name, vector in load_file(folder / "trial.safetensors").items():
            converted = self.own_layout.convert(vector.to(self.weights.device), self.layout)
            setattr(self, name, converted)
        progress = _Progress.read(folder / "progress.json")
        self.step, self.pairs_seen = progress.step, progress.pairs_seen
        self._restored_interval = progress.since_report
        self.steps.fill_(self.step)
        self._batches = self._draw_batches(*divmod(self.step, self._steps_per_epoch))


def learning_rate_factor(optim: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Returns a function from a step, counted from 0, to the factor of the peak learning rate.

    The schedules are transformers'. The warm-up is counted in pairs and rounded up to steps.
    """
    unused = torch.optim.SGD([torch.zeros(1)])  # transformers makes a schedule for an optimizer
    schedule = get_scheduler(optim.schedule, unused, optim.warmup_steps, total_steps)
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
