"""The configuration of one trial.

Imports nothing heavy: every mistake in a YAML is found before torch is loaded.
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
    id: str = "sample"
    """A Hub id, a folder, or `sample`, the tiny model that ships with the project."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; a search resolves it to a commit before it starts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in memory. bfloat16 only for the frozen base of a LoRA; a search on GPUs takes
    it for that by itself."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """How attention is computed: by torch's kernels, step by step, or by flash-attn on a GPU. Null
    takes sdpa where the model has it."""
    quantization: Literal["nf4", "int8"] | None = None
    """4 or 8 bits a weight in the linear layers of a LoRA's frozen base (QLoRA); it computes in
    `dtype` all the same. An exported adapter goes onto the base as it is published."""


class DataColumns(Part):
    """Where each part of a pair stands: a column's name, or a path in it like `answers[0].text`.

    Null: the part is not read, even if there is a column of its name.
    """

    prompt: str | None = "prompt"
    """The question: a text or messages. Without such a column it is taken from the answers."""
    chosen: str = "chosen"
    """The better answer, or the whole conversation that ends with it."""
    rejected: str = "rejected"
    """The worse answer, or the whole conversation that ends with it."""
    system: str | None = "system"
    """The system prompt."""
    tools: str | None = "tools"
    """JSON schemas of tools that the chat template describes."""
    chat_template_kwargs: str | None = "chat_template_kwargs"
    """Further variables of the chat template."""


class DataConfig(Part):
    id: str = "sample"
    """A Hub id, a file (.jsonl .json .csv .tsv .parquet, the texts also as .gz), a folder of such
    files named by split, or `sample`."""
    config: str | None = None
    """The dataset's configuration on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    split: str = "train"
    """The split that is read, and cut in three unless the next two name splits of their own."""
    eval_split: str | None = None
    """The dataset's own split on which trials are compared."""
    test_split: str | None = None
    """The dataset's own split that is read once, at the end."""
    columns: DataColumns = DataColumns()
    """Which column is which part of a pair, for a dataset with names of its own."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """What happens if a row can't be read as it is meant; skipped ones are counted by reason."""
    chars: Annotated[tuple[int, int] | None, Allowed("two whole numbers, [fewest, most]")] = Field(
        None, examples=[[30, 300]]
    )
    """Fewest and most characters of prompt, of chosen and of rejected."""
    limit: int | None = Field(None, ge=3, examples=[1000])
    """The first so many rows that passed the filters."""
    eval_fraction: float = Field(0.1667, gt=0, lt=1)
    """Share of the rows that becomes eval, when the dataset is cut."""
    test_fraction: float = Field(0.1667, gt=0, lt=1)
    """Share of the rows that becomes test, when the dataset is cut."""
    split_seed: int = 0
    """Decides which prompts fall into which split."""
    max_length_tokens: int = Field(1024, ge=8)
    """A pair whose prompt with its longer completion has more tokens is left out."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.eval_split is None) != (self.test_split is None):
            raise ValueError("eval_split and test_split go together: name both or neither")
        if len({self.split, self.eval_split, self.test_split}) < 3 and self.eval_split:
            raise ValueError("split, eval_split and test_split must be three different splits")
        if self.chars and self.chars[0] > self.chars[1]:
            raise ValueError(f"chars: {list(self.chars)} is [fewest, most]; swap the two")
        if self.eval_fraction + self.test_fraction >= 1:
            raise ValueError(
                "eval_fraction and test_fraction leave nothing to train on; their sum must be "
                "below 1"
            )
        return self


class OptimConfig(Part):
    name: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW with its moments in float32 or in 8 bits. Those of a paged one move to the host's
    memory where a GPU has too little. All but `adamw` need bitsandbytes and `trainer: trl`."""
    learning_rate: float = Field(1e-5, gt=0, le=10)
    """AdamW's peak learning rate."""
    batch_size: int = Field(8, ge=1)
    """Pairs per optimizer step."""
    micro_batch_size: int | None = Field(None, ge=1, examples=[4])
    """Most pairs that go through the model at once; gradients of the rest of a batch are added up.
    All of a batch by default; halved by itself where memory runs out."""
    activation_checkpointing: bool | None = None
    """Whether layers are computed again in the backward: much less memory, a third more work. By
    default only where memory does not hold one pair otherwise."""
    epochs: int = Field(1, ge=1)
    """Passes over the training pairs."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = (
        "constant_with_warmup"
    )
    """Of the learning rate. With a constant one a shorter trial is a prefix of a longer one."""
    warmup_pairs: int = Field(64, ge=0)
    """Pairs over which the learning rate rises from 0; not used by `constant`."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the mean of their squares."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's, beside the root of that mean."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup_pairs / self.batch_size)

    @property
    def pairs_at_once(self) -> int:
        """The largest part of a batch, at most micro_batch_size, that divides it evenly."""
        most = min(self.micro_batch_size or self.batch_size, self.batch_size)
        return next(size for size in range(most, 0, -1) if self.batch_size % size == 0)


class LoraConfig(Part):
    r: int = Field(16, ge=1)
    """Rank of the adapter."""
    alpha: float = Field(32, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input. TRL switches dropout off in DPO, so only 0 is honest."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter; never `lm_head`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dropout:
            raise ValueError("dropout: it adds noise to DPO's log-ratios; leave it at 0")
        if "lm_head" in self.target_modules:
            raise ValueError(
                "target_modules: an adapter on lm_head would never be trained; take lm_head out"
            )
        return self


class SimulatedConfig(Part):
    """The curve that `trainer: simulated` follows in place of training."""

    pairs: int = Field(512, ge=1)
    """Training pairs in one epoch."""
    seconds_per_report: float = Field(0.0, ge=0)
    """How long the training between two evaluations takes."""
    noise: float = Field(0.01, ge=0)
    """Standard deviation that an evaluation adds to the accuracy, drawn from the trial's seed."""
    best_learning_rate: float = Field(1e-3, gt=0)
    """The accuracy at the end falls by 0.1 per decade away from it."""
    diverges_above: float = Field(1.0, gt=0)
    """With a larger learning rate the loss becomes NaN at the second evaluation."""
    memory_pairs: int | None = Field(None, ge=0)
    """Most pairs at once for which there is memory; with more the second evaluation has none."""


class TrainConfig(Part):
    """One trial: what `python -m dpo_train` reads, and what a search varies."""

    model: ModelConfig = ModelConfig()
    """The base model, and so the reference."""
    data: DataConfig = DataConfig()
    """The preference pairs."""
    trainer: Literal["trl", "packed", "simulated"] = "trl"
    """`trl` trains with TRL's DPOTrainer; `packed` trains many LoRA trials in one step;
    `simulated` follows a curve and needs no torch."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and schedule."""
    dpo: DpoConfig = DpoConfig()
    """The loss."""
    trl: TrlConfig = TrlConfig()
    """Further fields of TRL's DPOConfig, for `trainer: trl`."""
    lora: LoraConfig | None = None
    """Null trains all weights."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the data and the adapter's first weights."""
    eval_every_pairs: int | None = Field(None, ge=1, le=10**9)
    """A trial is evaluated at the first step at or past each multiple, and at its end. Null: at
    `eval_at_pairs`. On a real model an evaluation of 100 pairs costs what training 43 does."""
    eval_at_pairs: list[Annotated[int, Field(ge=1)]] = []
    """The same at each of these; unused with `eval_every_pairs`. A search fills in its rungs."""
    simulated: SimulatedConfig = SimulatedConfig()
    """Used by `trainer: simulated` alone."""

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
        """Raises ValueError for what this trainer would not heed."""
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
        """Raises ValueError for losses that TRL does not compute with what `trl` says."""
        kind, losses = self.trl.f_divergence_type, self.dpo.losses
        apart = [loss for loss in losses if loss not in F_DIVERGENCE_LOSSES]
        if kind != "reverse_kl" and apart:
            raise ValueError(
                f"trl.f_divergence_type: {kind} does not work with dpo.loss {apart[0]}; it works "
                f"with {', '.join(F_DIVERGENCE_LOSSES)}"
            )
        sorting = [loss for loss in losses if loss in NOT_PACKED]
        if self.trl.use_weighting and sorting:
            raise ValueError(
                f"trl.use_weighting: it does not work with dpo.loss {sorting[0]}, which sorts the "
                "pairs of a batch; take one of them out"
            )

    def next_evaluation(self, pairs_seen: int) -> int:
        """The pairs at which the next evaluation after so many is due, unless the trial ends
        before; sys.maxsize if none is."""
        if self.eval_every_pairs:
            return (pairs_seen // self.eval_every_pairs + 1) * self.eval_every_pairs
        return min((at for at in self.eval_at_pairs if at > pairs_seen), default=sys.maxsize)


def load_train(path: Path, overrides: Overrides | None = None) -> TrainConfig:
    """Reads one trial's YAML. Raises InputError."""
    return parse(TrainConfig, read_yaml(path), overrides or {}, str(path))
