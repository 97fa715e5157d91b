"""TRL's DPOTrainer over the prepared rows, so that no trial tokenises or runs the reference.

It overrides two private methods (`_prepare_dataset`, `_precompute_ref_logps`). Tests check that the
pinned TRL still calls them.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trl import DPOTrainer

from dpo_train import reference
from dpo_train.scoring import logps, metrics
from dpo_train.scoring.evaluation import Evaluation, named
from dpo_train.trainers import trl_patches  # noqa: F401
from dpo_train.trainers.session import diverged
from dpo_train.trainers.trl_control import TrainingControl

_INTERVAL = "interval-{}.json"
"""The file in a saved state with the sums of each process of a group since the last evaluation."""


class SearchTrainer(DPOTrainer):
    """DPOTrainer over rows that are already tokenised and have their reference log-probs."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def hold(self, control: TrainingControl, data: reference.PreparedData, device: str) -> None:
        """Let `control` hold the training, and evaluate on the eval split of `data`."""
        self._training = control
        control.accelerator = self.accelerator
        self._eval_rows = data.split("eval")[:]
        self._eval_batches = list(logps.batches(self._eval_rows, data.pad_token_id, device))
        self._step_losses: list[torch.Tensor] = []
        self._passes_seen = 0
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        """Return TRL's loss. In training also weight it by its pairs, and count its tokens."""
        loss = super().compute_loss(model, inputs, *rest, **options)
        if self.model.training:
            loss = self._share_of_step(loss, len(inputs["input_ids"]) // 2)
            self._tokens += inputs["attention_mask"].sum()
        return loss

    def _share_of_step(self, loss: torch.Tensor, pairs: int) -> torch.Tensor:
        """Weight the loss of a pass by its share of the batch's pairs, and add it to the step's.

        Problem: the passes of an epoch's last batch may have different numbers of pairs, but
        transformers divides each loss by the number of passes.
        """
        passes = self.current_gradient_accumulation_steps
        if passes > 1 and self.accelerator.num_processes == 1:  # in a group all passes are equal
            step = self.state.global_step
            step_pairs = self._training.pairs(step + 1) - self._training.pairs(step)
            loss = loss * (pairs * passes / step_pairs)
        if self._passes_seen == 0:
            self._step_losses.append(loss.detach() / passes)
        else:
            self._step_losses[-1] = self._step_losses[-1] + loss.detach() / passes
        self._passes_seen = (self._passes_seen + 1) % passes
        return loss

    def save_interval(self, folder: Path) -> None:
        """Write the sums since the last evaluation, while the training is held."""
        control = self._training
        interval = {
            "losses": [float(loss) for loss in self._step_losses],
            "tokens": int(self._tokens),
            "pairs": control.pairs_seen - control.resumed_pairs,
            "seconds": time.monotonic() - control.resumed_at,
        }
        name = _INTERVAL.format(self.accelerator.process_index)
        (folder / name).write_text(json.dumps(interval))

    def restore_interval(self, folder: Path) -> None:
        """Read the sums that `save_interval` wrote, if the folder has them."""
        saved = folder / _INTERVAL.format(self.accelerator.process_index)
        if not saved.exists():  # earlier versions saved only right after an evaluation
            return
        interval = json.loads(saved.read_text())
        self._step_losses = [
            torch.tensor(loss, device=self._tokens.device) for loss in interval["losses"]
        ]
        self._tokens += interval["tokens"]
        self._training.carried_seconds = interval["seconds"]
        self._training.carried_pairs = interval["pairs"]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Answer the caller with an evaluation, then wait for the next command.

        TRL's loop calls this when `TrainingControl` requests an evaluation.
        """
        self._training.answers.put(self._measure())
        self.control.should_evaluate = False
        self._training.wait(self.control)
        return {}

    def _measure(self) -> Evaluation:
        """Return the evaluation. Raises Diverged for a loss that is not finite."""
        # Sum up the training since the last evaluation. All processes of a group must report the
        # same, so that they all go on or all end.
        seconds = time.monotonic() - self._training.resumed_at
        pairs = self._training.pairs_seen - self._training.resumed_pairs
        together = self.accelerator.reduce(torch.stack(self._step_losses).float(), "mean")
        losses = together.cpu()
        tokens = int(self.accelerator.reduce(self._tokens))
        self._tokens.zero_()
        self._step_losses.clear()
        first_step = self.state.global_step - len(losses) + 1
        for offset in (~losses.isfinite()).nonzero()[:1].flatten().tolist():
            raise diverged(float(losses[offset]), first_step + offset, self.args.learning_rate)

        # Evaluate the held-out pairs.
        began = time.monotonic()
        held_out, values = self._held_out()
        peak = size = 0.0
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
            size = torch.cuda.get_device_properties().total_memory / 1e9
        report = {
            **{f"eval/{name}": value for name, value in held_out.items()},
            "train/loss": float(losses.mean()),
            "pairs_seen": self._training.pairs_seen,
            "step": self.state.global_step,
            "epoch": float(self.state.epoch or 0.0),
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "train_seconds": seconds,
            "eval_seconds": time.monotonic() - began,
            "peak_memory_gb": peak,
            "device_memory_gb": size,
        }
        return Evaluation(report, values)

    def _held_out(self) -> tuple[dict[str, float], dict[str, metrics.Floats]]:
        """Return the metrics without the prefix `eval/`, and each pair's values with the prefix."""
        rows = len(self._eval_rows["chosen_ids"])
        loss_sum = chosen_sum = 0.0
        weights = dict(zip(self.loss_types, self.loss_weights or (), strict=False))
        sft = weights.get("sft", 1.0) if "sft" in self.loss_types else 0.0
        recorder = _LogProbs(self.model)

        def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            nonlocal loss_sum, chosen_sum
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = float(self.compute_loss(recorder, batch))
            summed = recorder.log_probs.sum(dim=1)
            pairs = len(summed) // 2
            if sft:  # take out sft's mean over this batch; the mean over all pairs is added below
                chosen = float(summed[:pairs].sum())
                loss += sft * chosen / float(batch["completion_mask"][:pairs].sum())
                chosen_sum += chosen
            loss_sum += loss * pairs
            return summed

        self.model.eval()
        scores = logps.score_batches(self._eval_batches, rows, forward)
        self.model.train()
        self._metrics["eval"].clear()
        if not all(np.isfinite(logps).all() for logps in scores):
            # The losses of the last steps were finite, but the weights after them are not.
            raise diverged(math.nan, self.state.global_step, self.args.learning_rate)
        values = metrics.pair_values(logps.pair_logps(self._eval_rows, *scores))
        of_sft = -sft * chosen_sum / sum(map(len, self._eval_rows["chosen_ids"]))
        return {**metrics.means(values), "loss": loss_sum / rows + of_sft}, named(values)


class _LogProbs:
    """Keeps the per-token log-probs of the forward pass of TRL's loss, so one pass is enough."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs = torch.empty(0)

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        self.log_probs = outputs.log_probs
        return outputs
