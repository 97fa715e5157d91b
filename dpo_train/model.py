"""The base model and its tokenizer in memory: loaded once per process, handed out fresh.

Knows no training; where the files come from is `model_source`. torch is imported in the functions,
because modules that only name these types must stay light.
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
    """CPU copies of the weights, made when the first full fine-tuning is about to change them."""
    undo: Callable[[], None] | None = None
    """What takes back that a borrower changed in the model beside its weights."""

    def fresh(self, trained_in_full: bool) -> PreTrainedModel:
        """The model with the base's own weights, as if just loaded.

        Raises InputError if it is to be trained in full and is quantised.
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
        # TRL and accelerate wrap `forward` on the instance, once more for every trainer.
        for wrapper in ("forward", "_original_forward"):
            self.model.__dict__.pop(wrapper, None)
        activation_checkpointing.switch_off(self.model)
        for weight in self.model.parameters():
            weight.requires_grad_(weight.is_floating_point())  # packed ones are bytes
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
    """A copy in the host's memory, pinned if the weight is on a GPU: a GPU reads it from there
    directly, where other memory is copied once more on its way."""
    import torch  # slow to import

    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
    return copy.copy_(weight)


_OF_A_DEVICE = re.compile(r"cuda|cublas|cudnn|nccl|\bhip\b|gloo|triton", re.IGNORECASE)
"""In what a RuntimeError says that is not of a model's code."""
_loaded: dict[tuple[str, str], WarmBase] = {}


def load_base(config: ModelConfig, device: str, prepared: Path | None = None) -> WarmBase:
    """The process's one copy of the base on that device, loaded at the first call.

    On a CPU all processes of a machine share the pages of float32 weights, converted into the
    `prepared` folder if the model's own files have another dtype. Raises DiskFull.
    """
    config = from_anywhere(config)
    key = (config.model_dump_json(), device)
    if key not in _loaded:
        fetch(config)  # this node may be another than the one that prepared the data
        tokenizer = load_tokenizer(config)
        extras.refuse_attention(config.attention, device)
        weights = converted(config, prepared) if prepared and device == "cpu" else None
        if config.quantization is None:
            model = _load(config, weights).to(device)
        else:
            model = _load_quantized(config, config.quantization, device)
        if device == "cuda":
            use_fused_kernels(model)
        _loaded.clear()  # one base at a time: a second would double the memory
        _loaded[key] = WarmBase(model, tokenizer, None)
        # What is loaded by now stays: the collection at each trial's end need not walk it again,
        # which would take it a quarter of a second in place of a millisecond.
        gc.collect()
        gc.freeze()
    return _loaded[key]


def _load_quantized(config: ModelConfig, kind: Literal["nf4", "int8"], device: str) -> Any:
    """The model on its device, with packed linear layers. Raises InputError."""
    extras.refuse_missing(f"model.quantization: {kind}", "bitsandbytes", "quantized")
    from dpo_train import quantization  # imports torch and transformers, slowly

    how = quantization.quantization_config(kind)
    model = _load(config, None, quantization_config=how, device_map={"": device})
    quantization.take_over(model)
    give_back()  # what quantising took
    return model


def _load(config: ModelConfig, weights: Path | None, **how: Any) -> Any:
    """The model with the settings in which it trains, from converted `weights` or its own files.

    Raises InputError for what transformers can't load, and for weights that are not all there:
    transformers would draw the missing ones at random.
    """
    import torch  # slow to import
    from transformers import AutoModelForCausalLM  # slow to import

    folder = local_folder(config)
    hub = weights is None and folder is None
    place = {"revision": config.revision, "local_files_only": True} if hub else {}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            weights or folder or config.id,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=False,
            output_loading_info=True,
            **place,
            attn_implementation=config.attention,
            **how,
        )
    except Exception as error:
        # A full disk has a number; that transformers finds no file of weights has none.
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
    """The next trial loads the base anew, into the memory of this one if no session holds it."""
    _loaded.clear()
    # TRL's `forward` on the instance is a cycle, and what is frozen is never collected.
    gc.unfreeze()
    gc.collect()


def load_tokenizer(config: ModelConfig, fetched: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, which must be one and have a chat template, or InputError.

    If the model was not `fetched` to this machine, its tokenizer alone is.
    """
    from transformers import AutoTokenizer  # slow to import

    folder = local_folder(config)
    place: dict[str, str | bool | None] = {}
    if folder is None:
        place = {"revision": config.revision, "local_files_only": fetched}
    else:
        refuse_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder or config.id, trust_remote_code=False, **place
        )
    except Exception as error:  # the libraries raise a dozen kinds; each is about what was named
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
    """An error from inside the code of a model is a refusal of the model: see `as_refusal`."""
    try:
        yield
    except Exception as error:
        refusal = as_refusal(error, what)
        if refusal is error:
            raise
        raise refusal from error


def as_refusal(error: BaseException, what: str) -> BaseException:
    """InputError if an error comes from the code of a model, or of a library that wraps it: `what`
    can't be done with it. Errors of devices, memory, disks and numbers stay what they are."""
    kinds = (AttributeError, LookupError, TypeError, ValueError, RuntimeError)
    if isinstance(error, InputError) or not isinstance(error, kinds):
        return error
    # torch raises kinds of its own for what a device does, and a plain RuntimeError for shapes.
    if isinstance(error, RuntimeError) and (
        type(error) not in (RuntimeError, NotImplementedError)
        or is_out_of_memory(error)
        or _OF_A_DEVICE.search(str(error))
    ):
        return error
    cause = f"{type(error).__name__}: {one_line(error)}"
    return InputError(
        f"model.id: {what} fails in this model's own code ({cause}); give another model or other "
        "settings"
    )


def refuse_missing_targets(base: PreTrainedModel, lora: LoraConfig) -> None:
    """Raises InputError for a target module that the model has not; PEFT takes those that are there
    and is silent about the others."""
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
    """PEFT's form of the adapter's config."""
    import peft  # slow to import

    return peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )
