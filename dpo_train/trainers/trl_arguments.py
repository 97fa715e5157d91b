"""Translates a trial's configuration to TRL's DPOConfig."""

from __future__ import annotations

from pathlib import Path

from trl import DPOConfig

from dpo_train import extras
from dpo_train.activation_checkpointing import OPTIONS
from dpo_train.config import TrainConfig
from dpo_train.errors import InputError
from dpo_train.optimizers import TRANSFORMERS_NAMES, Name
from dpo_train.trainers.process_group import ProcessGroup


def trl_arguments(
    config: TrainConfig, scratch: Path, device: str, process_group: ProcessGroup
) -> DPOConfig:
    """Return the DPOConfig of a trial for one process of a group.

    Raises InputError for an optimizer that needs a GPU or a package that is missing.
    """
    optim, dpo = config.optim, config.dpo
    _refuse_impossible(optim.name, device)
    # One process trains an equal share of each batch and of the pairs at once.
    count = process_group.count
    most = max(1, optim.pairs_at_once // count)
    share = {"batch_size": optim.batch_size // count, "micro_batch_size": most}
    own = optim.model_copy(update=share)
    return DPOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=own.pairs_at_once,
        gradient_accumulation_steps=own.batch_size // own.pairs_at_once,
        num_train_epochs=optim.epochs,
        optim=TRANSFORMERS_NAMES[optim.name],
        learning_rate=optim.learning_rate,
        lr_scheduler_type=optim.schedule,
        warmup_steps=0 if optim.schedule == "constant" else optim.warmup_steps,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_epsilon=optim.epsilon,
        max_grad_norm=optim.max_grad_norm,
        loss_type=dpo.losses,
        loss_weights=dpo.loss_weights,
        beta=dpo.beta,
        label_smoothing=dpo.label_smoothing,
        discopop_tau=dpo.discopop_tau,
        f_divergence_type=config.trl.f_divergence_type,
        f_alpha_divergence_coef=config.trl.f_alpha_divergence_coef,
        use_weighting=config.trl.use_weighting,
        torch_empty_cache_steps=config.trl.torch_empty_cache_steps,
        seed=config.seed,
        precompute_ref_log_probs=True,
        max_length=None,
        activation_checkpointing=bool(optim.activation_checkpointing),
        activation_checkpointing_kwargs=OPTIONS if optim.activation_checkpointing else None,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and process_group.count > 1 else None,
        ddp_find_unused_parameters=False,
        fsdp=process_group.sharded,
        dataloader_pin_memory=device == "cuda",
        logging_strategy="no",
        # The filter would hide a NaN loss, and it waits for the device in each step.
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _refuse_impossible(optimizer: Name, device: str) -> None:
    """Raise InputError for an optimizer without its package, or a paged one on a CPU.

    On a CPU bitsandbytes would only warn, and use no pages.
    """
    if optimizer == "adamw":
        return
    extras.refuse_missing(f"optim.name: {optimizer}", "bitsandbytes", "quantized")
    if optimizer.startswith("paged") and device == "cpu":
        unpaged = optimizer.removeprefix("paged_")
        raise InputError(f"optim.name: {optimizer} works on a GPU only; type `name: {unpaged}`")
