"""Loads what is served. Adapters of one base share its weights and its engine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from serve.engine import Engine
from serve.model_source import Copy, ModelError, Source, one_line, read
from serve.slot_engine import SlotEngine
from serve.weights import load_weights


@dataclass(frozen=True)
class Served:
    """A model under the name by which requests ask for it."""

    name: str
    engine: Engine
    tokenizer: Any
    """Its own, for its chat template: adapters may have been trained with different ones."""
    adapter: str | None
    created: int


def engines(models: dict[str, Served]) -> list[Engine]:
    """Each engine once; models that share weights share it."""
    return list({id(model.engine): model.engine for model in models.values()}.values())


def load(models: list[str], slots: int, context: int, most_waiting: int) -> dict[str, Served]:
    """The models by name, the first one first; `models` as serve.model_source reads them.

    The base of adapters is served too, as `base`. Raises ModelError.
    """
    sources = read(models)
    groups: dict[Copy, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.copy, []).append(source)
    found: dict[str, Served] = {}
    for copy, group in groups.items():
        adapters = [source for source in group if source.base]
        tokenizer = _tokenizer(copy.place, copy.revision)
        made = SlotEngine(load_weights(copy, adapters), tokenizer, slots, context, most_waiting)
        for source in group:
            own = tokenizer
            if source.base and source.has_tokenizer:
                own = _tokenizer(source.place, source.revision)
            adapter = source.name if source.base else None
            found[source.name] = Served(source.name, made, own, adapter, int(time.time()))
        if len(adapters) == len(group) and "base" not in found:
            found["base"] = Served("base", made, tokenizer, None, int(time.time()))
    first = sources[0].name
    return {first: found.pop(first), **found}


def _tokenizer(place: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, revision=revision)
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        reason = one_line(error)
        raise ModelError(f"{place!r} has no tokenizer to load: {reason}") from None
