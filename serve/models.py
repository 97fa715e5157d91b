"""This loads what is served. Adapters of one base share its weights and its engine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from serve.engine import GenerationEngine
from serve.model_source import Checkpoint, ModelError, ModelSource, one_line, read_sources
from serve.slot_engine import SlotEngine
from serve.weights import load_weights


@dataclass(frozen=True)
class ServedModel:
    """A model under the name by which requests ask for it."""

    name: str
    engine: GenerationEngine
    tokenizer: Any
    """It has the model's chat template: adapters may have been trained with different ones."""
    adapter: str | None
    created: int


def engines(models: dict[str, ServedModel]) -> list[GenerationEngine]:
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
        adapters = [source for source in group if source.base]
        tokenizer = _load_tokenizer(checkpoint.place, checkpoint.revision)
        weights = load_weights(checkpoint, adapters)
        engine = SlotEngine(weights, tokenizer, slots, context, max_waiting)
        for source in group:
            own_tokenizer = tokenizer
            if source.base and source.has_tokenizer:
                own_tokenizer = _load_tokenizer(source.place, source.revision)
            adapter = source.name if source.base else None
            loaded[source.name] = ServedModel(
                source.name, engine, own_tokenizer, adapter, int(time.time())
            )
        if len(adapters) == len(group) and "base" not in loaded:
            loaded["base"] = ServedModel("base", engine, tokenizer, None, int(time.time()))
    first = sources[0].name
    return {first: loaded.pop(first), **loaded}


def _load_tokenizer(place: str, revision: str | None) -> Any:
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision)
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        reason = one_line(error)
        raise ModelError(f"{place!r} has no tokenizer to load: {reason}") from None
