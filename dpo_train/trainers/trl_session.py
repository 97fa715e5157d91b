"""One trial trained by TRL's DPOTrainer: full fine-tuning or LoRA, every TRL loss.

TRL's loop runs in a thread that is held at each evaluation until the caller says what is next.
DPOTrainer is subclassed at two private hooks (`_prepare_dataset`, `_precompute_ref_logps`), so
that no trial tokenises or runs the reference. Its tests hold that contract.
"""

from __future__ import annotations

import gc
import math
import queue
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from trl import DPOTrainer

from dpo_train import export, model, reference
from dpo_train.config import TrainConfig
from dpo_train.errors import one_line
from dpo_train.scoring import logps, metrics
from dpo_train.trainers import trl_patches  # noqa: F401
from dpo_train.trainers.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_train.trainers.session import OutOfMemory, diverged, is_out_of_memory
from dpo_train.trainers.trl_arguments import trl_arguments


class TrlSession:
    """A Session over DPOTrainer. One at a time in a process: it borrows the warm base."""

    def __init__(
        self,
        config: TrainConfig,
        prepared: Path,
        device: str,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        process_group.join()
        self._config = config
        self._process_group = process_group
        self._data = reference.prepare(prepared)
        self.reference_pairs = self._data.computed_pairs
        self._base = model.load_base(config.model, device)
        self._scratch = Path(tempfile.mkdtemp(prefix="dpo-trial-"))
        train = self._data.split("train")
        self.pairs_total = len(train) * config.optim.epochs
        self._control = _Control(config, len(train), self._scratch)
        self._trainer = _Trainer(
            model=self._base.fresh(trained_in_full=config.lora is None),
            args=trl_arguments(config, self._scratch, device, process_group),
            train_dataset=train,
            processing_class=self._base.tokenizer,
            peft_config=model.peft_config(config.lora) if config.lora else None,
            callbacks=[self._control],
        )
        self._trainer.hold(self._control, self._data, device)
        self.held_out: dict[str, list[float]] = {}
        self._thread: threading.Thread | None = None
        self._resume_from: Path | None = None

    def advance(self) -> dict[str, float]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()
        else:
            self._control.commands.put("advance")
        report: dict[str, float] = self._answer()
        self.held_out = self._trainer.held_out
        return report

    def save(self, folder: Path) -> None:
        self._control.commands.put("save")
        checkpoint = self._answer()
        # Each process of a group brings its part: at least its random state, in its own file.
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        shutil.rmtree(checkpoint)

    def restore(self, folder: Path) -> None:
        self._resume_from = folder

    def export(self, folder: Path) -> None:
        weights = None
        if self._process_group.sharded:  # gathered by all, written by one
            policy = self._trainer.model
            weights = self._trainer.accelerator.get_state_dict(policy)
            for tied in getattr(policy, "all_tied_weights_keys", {}):
                weights.pop(tied, None)
        if self._process_group.rank == 0:
            tokenizer = self._base.tokenizer
            export.write(self._trainer.model, tokenizer, self._config, folder, weights)

    def close(self) -> None:
        if self._thread is not None:
            self._control.commands.put("stop")
            self._thread.join()
        if self._config.lora is not None:
            self._trainer.model.unload()
        del self._trainer, self._control, self._base
        if self._process_group.sharded:
            model.forget_base()  # its weights are parts now
        shutil.rmtree(self._scratch, ignore_errors=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _train(self) -> None:
        try:
            resume = str(self._resume_from) if self._resume_from else None
            self._trainer.train(resume_from_checkpoint=resume)
        except BaseException as error:  # it belongs to the caller's thread
            # Not the error itself: its frames hold on to what filled the memory.
            lacked = OutOfMemory(one_line(error)) if is_out_of_memory(error) else error
            self._control.answers.put(lacked)

    def _answer(self) -> Any:
        answer = self._control.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Control(TrainerCallback):
    """Decides when to evaluate, and holds the training thread until it is told what is next."""

    def __init__(self, config: TrainConfig, train_pairs: int, scratch: Path) -> None:
        self.commands: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()
        self._every = config.eval_every_pairs
        self._batch_size = config.optim.batch_size
        self._train_pairs = train_pairs
        self._scratch = scratch
        self._evaluated_at = 0
        self.pairs_seen = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pairs_seen = self._evaluated_at = self.pairs(state.global_step)
        if torch.cuda.is_available():
            # Not an earlier trial's peak, nor that of an attempt that ran out of memory.
            torch.cuda.reset_peak_memory_stats()
        self._resume()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pairs_seen = self.pairs(state.global_step)
        passed = self.pairs_seen // self._every > self._evaluated_at // self._every
        control.should_evaluate = passed or state.global_step >= state.max_steps
        if control.should_evaluate:
            self._evaluated_at = self.pairs_seen

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.answers.put(str(self._scratch / f"checkpoint-{state.global_step}"))
        self.wait(control)

    def wait(self, control: Any) -> None:
        """Blocks until the next command and turns it into the trainer's own control flags."""
        command = self.commands.get()
        control.should_save = command == "save"
        control.should_training_stop = control.should_training_stop or command == "stop"
        self._resume()

    def _resume(self) -> None:
        self.resumed_at, self.resumed_pairs = time.monotonic(), self.pairs_seen

    def pairs(self, step: int) -> int:
        """Pairs trained on after a step; the last batch of an epoch may be smaller."""
        epochs, steps = divmod(step, math.ceil(self._train_pairs / self._batch_size))
        return epochs * self._train_pairs + steps * self._batch_size


class _Trainer(DPOTrainer):
    """DPOTrainer over rows that are already tokenised and have their reference log-probs."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def hold(self, control: _Control, data: reference.PreparedData, device: str) -> None:
        self._hand = control
        self._eval_rows = data.split("eval")[:]
        self._eval_batches = list(logps.batches(self._eval_rows, data.pad_token_id, device))
        self.held_out: dict[str, list[float]] = {}
        self._step_losses: list[torch.Tensor] = []
        self._parts_seen = 0
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        loss = super().compute_loss(model, inputs, *rest, **options)
        if self.model.training:
            loss = self._share_of_step(loss, len(inputs["input_ids"]) // 2)
            self._tokens += inputs["attention_mask"].sum()
        return loss

    def _share_of_step(self, loss: torch.Tensor, pairs: int) -> torch.Tensor:
        """Weighs a part of a batch by its pairs: the parts of an epoch's last batch may be unequal,
        and transformers divides each by their number."""
        parts = self.current_gradient_accumulation_steps
        if parts > 1 and self.accelerator.num_processes == 1:  # in a group all parts are equal
            step = self.state.global_step
            loss = loss * (pairs * parts / (self._hand.pairs(step + 1) - self._hand.pairs(step)))
        if self._parts_seen == 0:
            self._step_losses.append(loss.detach() / parts)
        else:
            self._step_losses[-1] = self._step_losses[-1] + loss.detach() / parts
        self._parts_seen = (self._parts_seen + 1) % parts
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Called by TRL's loop where `_Control` asked for it; answers the caller, then waits."""
        self._hand.answers.put(self._measure())
        self.control.should_evaluate = False
        self._hand.wait(self.control)
        return {}

    def _measure(self) -> dict[str, float]:
        seconds = time.monotonic() - self._hand.resumed_at
        pairs = self._hand.pairs_seen - self._hand.resumed_pairs
        # What the processes of a group report, and whether they go on, is the same for all.
        together = self.accelerator.reduce(torch.stack(self._step_losses).float(), "mean")
        losses = together.cpu()
        tokens = int(self.accelerator.reduce(self._tokens))
        self._tokens.zero_()
        self._step_losses.clear()
        first_step = self.state.global_step - len(losses) + 1
        for offset in (~losses.isfinite()).nonzero()[:1].flatten().tolist():
            raise diverged(float(losses[offset]), first_step + offset, self.args.learning_rate)
        began = time.monotonic()
        held_out = self._held_out()
        peak = size = 0.0
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
            size = torch.cuda.get_device_properties().total_memory / 1e9
        return {
            **{f"eval/{name}": value for name, value in held_out.items()},
            "train/loss": float(losses.mean()),
            "pairs_seen": self._hand.pairs_seen,
            "step": self.state.global_step,
            "epoch": float(self.state.epoch or 0.0),
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "train_seconds": seconds,
            "eval_seconds": time.monotonic() - began,
            "peak_memory_gb": peak,
            "device_memory_gb": size,
        }

    def _held_out(self) -> dict[str, float]:
        rows = len(self._eval_rows["chosen_ids"])
        loss_sum = 0.0
        seen = _LogProbs(self.model)

        def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            nonlocal loss_sum
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(seen, batch)
            loss_sum += float(loss) * len(batch["input_ids"]) / 2
            return seen.log_probs.sum(dim=1)

        self.model.eval()
        scores = logps.score_batches(self._eval_batches, rows, forward)
        self.model.train()
        self._metrics["eval"].clear()
        if not all(np.isfinite(logps).all() for logps in scores):
            # The last steps' losses were finite, the weights they led to are not.
            raise diverged(math.nan, self.state.global_step, self.args.learning_rate)
        values = metrics.pair_values(logps.pair_logps(self._eval_rows, *scores))
        self.held_out = {f"eval/{name}": each.tolist() for name, each in values.items()}
        return {**metrics.means(values), "loss": loss_sum / rows}


class _LogProbs:
    """Keeps the per-token log-probs of a forward that TRL's loss makes, so one pass serves both."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs = torch.empty(0)

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        self.log_probs = outputs.log_probs
        return outputs
