"""Loads the models. Adapters of one base share its weights and its engine."""

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
    """A model under its name in requests."""

    name: str
    engine: SlotEngine
    tokenizer: Any
    """The tokenizer with the model's chat template. Adapters may have different templates."""
    adapter: str | None
    """The adapter's name in PEFT; None for a whole model."""
    prompts: PromptEncoder
    """Tokenises prompts with this tokenizer."""
    defaults: GenerationDefaults
    """The settings that a request leaves out."""
    created: int = field(default_factory=lambda: int(time.time()))


def engines(models: dict[str, ServedModel]) -> list[SlotEngine]:
    """Returns each engine once. Models that share weights share an engine."""
    return list({id(model.engine): model.engine for model in models.values()}.values())


def load(
    models: list[str],
    slots: int,
    context: int,
    max_waiting: int,
    reads_generation_config: bool = True,
) -> dict[str, ServedModel]:
    """Loads models, each given as for serve.model_source, and returns them by name.

    The first model comes first. The base of adapters is also served, as `base`. Adapters use the
    defaults of their base. Raises ModelError.
    """
    # The models by their weights.
    sources = read_sources(models)
    groups: dict[Checkpoint, list[ModelSource]] = {}
    for source in sources:
        groups.setdefault(source.checkpoint, []).append(source)
    loaded: dict[str, ServedModel] = {}
    for checkpoint, group in groups.items():
        # The weights and the engine of a group.
        tokenizer = _load_tokenizer(checkpoint)
        # PEFT accepts no dots in a name, so an adapter's name there is a number.
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
        # The models of the group, with their tokenizers.
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
    """Returns a model on this machine's device, with adapters by name.

    Raises ModelError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with model_errors(f"{checkpoint.location!r} can't be loaded"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.location,
            revision=checkpoint.revision,
            # bfloat16 takes half the time and memory on a GPU. A CPU computes in float32, in which
            # the model was evaluated.
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            use_safetensors=True,  # no pickle
            # A write to a mapped file would change the answers or kill the process, so we read it.
            disable_mmap=True,
            trust_remote_code=False,  # the default would prompt on standard input
        )
    for name, adapter in adapters.items():
        options = {"adapter_name": name, "revision": adapter.revision, "use_safetensors": True}
        with model_errors(f"{adapter.location!r} can't be loaded"):
            if isinstance(model, PeftModel):
                model.load_adapter(adapter.location, **options)
            else:
                model = PeftModel.from_pretrained(model, adapter.location, **options)
    return model.to(device).eval()


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    with model_errors(f"{checkpoint.location!r} has no tokenizer to load"):
        return AutoTokenizer.from_pretrained(
            checkpoint.location, revision=checkpoint.revision, trust_remote_code=False
        )
