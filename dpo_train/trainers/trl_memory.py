"""How many pairs a pass of TRL's trainer may have, so that it fits into memory."""

from __future__ import annotations

from typing import Any

import torch
from trl import DPOTrainer

from dpo_train import reference
from dpo_train.activation_checkpointing import checkpointed_layers, kept_bytes
from dpo_train.config import TrainConfig
from dpo_train.memory import (
    MemoryBounds,
    give_back,
    give_back_at_once,
    is_out_of_memory,
    mapped_bytes,
)
from dpo_train.optimizers import moment_bytes
from dpo_train.scoring import logps
from dpo_train.trainers.token_bound import TokenBound


def row_lengths(rows: dict[str, list[Any]]) -> list[int]:
    """Tokens of each pair's prompt with its longer completion."""
    columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [
        len(prompt) + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(*columns, strict=True)
    ]


def pairs_that_fit(
    trainer: DPOTrainer,
    config: TrainConfig,
    rows: dict[str, list[Any]],
    data: reference.PreparedData,
    memory: MemoryBounds,
) -> int:
    """The most pairs of one pass, those of all processes of a group together: as many of the
    longest ones as fit into memory, by what a first pass over one pair keeps for its backward.
    0 if some process has no memory for one pair."""
    device = trainer.accelerator.device.type
    lengths = row_lengths(rows)
    at_once = config.optim.pairs_at_once
    longest = 2 * max(lengths)  # tokens of a pair: two rows, padded
    median = sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) // 2]
    one = {name: [column[median]] for name, column in rows.items()}
    ((_, batch),) = logps.batches(one, data.pad_token_id, device)

    def forward() -> Any:
        with trainer.compute_loss_context_manager():
            return DPOTrainer.compute_loss(trainer, trainer.model, batch)

    trainer.model.train()
    again: list[Any] = []
    if config.optim.activation_checkpointing:  # the trainer itself begins with it at its first step
        give_back_at_once()
        policy = trainer.model
        again = checkpointed_layers(policy.get_base_model() if config.lora else policy)
    kept = None
    try:
        kept = kept_bytes(forward, again, trainer.model.parameters())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    trainer._metrics["train"].clear()  # the pass was no step
    give_back()

    weights = mapped_bytes(trainer.model)
    trained = sum(weight.nbytes for weight in trainer.model.parameters() if weight.requires_grad)
    # Gradients and two moments come with the first step; a step also gives this process its own
    # copy of the weights that it changes, where they were mapped from their file.
    still_to_come = (1 if config.lora or device == "cuda" else 2) * trained
    still_to_come += moment_bytes(config.optim.name, trainer.model.modules())
    bound = TokenBound(device, memory, weights, most=at_once * longest)
    fitting = 0
    if kept is not None:
        bound.measured(kept, 2 * lengths[median], bool(again))
        fitting = bound.tokens(0, still_to_come) // longest
    # The processes of a group take equal parts of a batch. One that ran out of memory must come
    # here too: the others wait for its number.
    accelerator = trainer.accelerator
    everywhere = accelerator.gather(torch.tensor([fitting], device=accelerator.device))
    return int(everywhere.min()) * int(accelerator.num_processes)
