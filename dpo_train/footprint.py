"""How much memory a process that trains will take, told from the model's config and the lengths of
the rows before anything is loaded.

Knows no search: how many processes there are, and what is free, is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_train import model_source
from dpo_train.config import TrainConfig
from dpo_train.memory import allocator_factor
from dpo_train.row_lengths import PairLength, RowLengths

PROCESS_BYTES = {"cpu": 380_000_000, "cuda": 500_000_000}
"""On a CPU: torch, transformers, TRL, PEFT and datasets, imported, with an empty model; measured
(benchmarks/RESULTS.md). On a GPU: CUDA's context and its kernels; not measured yet."""
LIBRARIES_BYTES = 165_000_000
"""The code of those libraries, which all processes of a machine share; measured."""
MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Of a packed pass, as the engine has it."""
SCORED_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Of a pass of the reference or over the eval split, as `scoring.logps` has it."""


@dataclass(frozen=True)
class Footprint:
    """What a process of a kind holds on its device; all in bytes, or bytes a token of a pass.

    A packed token is one of the model's inputs. Under `trainer: trl` the padding counts too.
    """

    trainer: str
    device: str
    process: int
    """Private, of the libraries that are imported."""
    weights: int
    """Of the base. On a CPU all processes of a machine map them from one file, unless the process
    has quantised them itself."""
    is_quantized: bool
    own_weights: int
    """Of a full fine-tuning: the pristine copy, and on a CPU the changed one."""
    trial: int
    """Gradient and moments, and of a LoRA the adapter."""
    gradients: int
    """Those that a backward through all weights makes; 0 for a LoRA, whose `trial` has them."""
    pass_fixed: int
    pass_a_token: float
    """The most that a training pass holds, with what the allocator needs around it."""
    kept_a_token: float
    """What a token keeps for the backward, as `memory.kept_bytes` counts it, with what the
    allocator needs around it."""
    scoring: int
    """The most that a pass of the reference, or over the eval split, holds."""

    @property
    def is_shared(self) -> bool:
        """Whether the base's weights are shared by all processes of a machine."""
        return self.device == "cpu" and not self.is_quantized

    @property
    def is_mapped(self) -> bool:
        """Whether a process has the base's weights as a part of what all share, to the end."""
        return self.is_shared and not self.own_weights

    def fixed(self, trials: int) -> int:
        """What a process of its own holds between two passes."""
        own = 0 if self.is_shared else self.weights
        return self.process + own + self.own_weights + trials * self.trial

    def of_pass(self, tokens: int, in_parts: bool = False) -> int:
        """What a pass of so many tokens adds; `in_parts` if its gradients add to earlier ones."""
        peak = int(self.pass_fixed + self.pass_a_token * tokens)
        if in_parts:
            return max(peak + self.gradients, self.scoring)
        return max(peak, self.gradients, self.scoring)

    def private(self, trials: int, tokens: int, in_parts: bool = False) -> int:
        """All that a process holds alone."""
        return self.fixed(trials) + self.of_pass(tokens, in_parts)

    def tokens_that_fit(self, share: int, trials: int) -> int:
        """How many tokens a pass may have where the process may take so many bytes, by the rule of
        `trainers.token_bound`."""
        left = share - self.fixed(trials) - self.gradients
        if self.trainer == "packed":  # a new pack beside the old one
            left -= trials * self.trial // 2
        return max(0, int(left / self.kept_a_token))


def footprint(config: TrainConfig, lengths: RowLengths, device: str) -> Footprint:
    """The footprint of a trial's process, or of a packed engine. `config.model` must be resolved.

    Takes a few seconds. Raises what transformers and PEFT raise for a model that they can't build.
    """
    from dpo_train import pass_memory  # imports torch and TRL, slowly

    architecture = model_source.architecture(config.model)
    packed = config.trainer == "packed"
    pair = lengths.mean if packed else lengths.longest_row

    def counted(config: TrainConfig, pair: PairLength, pairs: int) -> pass_memory.PassBytes:
        return pass_memory.pass_bytes(architecture, config, pair, pairs, device)

    one, two = counted(config, pair, 1), counted(config, pair, 2)
    row = lengths.longest_row
    unpacked = config.model_copy(update={"trainer": "trl"})
    scored = min(lengths.rows, max(1, SCORED_TOKENS[device] // (2 * row.row)))
    score = counted(unpacked, row, scored)
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
        # A full fine-tuning's gradients come and go with each step.
        trial=(0 if in_full else 2) * one.trained + one.moments,
        gradients=one.gradients_peak if in_full else 0,
        pass_fixed=int(factor * (2 * one.peak - two.peak)),
        pass_a_token=factor * (two.peak - one.peak) / tokens,
        kept_a_token=factor * (two.kept - one.kept) / tokens,
        scoring=int(factor * score.scoring_peak),
    )
