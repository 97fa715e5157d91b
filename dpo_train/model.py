"""The base model and its tokenizer in memory, loaded once per process and reset for each trial.

This module knows no training; `model_source` finds the files. torch is imported inside the
functions, because modules that only name these types must load quickly.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpo_train import activation_checkpointing, extras, model_settings
from dpo_train.config import LoraConfig, ModelConfig
from dpo_train.converted_weights import converted
from dpo_train.errors import InputError, one_line
from dpo_train.fused_kernels import use_fused_kernels
from dpo_train.memory import give_back, is_out_of_memory
from dpo_train.model_source import fetch, from_anywhere, local_folder, refuse_folder, unloadable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class WarmBase:
    """A base model that stays on the device from trial to trial."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pristine: dict[str, Tensor] | None
    """Copies of the weights in the host's memory, made before the first full fine-tuning."""
    undo: Callable[[], None] | None = None
    """Reverts what a trainer changed in the model beside its weights."""

    def fresh(self, trained_in_full: bool) -> PreTrainedModel:
        """Return the model with the base's own weights, as if it was just loaded.

        Raises InputError if all weights are to be trained, but the model is quantised.
        """
        import torch  # slow to import

        if trained_in_full and getattr(self.model, "hf_quantizer", None) is not None:
            raise InputError(
                "model.id: the model is quantised, so not all of its weights can be trained; type "
                "`lora: {r: 16}`, or give the model unquantised"
            )
        if self.undo is not None:
            self.undo()
            self.undo = None
        # Each trainer of TRL and accelerate wraps `forward` of the instance once more. So we
        # remove the wrappers.
        for wrapper in ("forward", "_original_forward"):
            self.model.__dict__.pop(wrapper, None)
        activation_checkpointing.switch_off(self.model)
        for weight in self.model.parameters():
            weight.requires_grad_(weight.is_floating_point())  # quantised weights are bytes
        self.model.train()
        with torch.no_grad():
            if self.pristine is not None:
                for name, weight in self.model.named_parameters():
                    weight.copy_(self.pristine[name], non_blocking=True)
            elif trained_in_full:
                self.pristine = {
                    name: _host_copy(weight) for name, weight in self.model.named_parameters()
                }
        return self.model


def _host_copy(weight: Tensor) -> Tensor:
    """Return a copy in the host's memory, pinned if the weight is on a GPU.

    A GPU reads pinned memory directly; other memory would be copied once more on its way.
    """
    import torch  # slow to import

    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
    return copy.copy_(weight)


_DEVICE_ERROR = re.compile(r"cuda|cublas|cudnn|nccl|\bhip\b|gloo|triton", re.IGNORECASE)
"""Words of a RuntimeError that comes from a device and not from a model's code."""
_loaded: dict[tuple[str, str], WarmBase] = {}
"""The process's one base, by its configuration and device."""


def load_base(config: ModelConfig, device: str, prepared: Path | None = None) -> WarmBase:
    """Return the process's one copy of the base on a device. The first call loads it.

    On a CPU all processes of a machine share the pages of float32 weights. If the model's files
    have another dtype, they are converted into the `prepared` folder. Raises DiskFull.
    """
    config = from_anywhere(config)
    key = (config.model_dump_json(), device)
    if key not in _loaded:
        fetch(config)  # another node may have prepared the data
        tokenizer = load_tokenizer(config)
        extras.refuse_attention(config.attention, device)
        weights = converted(config, prepared) if prepared and device == "cpu" else None
        if config.quantization is None:
            model = _load(config, weights).to(device)
        else:
            model = _load_quantized(config, config.quantization, device)
        if device == "cuda":
            use_fused_kernels(model)
        _loaded.clear()  # a second base would double the memory
        _loaded[key] = WarmBase(model, tokenizer, None)
        # The garbage collection at each trial's end would walk over everything loaded so far, and
        # take a quarter of a second. So we freeze these objects, and it takes a millisecond.
        gc.collect()
        gc.freeze()
    return _loaded[key]


def _load_quantized(config: ModelConfig, kind: Literal["nf4", "int8"], device: str) -> Any:
    """Load the model on its device with quantised linear layers. Raises InputError."""
    extras.refuse_missing(f"model.quantization: {kind}", "bitsandbytes", "quantized")
    from dpo_train import quantization  # imports torch and transformers, slowly

    settings = quantization.quantization_config(kind)
    model = _load(config, None, quantization_config=settings, device_map={"": device})
    quantization.take_over(model)
    give_back()  # quantising needed memory that is free now
    return model


def _load(config: ModelConfig, weights: Path | None, **options: Any) -> Any:
    """Load the model from converted `weights` or its own files, with its settings for training.

    Raises InputError for a model that transformers can't load. Raises it also if weights are
    missing, because transformers would fill them with random numbers.
    """
    import torch  # slow to import
    from transformers import AutoModelForCausalLM  # slow to import

    folder = local_folder(config)
    hub = weights is None and folder is None
    hub_options = {"revision": config.revision, "local_files_only": True} if hub else {}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            weights or folder or config.id,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=False,
            output_loading_info=True,
            **hub_options,
            attn_implementation=config.attention,
            **options,
        )
    except Exception as error:
        # An OSError of the disk has an errno. One about missing files of weights has none.
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise unloadable(config, "the model", error) from None
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"model.id: the files of {config.id!r} lack {len(missing)} of the model's weights, for "
            f"example {missing[0]}; give a complete model"
        )
    model.config._name_or_path = str(folder or config.id)
    model_settings.switch_off_dropout(model)
    model_settings.mend_generation_config(model.generation_config)
    return model


def forget_base() -> None:
    """Drop the base, so that the next trial loads it again.

    Its memory is freed if no session holds it.
    """
    _loaded.clear()
    # TRL's `forward` on the instance is a reference cycle, and frozen objects are never collected.
    # So we unfreeze them first.
    gc.unfreeze()
    gc.collect()


def load_tokenizer(config: ModelConfig, fetched: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. If the model is not `fetched`, download only the tokenizer.

    Raises InputError if it can't be loaded or has no chat template.
    """
    from transformers import AutoTokenizer  # slow to import

    folder = local_folder(config)
    hub_options: dict[str, str | bool | None] = {}
    if folder is None:
        hub_options = {"revision": config.revision, "local_files_only": fetched}
    else:
        refuse_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder or config.id, trust_remote_code=False, **hub_options
        )
    except Exception as error:  # the libraries raise many kinds; each is about this model
        raise unloadable(config, "the tokenizer", error) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} has no chat template; use an instruct "
            "model, or save a chat template into this tokenizer"
        )
    return tokenizer


@contextmanager
def errors_of_the_model_refused(what: str) -> Iterator[None]:
    """Raise errors from a model's own code as InputError; see `as_refusal`."""
    try:
        yield
    except Exception as error:
        refusal = as_refusal(error, what)
        if refusal is error:
            raise
        raise refusal from error


def as_refusal(error: BaseException, what: str) -> BaseException:
    """Return an InputError for an error from the code of a model or of a library that wraps it.

    `what` names what failed. Errors of devices, memory, disks and numbers are returned unchanged.
    """
    kinds = (AttributeError, LookupError, TypeError, ValueError, RuntimeError)
    if isinstance(error, InputError) or not isinstance(error, kinds):
        return error
    # torch raises a plain RuntimeError for wrong shapes, and subclasses of it for devices.
    if isinstance(error, RuntimeError) and (
        type(error) not in (RuntimeError, NotImplementedError)
        or is_out_of_memory(error)
        or _DEVICE_ERROR.search(str(error))
    ):
        return error
    cause = f"{type(error).__name__}: {one_line(error)}"
    return InputError(
        f"model.id: {what} fails in this model's own code ({cause}); give another model or other "
        "settings"
    )


def refuse_missing_targets(base: PreTrainedModel, lora: LoraConfig) -> None:
    """Raise InputError for a target module that the model does not have.

    PEFT would silently use the existing ones only.
    """
    if isinstance(lora.target_modules, str):
        return
    names = [name for name, _ in base.named_modules()]
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = [
                name.rpartition(".")[2]
                for name, module in base.named_modules()
                if type(module).__name__ in ("Linear", "Conv1D", "QuantizedLinear")
            ]
            allowed = ", ".join(dict.fromkeys(name for name in linear if name != "lm_head"))
            raise InputError(
                f"lora.target_modules: the model has no layer {target!r}; its linear layers are "
                f"{allowed}; name some of these, or type `all-linear`"
            )


def peft_config(lora: LoraConfig) -> Any:
    """Return the adapter's configuration as PEFT's LoraConfig."""
    import peft  # slow to import

    return peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )
