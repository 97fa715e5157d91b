"""Fields of TRL's DPOConfig that a trial may set by their own names, and why it may not set others.

Imports no TRL: the names of all its fields stand in a file that `trainers.trl_fields` makes.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_train.config_base import Part

TABLE = Path(__file__).parent / "trainers" / "trl_fields.json"
"""The default of every field of the pinned TRL's DPOConfig, by its name."""
F_DIVERGENCE_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
)  # fmt: skip
"""The losses that TRL computes with another divergence than the reverse KL."""

_OURS = {
    "type `optim.learning_rate`": ("learning_rate",),
    "type `optim.schedule`": ("lr_scheduler_type",),
    "type `optim.warmup_pairs`": ("warmup_steps",),
    "type `optim.epochs`": ("num_train_epochs", "max_steps"),
    "type `optim.batch_size` and `optim.micro_batch_size`": (
        "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size",
    ),
    "type `optim.name`": ("optim", "optim_args", "optim_target_modules"),
    "type `optim.weight_decay`": ("weight_decay",),
    "type `optim.beta1`": ("adam_beta1",),
    "type `optim.beta2`": ("adam_beta2",),
    "type `optim.epsilon`": ("adam_epsilon",),
    "type `optim.max_grad_norm`": ("max_grad_norm",),
    "type `optim.activation_checkpointing`": (
        "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
    ),
    "type `dpo.loss`": ("loss_type",),
    "type `dpo.loss_weights`": ("loss_weights",),
    "type `dpo.beta`": ("beta",),
    "type `dpo.label_smoothing`": ("label_smoothing", "label_smoothing_factor"),
    "type `dpo.discopop_tau`": ("discopop_tau",),
    "type `data.max_length_tokens`": ("max_length", "truncation_mode"),
    "type `model.dtype`; a GPU computes in bfloat16": (
        "bf16", "fp16", "bf16_full_eval", "fp16_full_eval",
    ),
    "type `model.id` and the fields beside it": ("model_init_kwargs", "trust_remote_code"),
    "type `seed`": ("seed", "data_seed", "full_determinism", "train_sampling_strategy"),
    "type `eval_every_pairs`": (
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size",
        "do_eval", "do_train", "do_predict",
    ),
    "type `save_every_minutes` of a search": (
        "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node",
        "resume_from_checkpoint", "output_dir", "load_best_model_at_end",
    ),
    "type `objective` of a search": ("metric_for_best_model", "greater_is_better"),
    "take it out: a search tells its trackers by itself": (
        "report_to", "run_name", "project", "logging_strategy", "logging_steps",
        "logging_first_step", "logging_nan_inf_filter", "disable_tqdm",
    ),
    "type `hub` of a search": (
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
        "hub_always_push", "hub_revision",
    ),
    "type `resources` of a search": (
        "use_cpu", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "ddp_backend",
        "accelerator_config",
    ),
    "take it out: Liger's kernels are used where they are installed": (
        "use_liger_kernel", "liger_kernel_config",
    ),
    "take it out: the memory of a pass is bounded by rows that are not padded so": (
        "pad_to_multiple_of",
    ),
    "take it out: DPO needs log-ratios without noise": ("disable_dropout", "neftune_noise_alpha"),
    "take it out: the reference is the base, and its log-probs are computed once for all trials": (
        "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model",
        "ref_model_mixup_alpha", "ref_model_sync_steps",
    ),
    "take it out: TRL weighs the policy's tokens, and would compare them with the reference's "
    "whole sums": ("ld_alpha",),
}  # fmt: skip
"""What to do in place of setting a field of TRL."""


class TrlConfig(Part):
    """The defaults are TRL's own."""

    f_divergence_type: Literal[
        "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"
    ] = "reverse_kl"  # fmt: skip
    """What holds the policy to the reference (f-DPO, arXiv:2309.16240)."""
    f_alpha_divergence_coef: float = Field(0.5, gt=0)
    """The α of `alpha_divergence`."""
    use_weighting: bool = False
    """Whether pairs are weighted by how likely the policy finds them (WPO, arXiv:2406.11827)."""
    torch_empty_cache_steps: int | None = Field(None, ge=1)
    """A GPU's unused memory is given back after so many steps."""

    @model_validator(mode="before")
    @classmethod
    def _answer_for_others(cls, content: Any) -> Any:
        """Says of a field that TRL has, and that is none of these, what to do instead."""
        others = set(content) - set(cls.model_fields) if isinstance(content, dict) else set()
        for name in sorted(map(str, others)):
            for advice, names in _OURS.items():
                if name in names:
                    raise ValueError(f"{name} is not for a trial to set; {advice}")
            if name in json.loads(TABLE.read_text(encoding="utf-8")):
                raise ValueError(
                    f"{name} is not handed on to TRL, because no test here covers it; take it "
                    f"out. Allowed: {', '.join(cls.model_fields)}"
                )
        return content
