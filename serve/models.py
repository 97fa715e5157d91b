"""This loads what is served. Adapters of one base share its weights and its engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.generation_defaults import GenerationDefaults, read_defaults
from serve.model_source import (
    Checkpoint,
    ModelSource,
    has_tokenizer,
    model_errors,
    read_sources,
)
from serve.prompts import PromptEncoder
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
    prompts: PromptEncoder
    """Makes token ids with that tokenizer."""
    defaults: GenerationDefaults
    """What holds where a request says nothing."""
    created: int = field(default_factory=lambda: int(time.time()))


def engines(models: dict[str, ServedModel]) -> list[SlotEngine]:
    """Returns each engine once; models that share weights share it."""
    return list({id(model.engine): model.engine for model in models.values()}.values())


def load(
    models: list[str],
    slots: int,
    context: int,
    max_waiting: int,
    reads_generation_config: bool = True,
) -> dict[str, ServedModel]:
    """Loads models, each given as serve.model_source reads it, and returns them by name.

    The first one comes first. The base of adapters is served too, as `base`. Adapters answer with
    the defaults of their base. Raises ModelError.
    """
    sources = read_sources(models)
    groups: dict[Checkpoint, list[ModelSource]] = {}
    for source in sources:
        groups.setdefault(source.checkpoint, []).append(source)
    loaded: dict[str, ServedModel] = {}
    for checkpoint, group in groups.items():
        tokenizer = _load_tokenizer(checkpoint)
        # PEFT takes no dots in a name, so an adapter is known by its number there.
        peft_names = {
            source.name: f"adapter_{number}"
            for number, source in enumerate(group)
            if source.adapter
        }
        adapters = {peft_names[source.name]: source.adapter for source in group if source.adapter}
        weights = load_weights(checkpoint, adapters)
        engine = SlotEngine(weights, tokenizer, slots, context, max_waiting)
        defaults = GenerationDefaults()
        if reads_generation_config:
            defaults = read_defaults(weights.generation_config)
        for source in group:
            own_tokenizer = tokenizer
            if source.adapter and has_tokenizer(source.adapter):
                own_tokenizer = _load_tokenizer(source.adapter)
            loaded[source.name] = _served(
                source.name, engine, own_tokenizer, peft_names.get(source.name), defaults
            )
        if len(adapters) == len(group) and "base" not in loaded:
            loaded["base"] = _served("base", engine, tokenizer, None, defaults)
    first = sources[0].name
    return {first: loaded.pop(first), **loaded}


def _served(
    name: str,
    engine: SlotEngine,
    tokenizer: Any,
    adapter: str | None,
    defaults: GenerationDefaults,
) -> ServedModel:
    prompts = PromptEncoder(tokenizer, engine.context)
    return ServedModel(name, engine, tokenizer, adapter, prompts, defaults)


def load_weights(checkpoint: Checkpoint, adapters: dict[str, Checkpoint]) -> Any:
    """Returns a model that is ready to compute on this machine's device, with adapters by name.

    Raises ModelError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with model_errors(f"{checkpoint.place!r} can't be loaded"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.place,
            revision=checkpoint.revision,
            # A CPU computes in what the model was judged in, a GPU in half the time and memory.
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            use_safetensors=True,  # no pickle
            # Not a mapping of the file: who writes to it would change the answers, or end us.
            disable_mmap=True,
            trust_remote_code=False,  # the default would ask on standard input
        )
    for name, adapter in adapters.items():
        options = {"adapter_name": name, "revision": adapter.revision, "use_safetensors": True}
        with model_errors(f"{adapter.place!r} can't be loaded"):
            if isinstance(model, PeftModel):
                model.load_adapter(adapter.place, **options)
            else:
                model = PeftModel.from_pretrained(model, adapter.place, **options)
    return model.to(device).eval()


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    with model_errors(f"{checkpoint.place!r} has no tokenizer to load"):
        return AutoTokenizer.from_pretrained(
            checkpoint.place, revision=checkpoint.revision, trust_remote_code=False
        )
