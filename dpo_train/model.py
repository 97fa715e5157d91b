"""The base model and its tokenizer in memory: loaded once per process, handed out fresh.

Knows no training; where the files come from is `model_source`. torch is imported in the functions,
because modules that only name these types must stay light.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train import dropout
from dpo_train.config import LoraConfig, ModelConfig
from dpo_train.converted_weights import converted
from dpo_train.errors import InputError, one_line
from dpo_train.model_source import fetch, local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class WarmBase:
    """A base model that stays on the device from trial to trial."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pristine: dict[str, Any] | None
    """CPU copies of the weights, made when the first full fine-tuning is about to change them."""
    undo: Callable[[], None] | None = None
    """What takes back that a borrower changed in the model beside its weights."""

    def fresh(self, trained_in_full: bool) -> PreTrainedModel:
        """The model with the base's own weights, as if just loaded."""
        import torch  # slow to import

        if self.undo is not None:
            self.undo()
            self.undo = None
        # TRL and accelerate wrap `forward` on the instance, once more for every trainer.
        for wrapper in ("forward", "_original_forward"):
            self.model.__dict__.pop(wrapper, None)
        self.model.requires_grad_(True)
        self.model.train()
        with torch.no_grad():
            if self.pristine is not None:
                for name, weight in self.model.named_parameters():
                    weight.copy_(self.pristine[name])
            elif trained_in_full:
                self.pristine = {
                    name: weight.detach().to("cpu", copy=True)
                    for name, weight in self.model.named_parameters()
                }
        return self.model


_loaded: dict[tuple[str, str], WarmBase] = {}


def load_base(config: ModelConfig, device: str, prepared: Path | None = None) -> WarmBase:
    """The process's one copy of the base on that device, loaded at the first call.

    On a CPU all processes of a machine share the pages of float32 weights, converted into the
    `prepared` folder if the model's own files have another dtype. Raises DiskFull.
    """
    key = (config.model_dump_json(), device)
    if key not in _loaded:
        fetch(config)  # this node may be another than the one that prepared the data
        import torch  # slow to import
        from transformers import AutoModelForCausalLM  # slow to import

        folder = local_folder(config)
        place = {"revision": config.revision, "local_files_only": True} if folder is None else {}
        tokenizer = load_tokenizer(config)
        weights = converted(config, prepared) if prepared and device == "cpu" else None
        model = AutoModelForCausalLM.from_pretrained(
            weights or folder or config.id,
            dtype=getattr(torch, config.dtype),
            **({} if weights else place),
        ).to(device)
        model.config._name_or_path = str(folder or config.id)
        dropout.switch_off(model)
        _loaded.clear()  # one base at a time: a second would double the memory
        _loaded[key] = WarmBase(model, tokenizer, None)
        # What is loaded by now stays: the collection at each trial's end need not walk it again,
        # which would take it a quarter of a second in place of a millisecond.
        gc.collect()
        gc.freeze()
    return _loaded[key]


def forget_base() -> None:
    """The next trial loads the base anew, into the memory of this one if no session holds it."""
    _loaded.clear()
    # TRL's `forward` on the instance is a cycle, and what is frozen is never collected.
    gc.unfreeze()
    gc.collect()


def load_tokenizer(config: ModelConfig, fetched: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, which must have a chat template, or InputError.

    If the model was not `fetched` to this machine, its tokenizer alone is.
    """
    from transformers import AutoTokenizer  # slow to import

    folder = local_folder(config)
    place: dict[str, Any] = {}
    if folder is None:
        place = {"revision": config.revision, "local_files_only": fetched}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder or config.id, **place)
    except Exception as error:  # the libraries raise a dozen kinds; each is about what was named
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} can't be loaded ({one_line(error, 300)})"
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} has no chat template; use an instruct "
            "model, or save one into its tokenizer"
        )
    return tokenizer


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
                if type(module).__name__ in ("Linear", "Conv1D")
            ]
            there = ", ".join(dict.fromkeys(name for name in linear if name != "lm_head"))
            raise InputError(
                f"lora.target_modules: the model has no layer {target!r}; its linear layers are "
                f"{there}, or type `all-linear`"
            )


def peft_config(lora: LoraConfig) -> Any:
    """PEFT's form of the adapter's config."""
    import peft  # slow to import

    return peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )
