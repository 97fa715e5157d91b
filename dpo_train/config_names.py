"""Tables of the names that other programs use for our fields, and what to type here instead.

This module imports nothing.
"""

from __future__ import annotations

TRL_FIELDS: dict[str, tuple[str, ...]] = {
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
    "take it out: a search reports to its trackers by itself": (
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
    "take it out: the memory limit of a pass assumes rows without this padding": (
        "pad_to_multiple_of",
    ),
    "take it out: it adds noise to DPO's log-ratios": ("disable_dropout", "neftune_noise_alpha"),
    "take it out: the reference is the base, and its log-probs are computed once for all trials": (
        "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model",
        "ref_model_mixup_alpha", "ref_model_sync_steps",
    ),
    "take it out: TRL would weight the policy's tokens but not the reference's, whose log-probs "
    "are stored as sums": ("ld_alpha",),
}  # fmt: skip
"""By advice, the fields of TRL's DPOConfig that it replaces."""
NAMES_IN_TRL: dict[str, tuple[str, ...]] = {
    "optim.name": ("optim",),
    "optim.batch_size": ("per_device_train_batch_size", "gradient_accumulation_steps"),
    "optim.micro_batch_size": ("per_device_train_batch_size",),
    "optim.epochs": ("num_train_epochs",),
    "optim.schedule": ("lr_scheduler_type",),
    "optim.warmup_pairs": ("warmup_steps",),
    "optim.beta1": ("adam_beta1",),
    "optim.beta2": ("adam_beta2",),
    "optim.epsilon": ("adam_epsilon",),
    "dpo.loss": ("loss_type",),
}
"""Fields of ours that TRL's DPOConfig has under another name, as `trl_arguments` hands them on."""
FIELD_ALIASES: dict[str, tuple[str, ...]] = {
    "optim.learning_rate": ("lr", "learningrate", "step_size", "peak_lr"),
    "optim.batch_size": (
        "bs", "batch", "batchsize", "train_batch_size", "global_batch_size",
        "effective_batch_size", "per_gpu_train_batch_size",
    ),
    "optim.micro_batch_size": ("microbatch", "micro_batch", "microbatch_size", "mbs"),
    "optim.epochs": ("n_epochs", "num_epochs", "max_epochs", "train_epochs"),
    "optim.schedule": ("scheduler", "lr_scheduler", "lr_schedule", "schedule_type"),
    "optim.warmup_pairs": ("warmup", "warmup_ratio", "num_warmup_steps", "lr_warmup_steps"),
    "optim.weight_decay": ("wd", "decay"),
    "optim.max_grad_norm": ("grad_clip", "clip_grad", "gradient_clipping", "max_norm"),
    "optim.name": ("optimizer", "optimiser"),
    "dpo.loss": ("loss_fn", "dpo_loss", "preference_loss"),
    "dpo.beta": ("dpo_beta", "kl_coef", "kl_beta", "pref_beta"),
    "lora.r": ("rank", "lora_r", "lora_rank"),
    "lora.alpha": ("lora_alpha",),
    "lora.dropout": ("lora_dropout",),
    "lora.target_modules": ("lora_target", "lora_target_modules", "modules"),
    "lora": ("peft", "peft_config", "adapter", "use_peft", "use_lora"),
    "model.id": ("model_name", "model_name_or_path", "base_model", "pretrained", "checkpoint"),
    "model.dtype": ("torch_dtype", "precision"),
    "model.attention": ("attn_implementation", "flash_attention", "attn"),
    "model.quantization": ("load_in_4bit", "load_in_8bit", "quantize", "quant"),
    "data.id": ("dataset", "dataset_name", "data_path", "train_file", "dataset_path"),
    "data.max_length_tokens": ("max_seq_length", "max_seq_len", "max_len", "cutoff_len", "seq_len"),
    "data.limit": ("max_samples", "num_samples_dataset", "max_train_samples", "max_rows"),
    "data.split": ("dataset_split", "train_split"),
    "seed": ("random_seed", "random_state"),
    "trials": ("num_trials", "n_trials", "num_samples", "run_cap", "max_trials", "count"),
    "space": ("search_space", "param_space", "parameters", "hyperparameters", "params", "axes"),
    "objective": ("metric", "goal", "optimize_metric"),
    "sampler": ("search_alg", "method", "algorithm", "searcher"),
    "stopping": ("early_stopping", "early_terminate", "pruner", "asha"),
    "stopping.grace_pairs": ("grace_period", "min_resource", "min_iter", "grace"),
    "stopping.reduction": ("reduction_factor", "eta"),
    "resources.at_once": ("max_concurrent_trials", "concurrency", "n_jobs", "parallel", "workers"),
    "resources.gpus": ("gpu", "num_gpus", "n_gpus"),
    "resources.cpus": ("cpu", "num_cpus"),
    "budget.hours": ("time_budget_s", "timeout", "max_hours", "time_budget"),
    "points": ("points_to_evaluate", "enqueue", "initial_points"),
    "hub.repo": ("repo_id", "repository"),
    "runs_dir": ("storage_path", "local_dir", "log_dir"),
    "name": ("experiment_name", "study_name", "exp_name"),
}  # fmt: skip
"""By our path, the names that other programs and people in a hurry use for it."""

AXIS_ALIASES: dict[str, tuple[str, ...]] = {
    "choice: [a, b]": (
        "values", "categorical", "category", "options", "grid", "grid_search", "list", "one_of",
    ),
    "log_uniform: [low, high]": ("loguniform_values", "reverse_log_uniform", "qloguniform"),
    "uniform: [low, high]": (
        "range", "between", "min", "max", "low", "high", "float", "quniform", "distribution",
    ),
    "int: [low, high]": ("randint", "integer", "int_uniform", "q_uniform", "quantized"),
    "log_int: [low, high]": ("lograndint",),
}  # fmt: skip
"""By our kind of axis, the names that other programs use for it."""


def our_name(name: str, among: dict[str, tuple[str, ...]]) -> str:
    """Return our path or advice for a name in one of the tables above; empty if it isn't there."""
    plain = name.lower().replace("-", "_")
    return next((ours for ours, names in among.items() if plain in names), "")
