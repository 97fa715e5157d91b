"""Computes log-probs of a split's completions under a model, beside those of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_train.errors import OutOfMemory
from dpo_train.memory import is_out_of_memory
from dpo_train.scoring import metrics

if TYPE_CHECKING:
    import torch

Forward = Callable[[dict[str, "torch.Tensor"]], "torch.Tensor"]
"""Takes a batch of TRL's preference collator and returns summed log-probs of shape (2B,)."""

_tokens_per_batch = {"cpu": 2048, "cuda": 32768}
"""Most tokens of a pass without gradients, which bounds its memory. It is lowered permanently when
memory runs out.

The fused LM head computes logits in tiles of at most 4096 tokens by 32768 words, and a CPU holds
three copies of a tile at once. There 2048 tokens of a 0.5B model take 0.7 GB, and 4096 take 1.2 GB
without being faster.
"""


def score(
    model: Any, columns: dict[str, list[Any]], pad_token_id: int, device: str
) -> tuple[metrics.Floats, metrics.Floats]:
    """Return `score_with` the forward pass of any causal model."""
    return score_with(forward_pass(model, device), columns, pad_token_id, device)


def score_with(
    forward: Forward, columns: dict[str, list[Any]], pad_token_id: int, device: str
) -> tuple[metrics.Floats, metrics.Floats]:
    """Return `score_batches` of a split's columns, in batches that fit into memory.

    Raises OutOfMemory if there is no memory for one pair.
    """
    pairs_at_once = 0

    def forward_counted(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal pairs_at_once
        pairs_at_once = len(batch["input_ids"]) // 2
        return forward(batch)

    while True:
        try:
            collated = batches(columns, pad_token_id, device)
            return score_batches(collated, len(columns["prompt_ids"]), forward_counted)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if pairs_at_once <= 1:
                raise OutOfMemory("out of memory with the log-probs of one pair") from error
        # This is outside of `except`, because the traceback would keep the tensors of the failed
        # pass alive.
        _tokens_per_batch[device] //= 2
        if device == "cuda":
            import torch  # slow to import

            torch.cuda.empty_cache()


def score_batches(
    rows_of_batches: Iterable[tuple[list[int], dict[str, torch.Tensor]]],
    rows: int,
    forward: Forward,
) -> tuple[metrics.Floats, metrics.Floats]:
    """Return the summed completion log-probs of chosen and rejected, each of shape (rows,).

    `forward` takes a batch of TRL's preference collator and returns summed log-probs of shape
    (2B,), chosen first.
    """
    chosen: metrics.Floats = np.zeros(rows)
    rejected: metrics.Floats = np.zeros(rows)
    for members, batch in rows_of_batches:
        first, second = forward(batch).double().cpu().chunk(2)
        chosen[members], rejected[members] = first.numpy(), second.numpy()
    return chosen, rejected


def batches(
    columns: dict[str, list[Any]], pad_token_id: int, device: str
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield row numbers and the collated batch on the device; rows of like length go together."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference  # slow to import

    collate = DataCollatorForPreference(pad_token_id=pad_token_id)
    names = [name for name in columns if name.endswith(("_ids", "_logps"))]
    lengths = [
        len(prompt) + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(
            columns["prompt_ids"], columns["chosen_ids"], columns["rejected_ids"], strict=True
        )
    ]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        size = max(1, _tokens_per_batch[device] // (2 * lengths[order[-1]]))
        members, order = order[-size:], order[:-size]
        batch = collate([{name: columns[name][row] for name in names} for row in members])
        yield members, {name: tensor.to(device) for name, tensor in batch.items()}


def forward_pass(base: Any, device: str) -> Forward:
    """Return the forward pass for `score_batches` of any causal model, without gradients."""
    import torch  # slow to import
    from trl.trainer.utils import add_fused_lm_head  # slow to import

    from dpo_train.trainers import trl_patches  # noqa: F401

    add_fused_lm_head(base)
    base.eval()

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, mask = batch["input_ids"], batch["completion_mask"]
        labels = ids.masked_fill(mask == 0, -100)
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")
        with torch.no_grad(), autocast:
            outputs = base(
                input_ids=ids,
                attention_mask=batch["attention_mask"],
                labels=labels,
                fused_lm_head=True,
            )
        summed: torch.Tensor = outputs.log_probs.sum(dim=1)
        return summed

    return forward


def pair_logps(
    columns: dict[str, list[Any]], chosen: metrics.Floats, rejected: metrics.Floats
) -> metrics.PairLogps:
    """Return a policy's log-probs beside the stored log-probs of the reference."""
    return metrics.PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=np.array(columns["ref_chosen_logps"]),
        ref_rejected=np.array(columns["ref_rejected_logps"]),
        chosen_tokens=np.array([len(ids) for ids in columns["chosen_ids"]], dtype=np.float64),
        rejected_tokens=np.array([len(ids) for ids in columns["rejected_ids"]], dtype=np.float64),
    )
