"""One trial of a pack: its adapter and optimizer, which pairs come next, what it has reported."""

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


@dataclass(frozen=True)
class _Interval:
    """What was summed up since the last report."""

    losses: list[float] = field(default_factory=list)
    """Of the steps."""
    tokens: int = 0
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
        content = json.loads(file.read_text())
        # Earlier versions saved at reports only.
        interval = _Interval(**(content.get("since_report") or {}))
        return cls(content["step"], content["pairs_seen"], interval)


class PackedTrial:
    """Trains on batches in the order of TRL's own data loader, with TRL's defaults of AdamW."""

    def __init__(self, config: TrainConfig, layout: Layout, train_pairs: int, device: str) -> None:
        assert config.lora is not None
        self.config = config
        self.own_layout = layout
        self.layout = layout
        """That of the vectors below: in a pack it may have the ranks and layers of the others."""
        of_base = torch.float32 if config.model.quantization else getattr(torch, config.model.dtype)
        self.weights = adapters.initial(layout, config.seed, of_base).to(device)
        self.gradient = torch.zeros_like(self.weights)
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        self.steps = torch.zeros((), device=device)
        self.root_of_scale = math.sqrt(config.lora.alpha / config.lora.r)
        """By which a pass multiplies the adapter, and by which its gradient is too small."""
        names, weights = config.dpo.losses, config.dpo.loss_weights
        self.loss_terms = tuple(names), tuple(weights or [1.0] * len(names))
        """Names and weights; trials that share them are computed together."""
        self.pairs_seen = 0
        self.pairs_total = train_pairs * config.optim.epochs
        self.step = 0
        """At the last report, as a session has it."""
        self.is_due = False
        """Whether an evaluation comes before the next step."""
        self.batch: list[int] = []
        """The pairs of the step that is being computed, by their numbers."""
        self.computed = 0
        """How many of them are."""
        self._train_pairs = train_pairs
        total_steps = self._steps_per_epoch * config.optim.epochs
        self._rate_factor = learning_rate_factor(config.optim, total_steps)
        self._step_loss = torch.zeros((), device=device)
        self._step_tokens = 0
        self._batches = self._draw_batches()
        self._carried = _Interval()
        self.resume()

    def take(self, most: int) -> list[int]:
        """The next pairs to compute, at most so many, all of one step and in parts of like size."""
        if not self.batch:
            self.batch, self.computed = next(self._batches), 0
        left = len(self.batch) - self.computed
        size = math.ceil(left / math.ceil(left / most))
        return self.batch[self.computed : self.computed + size]

    def add(self, pairs: int, loss: Tensor, tokens: int) -> bool:
        """Takes note of computed pairs and their part of the step's loss; says if that ends it."""
        self.computed += pairs
        self._step_loss = self._step_loss + loss
        self._step_tokens += tokens
        return self.computed == len(self.batch)

    def rewind(self) -> None:
        """Forgets what was computed of the step: memory ran out in its midst."""
        self.computed = self._step_tokens = 0
        self.gradient.zero_()
        self._step_loss = torch.zeros_like(self._step_loss)

    def end_step(self) -> None:
        """Clips, updates and moves on; the gradient must hold the whole step's."""
        optim = self.config.optim
        # As torch.nn.utils.clip_grad_norm_ has it.
        norm = torch.linalg.vector_norm(self.gradient) * self.root_of_scale
        clip = (optim.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.gradient.mul_(clip * self.root_of_scale)
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

    def carry_into(self, layout: Layout) -> None:
        """Lays all vectors out anew; what `layout` has more is zero and stays so."""
        if layout == self.layout:
            return
        for name in (*_STATE, "gradient"):
            setattr(self, name, self.layout.carry(getattr(self, name), layout))
        self.layout = layout

    def report(self, values: dict[str, metrics.Floats] | None, eval_seconds: float) -> Evaluation:
        """What the session returns after an evaluation. Raises Diverged if a loss since the last
        was no number, or if there are no numbers to report."""
        seconds = time.monotonic() - self._resumed_at - eval_seconds
        losses = torch.stack(self._losses).cpu()
        tokens, pairs = self._tokens, self.pairs_seen - self._resumed_pairs
        rate = self.config.optim.learning_rate
        for offset in (~losses.isfinite()).nonzero()[:1].flatten().tolist():
            raise diverged(float(losses[offset]), self.step - len(losses) + 1 + offset, rate)
        if values is None:
            raise diverged(math.nan, self.step, rate)
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
            # Of all trials on the device together.
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        }
        return Evaluation(report, named(values))

    def resume(self) -> None:
        """The clock of the next report starts, and its losses; or they go on as they were saved."""
        self._begin_interval(self._carried)
        self._carried = _Interval()

    def _begin_interval(self, begun: _Interval) -> None:
        self._losses: list[Tensor] = [self._step_loss.new_tensor(loss) for loss in begun.losses]
        self._tokens = begun.tokens
        self._resumed_at = time.monotonic() - begun.seconds
        self._resumed_pairs = self.pairs_seen - begun.pairs

    @property
    def is_reference(self) -> bool:
        """Whether the policy still is the reference: no step has changed the adapter."""
        return self.step == 0

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self._train_pairs / self.config.optim.batch_size)

    def _draw_batches(self, epoch: int = 0, skipped: int = 0) -> Iterator[list[int]]:
        """As accelerate's SeedableRandomSampler draws them for transformers' Trainer."""
        size = self.config.optim.batch_size
        while True:
            generator = torch.Generator().manual_seed(self.config.seed + epoch)
            order = torch.randperm(self._train_pairs, generator=generator).tolist()
            for step in range(skipped, self._steps_per_epoch):
                yield order[step * size : (step + 1) * size]
            epoch, skipped = epoch + 1, 0

    @property
    def own_weights(self) -> Tensor:
        """The adapter in the trial's own rank and layers, on the CPU."""
        return self.layout.carry(self.weights, self.own_layout).cpu()

    def save(self, folder: Path) -> None:
        """Writes what going on needs after the last whole step."""
        vectors = {
            name: self.layout.carry(getattr(self, name), self.own_layout).cpu() for name in _STATE
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(vectors, folder / "trial.safetensors")
        interval = _Interval(
            losses=[float(loss) for loss in self._losses],
            tokens=self._tokens,
            pairs=self.pairs_seen - self._resumed_pairs,
            seconds=time.monotonic() - self._resumed_at,
        )
        progress = _Progress(self.step, self.pairs_seen, interval)
        (folder / "progress.json").write_text(json.dumps(asdict(progress)))

    def restore(self, folder: Path) -> None:
        for name, vector in load_file(folder / "trial.safetensors").items():
            moved = self.own_layout.carry(vector.to(self.weights.device), self.layout)
            setattr(self, name, moved)
        progress = _Progress.read(folder / "progress.json")
        self.step, self.pairs_seen = progress.step, progress.pairs_seen
        self._carried = progress.since_report
        self.steps.fill_(self.step)
        self._batches = self._draw_batches(*divmod(self.step, self._steps_per_epoch))


def learning_rate_factor(optim: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """By which the peak rate is multiplied at a step (counted from 0); transformers' schedules.

    Warm-up is counted in pairs and rounded up to steps.
    """
    stand_in = torch.optim.SGD([torch.zeros(1)])  # a schedule is made for an optimizer
    schedule = get_scheduler(optim.schedule, stand_in, optim.warmup_steps, total_steps)
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
