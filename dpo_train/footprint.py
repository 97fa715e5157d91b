"""Estimates how much memory a training process will take.

It needs only the model's configuration and the lengths of the rows; nothing is loaded. Knows no
search: the caller knows how many processes there are and how much memory is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_train import model_source
from dpo_train.config import TrainConfig
from dpo_train.memory import allocator_factor
from dpo_train.row_lengths import PairLength, RowLengths

PROCESS_BYTES = {"cpu": 380_000_000, "cuda": 500_000_000}
"""On a CPU: a process that has imported torch, transformers, TRL, PEFT and datasets; measured
(benchmarks/RESULTS.md). On a GPU: CUDA's context and its kernels; not measured yet."""
LIBRARIES_BYTES = 165_000_000
"""The code of these libraries, which all processes of a machine share; measured."""
MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""The most tokens of a packed pass, as in the engine."""
SCORED_TOKENS = {"cpu": 2048, "cuda": 32768}
"""The most tokens of a pass of the reference or over the eval split, as in `scoring.logps`."""


@dataclass(frozen=True)
class Footprint:
    """What one training process holds on its device, in bytes, or in bytes a token of a pass.

    With `trainer: packed` the tokens are the inputs of the model; with `trl` padding counts too.
    """

    trainer: str
    device: str
    process: int
    """Memory of the imported libraries that the process does not share."""
    weights: int
    """Weights of the base. On a CPU all processes of a machine map them from one file, unless they
    are quantised, which each process does for itself."""
    is_quantized: bool
    own_weights: int
    """In a full fine-tuning on a CPU: the original copy of the weights and the trained one."""
    trial: int
    """Moments of one trial; with a LoRA also its adapter and gradient."""
    gradients: int
    """Gradients of a full fine-tuning; 0 for a LoRA, whose gradient is counted in `trial`."""
    pass_fixed: int
    """The part of a training pass's peak that does not depend on its tokens."""
    pass_a_token: float
    """What each token adds to a training pass's peak. Both include the allocator's factor."""
    kept_a_token: float
    """What a token keeps for the backward, by `memory.kept_bytes`, times the allocator's factor."""
    scoring: int
    """Peak of a pass of the reference or over the eval split."""

    @property
    def is_shared(self) -> bool:
        """Whether all processes of a machine share the base's weights."""
        return self.device == "cpu" and not self.is_quantized

    @property
    def is_mapped(self) -> bool:
        """Whether the base's weights stay shared to the end, as no process changes them."""
        return self.is_shared and not self.own_weights

    def fixed(self, trials: int) -> int:
        """Returns what the process alone holds between two passes with this many trials."""
        own = 0 if self.is_shared else self.weights
        return self.process + own + self.own_weights + trials * self.trial

    def of_pass(self, tokens: int, is_accumulating: bool = False) -> int:
        """Returns what a pass of this many tokens adds.

        is_accumulating: whether a batch takes several passes, so that a pass adds its gradients to
        earlier ones.
        """
        peak = int(self.pass_fixed + self.pass_a_token * tokens)
        if is_accumulating:
            return max(peak + self.gradients, self.scoring)
        return max(peak, self.gradients, self.scoring)

    def private(self, trials: int, tokens: int, is_accumulating: bool = False) -> int:
        """Returns all memory that the process shares with no other, during its largest pass."""
        return self.fixed(trials) + self.of_pass(tokens, is_accumulating)

    def tokens_that_fit(self, share: int, trials: int) -> int:
        """Returns how many tokens a pass may have if the process may take `share` bytes.

        It follows the rule of `trainers.token_bound`.
        """
        left = share - self.fixed(trials) - self.gradients
        if self.trainer == "packed":  # weights and gradients of a new pack, beside the old one's
            left -= trials * self.trial // 2
        return max(0, int(left / self.kept_a_token))


def footprint(config: TrainConfig, lengths: RowLengths, device: str) -> Footprint:
    """Returns the footprint of a trial's process or of a packed engine; takes a few seconds.

    `config.model` must be resolved. Raises what transformers and PEFT raise for a model that they
    can't build.
    """
    from dpo_train import pass_memory  # imports torch and TRL, slowly

    # Passes over one pair and over two: the difference is what each further pair adds.
    architecture = model_source.architecture(config.model)
    packed = config.trainer == "packed"
    pair = lengths.mean if packed else lengths.longest_row

    def counted(config: TrainConfig, pair: PairLength, pairs: int) -> pass_memory.PassBytes:
        return pass_memory.pass_bytes(architecture, config, pair, pairs, device)

    one, two = counted(config, pair, 1), counted(config, pair, 2)

    # A pass that only scores rows, each as long as the longest.
    row = lengths.longest_row
    unpacked = config.model_copy(update={"trainer": "trl"})
    scored = min(lengths.rows, max(1, SCORED_TOKENS[device] // (2 * row.row)))
    score = counted(unpacked, row, scored)

    # Both with what the allocator holds around them.
    tokens = pair.packed if packed else 2 * pair.row
    factor = allocator_factor(device, bool(config.optim.activation_checkpointing))
    in_full = config.lora is None
    return Footprint(
        trainer=config.trainer,
        device=device,
        process=PROCESS_BYTES[device],
        weights=one.weights,
        is_quantized=config.model.quantization is not None,
        own_weights=2 * one.weights if in_full and device == "cpu" else 0,
        # In a full fine-tuning gradients exist only during a step, so they are not counted here.
        trial=(0 if in_full else 2) * one.trained + one.moments,
        gradients=one.gradients_peak if in_full else 0,
        pass_fixed=int(factor * (2 * one.peak - two.peak)),
        pass_a_token=factor * (two.peak - one.peak) / tokens,
        kept_a_token=factor * (two.kept - one.kept) / tokens,
        scoring=int(factor * score.scoring_peak),
    )
