"""This loads what is served. Adapters of one base share its weights and its engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve import attention
from serve.model_source import (
    Checkpoint,
    ModelError,
    ModelSource,
    has_tokenizer,
    model_errors,
    read_sources,
)
from serve.slot_engine import SlotEngine


@dataclass(frozen=True)
class ServedModel:
    """A model under the name by which requests ask for it."""

    name: str
    engine: SlotEngine
    tokenizer: Any
    """It has the model's chat template: adapters may have been trained with different ones."""
    adapter: str | None
    """The name of its adapter inside PEFT."""
    created: int = field(default_factory=lambda: int(time.time()))


def engines(models: dict[str, ServedModel]) -> list[SlotEngine]:
    """Returns each engine once; models that share weights share it."""
    return list({id(model.engine): model.engine for model in models.values()}.values())


def load(models: list[str], slots: int, context: int, max_waiting: int) -> dict[str, ServedModel]:
    """Loads models, each given as serve.model_source reads it, and returns them by name.

    The first one comes first. The base of adapters is served too, as `base`. Raises ModelError.
    """
    sources = read_sources(models)
    groups: dict[Checkpoint, list[ModelSource]] = {}
    for source in sources:
        groups.setdefault(source.checkpoint, []).append(source)
    loaded: dict[str, ServedModel] = {}
    for checkpoint, group in groups.items():
        tokenizer = _load_tokenizer(checkpoint)
        adapters = {_peft_name(source): source.adapter for source in group if source.adapter}
        weights = load_weights(checkpoint, adapters)
        engine = SlotEngine(weights, tokenizer, slots, context, max_waiting)
        for source in group:
            adapter, own_tokenizer = None, tokenizer
            if source.adapter:
                adapter = _peft_name(source)
                if has_tokenizer(source.adapter):
                    own_tokenizer = _load_tokenizer(source.adapter)
            loaded[source.name] = ServedModel(source.name, engine, own_tokenizer, adapter)
        if len(adapters) == len(group) and "base" not in loaded:
            loaded["base"] = ServedModel("base", engine, tokenizer, None)
    first = sources[0].name
    return {first: loaded.pop(first), **loaded}


def load_weights(checkpoint: Checkpoint, adapters: dict[str, Checkpoint]) -> Any:
    """Returns a model that is ready to compute on this machine's device, with adapters by name.

    Raises ModelError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with model_errors(f"{checkpoint.place!r} can't be loaded"):
        # A model that takes no attention but its own is refused here.
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.place,
            revision=checkpoint.revision,
            # A CPU computes in what the model was judged in, a GPU in half the time and memory.
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            attn_implementation=attention.NAME,
            use_safetensors=True,  # no pickle
        )
    window = getattr(model.config, "sliding_window", None)
    default_types = ["sliding_attention"] if window else ["full_attention"]
    layer_types = set(getattr(model.config, "layer_types", None) or default_types)
    if layer_types != {"full_attention"}:
        raise ModelError(
            f"{checkpoint.place!r} has layers of the kinds {', '.join(sorted(layer_types))}; only "
            "full attention is served here"
        )
    for name, adapter in adapters.items():
        options = {"adapter_name": name, "revision": adapter.revision, "use_safetensors": True}
        with model_errors(f"{adapter.place!r} can't be loaded"):
            if isinstance(model, PeftModel):
                model.load_adapter(adapter.place, **options)
            else:
                model = PeftModel.from_pretrained(model, adapter.place, **options)
    return model.to(device).eval()


def _peft_name(source: ModelSource) -> str:
    """Returns the name of an adapter inside PEFT, which takes no dots."""
    return source.name.replace(".", "_dot_")


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    with model_errors(f"{checkpoint.place!r} has no tokenizer to load"):
        return AutoTokenizer.from_pretrained(checkpoint.place, revision=checkpoint.revision)
