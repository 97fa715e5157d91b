"""The configuration of one trial.

This module imports nothing heavy, so every mistake in a YAML is found before torch is loaded.
"""

import math
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpo_train.config_base import Overrides, Part, parse, read_yaml
from dpo_train.config_fields import Allowed
from dpo_train.config_loss import COUPLED_LOSSES, NOT_PACKED, DpoConfig
from dpo_train.config_trl import F_DIVERGENCE_LOSSES, TrlConfig


class ModelConfig(Part):
    """The base model, and how it is loaded."""

    id: str = "sample"
    """A Hub id, a folder, or `sample`, the tiny model that ships with the project."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. A search resolves it to a commit before it starts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the weights in memory. bfloat16 is only for the frozen base of a LoRA; a search
    on GPUs uses it there by default."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """How attention is computed: by torch's kernels (sdpa), step by step (eager), or by flash-attn
    on a GPU. Null uses sdpa if the model supports it."""
    quantization: Literal["nf4", "int8"] | None = None
    """Stores the linear layers of a LoRA's frozen base in 4 bits (nf4) or 8 bits (int8) a weight
    (QLoRA). Computing stays in `dtype`. An exported adapter is for the unquantised base."""


class DataColumns(Part):
    """The column of each part of a pair: its name, or a path in it like `answers[0].text`.

    Null means that the part is not read, even if a column has its name.
    """

    prompt: str | None = "prompt"
    """The question, as a text or messages. Without it, the answers' common beginning is the
    prompt."""
    chosen: str = "chosen"
    """The better answer, or the whole conversation that ends with it."""
    rejected: str = "rejected"
    """The worse answer, or the whole conversation that ends with it."""
    system: str | None = "system"
    """The system prompt."""
    tools: str | None = "tools"
    """JSON schemas of the tools that the chat template describes to the model."""
    chat_template_kwargs: str | None = "chat_template_kwargs"
    """Further variables for the chat template."""


class DataConfig(Part):
    """The preference pairs, and how they are split."""

    id: str = "sample"
    """A Hub id, a file (.jsonl, .json, .csv, .tsv or .parquet; all but .parquet also as .gz), a
    folder of such files named by split, or `sample`."""
    config: str | None = None
    """The dataset's configuration (subset) on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    split: str = "train"
    """The split to read. It is cut into train, eval and test if the next two are null."""
    eval_split: str | None = None
    """The dataset's split on which trials are compared. Null cuts it from `split`."""
    test_split: str | None = None
    """The dataset's split that is used once, at the end. Null cuts it from `split`."""
    columns: DataColumns = DataColumns()
    """Which column holds which part of a pair, if the dataset has other column names."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """What to do with rows that can't be read: refuse the dataset, or skip and count them."""
    chars: Annotated[tuple[int, int] | None, Allowed("two whole numbers, [fewest, most]")] = Field(
        None, examples=[[30, 300]]
    )
    """Fewest and most characters of each prompt, chosen and rejected text. Null sets no bounds."""
    limit: int | None = Field(None, ge=3, examples=[1000])
    """Uses only this many rows, the first that pass the filters. Null uses all."""
    eval_fraction: float = Field(0.1667, gt=0, lt=1)
    """Share of the rows that becomes eval, if `split` is cut."""
    test_fraction: float = Field(0.1667, gt=0, lt=1)
    """Share of the rows that becomes test, if `split` is cut."""
    split_seed: int = 0
    """The seed that decides which prompts go into which split."""
    max_length_tokens: int = Field(1024, ge=8)
    """Most tokens of a prompt with its longer answer. Longer pairs are left out."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.eval_split is None) != (self.test_split is None):
            raise ValueError("eval_split and test_split go together: name both or neither")
        if len({self.split, self.eval_split, self.test_split}) < 3 and self.eval_split:
            raise ValueError("split, eval_split and test_split must be three different splits")
        if self.chars and self.chars[0] > self.chars[1]:
            raise ValueError(f"chars: {list(self.chars)} is [fewest, most]; swap the two")
        if self.eval_fraction + self.test_fraction >= 1:
            raise ValueError("eval_fraction and test_fraction must add up to less than 1")
        return self


class OptimConfig(Part):
    """The optimizer, its schedule and its batches."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW with its moments in float32 or in 8 bits. A paged one moves them to the host's memory
    if a GPU has too little. All but `adamw` need bitsandbytes and `trainer: trl`."""
    learning_rate: float = Field(1e-5, gt=0, le=10)
    """AdamW's peak learning rate."""
    batch_size: int = Field(8, ge=1)
    """Pairs per optimizer step."""
    micro_batch_size: int | None = Field(None, ge=1, examples=[4])
    """Most pairs that go through the model in one pass; gradients are summed up to the batch. Null
    means the whole batch. It is halved automatically when memory runs out."""
    activation_checkpointing: bool | None = None
    """Whether layers are computed again in the backward: much less memory, a third more work. Null
    does so only if memory can't hold one pair otherwise."""
    epochs: int = Field(1, ge=1)
    """Passes over the training pairs."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = (
        "constant_with_warmup"
    )
    """The schedule of the learning rate. With a constant one, a short trial trains like the
    beginning of a longer one."""
    warmup_pairs: int = Field(64, ge=0)
    """Pairs over which the learning rate rises from 0. `constant` does not use it."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the running mean of gradients."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the running mean of squared gradients."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon, which is added to the root of the mean of squared gradients."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    @property
    def warmup_steps(self) -> int:
        """The optimizer steps over which the learning rate rises from 0."""
        return math.ceil(self.warmup_pairs / self.batch_size)

    @property
    def pairs_at_once(self) -> int:
        """The pairs of one pass: the largest divisor of the batch up to micro_batch_size."""
        most = min(self.micro_batch_size or self.batch_size, self.batch_size)
        return next(size for size in range(most, 0, -1) if self.batch_size % size == 0)


class LoraConfig(Part):
    """A LoRA adapter on a frozen base."""

    r: int = Field(16, ge=1)
    """Rank of the adapter."""
    alpha: float = Field(32, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input. It must be 0, because TRL switches dropout off in DPO."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter. `lm_head` can't get one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dropout:
            raise ValueError("dropout: it adds noise to DPO's log-ratios; leave it at 0")
        if "lm_head" in self.target_modules:
            raise ValueError("target_modules: lm_head would never be trained; take it out")
        return self


class SimulatedConfig(Part):
    """The curve that `trainer: simulated` follows instead of training."""

    pairs: int = Field(512, ge=1)
    """Training pairs in one epoch."""
    seconds_per_report: float = Field(0.0, ge=0)
    """Seconds that the training between two evaluations takes."""
    noise: float = Field(0.01, ge=0)
    """Standard deviation of the noise in each accuracy, drawn from the trial's seed."""
    best_learning_rate: float = Field(1e-3, gt=0)
    """The final accuracy falls by 0.1 for each factor of 10 away from this learning rate."""
    diverges_above: float = Field(1.0, gt=0)
    """With a larger learning rate the loss becomes NaN at the second evaluation."""
    memory_pairs: int | None = Field(None, ge=0)
    """With more pairs in one pass, the second evaluation runs out of memory. Null: never."""


class TrainConfig(Part):
    """The configuration of one trial: `python -m dpo_train` reads it, and a search varies it."""

    model: ModelConfig = ModelConfig()
    """The base model. It is also DPO's reference model."""
    data: DataConfig = DataConfig()
    """The preference pairs."""
    trainer: Literal["trl", "packed", "simulated"] = "trl"
    """`trl` trains with TRL's DPOTrainer. `packed` trains many LoRA trials in one step; a search of
    a LoRA uses it by default where it can. `simulated` follows a curve and needs no torch."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and schedule."""
    dpo: DpoConfig = DpoConfig()
    """The loss."""
    trl: TrlConfig = TrlConfig()
    """Further fields of TRL's DPOConfig, for `trainer: trl`."""
    lora: LoraConfig | None = None
    """The LoRA adapter to train. Null trains all weights."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The seed of the data order and of the adapter's first weights."""
    eval_every_pairs: int | None = Field(None, ge=1, le=10**9)
    """A trial is evaluated each time it has trained on this many more pairs, and at its end. Null
    uses `eval_at_pairs`. On a real model, evaluating 100 pairs costs as much as training 43."""
    eval_at_pairs: list[Annotated[int, Field(ge=1)]] = []
    """The numbers of trained pairs at which a trial is evaluated, if `eval_every_pairs` is null. A
    search fills in its rungs."""
    simulated: SimulatedConfig = SimulatedConfig()
    """The curve of `trainer: simulated`. Other trainers do not use it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                "model.dtype: bfloat16 weights can't be trained in full (at learning rate 1e-5 "
                "most updates round to nothing); type `float32` (a GPU computes in bfloat16 "
                "anyway), or add `lora: {}`"
            )
        self._refuse_unused()
        if self.model.quantization is not None and self.lora is None:
            raise ValueError(
                f"model.quantization: weights in {self.model.quantization} can't be trained in "
                "full; add `lora: {}`, or take model.quantization out"
            )
        if self.trainer == "packed" and self.lora is None:
            raise ValueError(
                "trainer: packed trains adapters over one frozen base; add `lora: {}`, or type "
                "`trainer: trl` to train all weights"
            )
        unpacked = [name for name in self.dpo.losses if name in NOT_PACKED]
        if self.trainer == "packed" and unpacked:
            raise ValueError(
                f"dpo.loss: `trainer: packed` can't train {', '.join(unpacked)} (it compares the "
                "pairs of a batch); type `trainer: trl`, or another loss"
            )
        batch, first = self.optim.batch_size, self.next_evaluation(0)
        if batch > first and self.eval_every_pairs:
            raise ValueError(
                f"optim.batch_size {batch} is larger than eval_every_pairs {first}, so evaluations "
                "would be skipped; raise eval_every_pairs"
            )
        if batch > first:
            raise ValueError(
                f"optim.batch_size {batch} is larger than the first evaluation, at {first} pairs; "
                "in a search raise stopping.grace_pairs, otherwise raise eval_at_pairs"
            )
        coupled = [loss for loss in self.dpo.losses if loss in COUPLED_LOSSES]
        if coupled and self.optim.pairs_at_once < self.optim.batch_size:
            raise ValueError(
                f"optim.micro_batch_size: the loss {coupled[0]} needs all pairs of a batch at "
                f"once, so a batch of {self.optim.batch_size} can't be split; lower "
                "optim.batch_size"
            )
        return self

    def _refuse_unused(self) -> None:
        """Raise ValueError for settings that this trainer would ignore."""
        for name in ("quantization", "attention"):
            if self.trainer == "simulated" and getattr(self.model, name) is not None:
                raise ValueError(
                    f"model.{name}: `trainer: simulated` loads no model; take it out, or type "
                    "`trainer: trl`"
                )
        if self.trainer == "packed" and self.model.attention is not None:
            raise ValueError(
                "model.attention: `trainer: packed` computes attention in its own way; take "
                "model.attention out, or type `trainer: trl`"
            )
        if self.trainer != "trl" and self.trl != TrlConfig():
            raise ValueError(
                f"trl: these fields do nothing with `trainer: {self.trainer}`; take them out, or "
                "type `trainer: trl`"
            )
        self._refuse_losses_of_trl()
        if self.trainer != "trl" and self.optim.name != "adamw":
            raise ValueError(
                f"optim.name: {self.optim.name} needs `trainer: trl`; type `name: adamw` (it "
                "keeps little memory for an adapter)"
            )

    def _refuse_losses_of_trl(self) -> None:
        """Raise ValueError for losses that TRL can't combine with the fields of `trl`."""
        kind, losses = self.trl.f_divergence_type, self.dpo.losses
        others = [loss for loss in losses if loss not in F_DIVERGENCE_LOSSES]
        if kind != "reverse_kl" and others:
            raise ValueError(
                f"trl.f_divergence_type: {kind} does not work with dpo.loss {others[0]}; it works "
                f"with {', '.join(F_DIVERGENCE_LOSSES)}"
            )
        sorting = [loss for loss in losses if loss in NOT_PACKED]
        if self.trl.use_weighting and sorting:
            raise ValueError(
                f"trl.use_weighting: it does not work with dpo.loss {sorting[0]}, which sorts the "
                "pairs of a batch; take one of them out"
            )

    def next_evaluation(self, pairs_seen: int) -> int:
        """Return the number of pairs at which the next evaluation after `pairs_seen` is due.

        The trial may end before. Returns sys.maxsize if no evaluation is due.
        """
        if self.eval_every_pairs:
            return (pairs_seen // self.eval_every_pairs + 1) * self.eval_every_pairs
        return min((at for at in self.eval_at_pairs if at > pairs_seen), default=sys.maxsize)


def load_train(path: Path, overrides: Overrides | None = None) -> TrainConfig:
    """Read one trial's YAML. Raises InputError."""
    return parse(TrainConfig, read_yaml(path), overrides or {}, str(path))
