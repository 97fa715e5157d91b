"""Loads what is served: folders, Hub ids, adapters. Adapters of one base share its weights."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.engine import Engine
from serve.places import parse

_SAMPLE = Path(__file__).parent.parent / "dpo_train" / "sample" / "model"
_BYTES = {"float32": 4, "bfloat16": 2}


class ModelError(ValueError):
    """What was asked to be served can't be. One line: given, and what to type."""


@dataclass(frozen=True)
class Served:
    """A model under the name by which requests ask for it."""

    name: str
    engine: Engine
    adapter: str | None
    created: int


@dataclass(frozen=True)
class _Source:
    name: str
    place: str
    revision: str | None
    """Of a Hub id: branch, tag or commit."""
    base: str | None
    """Of an adapter; None for a model that is whole."""

    @property
    def copy(self) -> tuple[str, str | None]:
        """The weights in memory that it needs."""
        return (self.base, None) if self.base else (self.place, self.revision)

    @property
    def adapter(self) -> str:
        """Its name inside PEFT, which takes no dots."""
        return self.name.replace(".", "_dot_")


def load(models: list[str], slots: int, context: int, most_waiting: int) -> dict[str, Served]:
    """The models by name, the first one first. Each is `PLACE` or `NAME=PLACE`, a place a folder
    or a Hub id, perhaps with `@revision`.

    The base of an adapter is served too, as `base`. Raises ModelError.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = _dtype(device)
    sources = _read_all(models)
    groups: dict[tuple[str, str | None], list[_Source]] = {}
    for source in sources:
        groups.setdefault(source.copy, []).append(source)
    found: dict[str, Served] = {}
    for group in groups.values():
        model, tokenizer = _load_base(group, dtype, device)
        most = min(context, model.config.max_position_embeddings)
        engine = Engine(model, tokenizer, slots, most, most_waiting)
        for source in group:
            adapter = source.adapter if source.base else None
            found[source.name] = Served(source.name, engine, adapter, int(time.time()))
        if all(source.base for source in group) and "base" not in found:
            found["base"] = Served("base", engine, None, int(time.time()))
    first = sources[0].name
    return {first: found.pop(first), **found}


def needs(models: list[str], slots: int, context: int) -> list[str]:
    """A line for each copy of weights in memory and its cache, before anything is loaded.

    Raises ModelError for what can be seen to be wrong by then.
    """
    sources = _read_all(models)
    copies = dict.fromkeys(source.copy for source in sources)
    return [_needs(place, revision, slots, context) for place, revision in copies]


def _read_all(models: list[str]) -> list[_Source]:
    sources = [_read(model) for model in models]
    if len({source.name for source in sources}) < len(sources):
        raise ModelError(f"two models of one name in {', '.join(models)}; type NAME=PLACE")
    return sources


def _read(model: str) -> _Source:
    name, place = parse(model)
    folder = Path(place).expanduser()
    if place == "sample":
        return _Source(name, str(_SAMPLE), None, None)
    is_folder = folder.is_dir()
    if not is_folder and place.startswith((".", "/", "~")):
        raise ModelError(f"{place}: no such folder; give an exported model's folder or a Hub id")
    revision = None
    if not is_folder:
        place, _, revision = place.partition("@")
    config = _adapter_config(folder if is_folder else None, place, revision)
    if is_folder and config is None and not (folder / "config.json").exists():
        raise ModelError(
            f"{place}: neither config.json nor adapter_config.json; give a folder like "
            "runs/quickstart/winner"
        )
    if not name:
        name = folder.resolve().name if is_folder else place
    base = config["base_model_name_or_path"] if config else None
    base = str(_SAMPLE) if base == "sample" else base
    return _Source(name, str(folder) if is_folder else place, revision or None, base)


def _adapter_config(folder: Path | None, place: str, revision: str | None) -> dict[str, Any] | None:
    if folder is None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(place, "adapter_config.json", revision=revision or None))
        except EntryNotFoundError:
            return None
        except Exception as error:  # the library raises a dozen kinds; each is about the name
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{place!r} can't be read from the Hub: {reason}") from None
    else:
        path = folder / "adapter_config.json"
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return content


def _load_base(group: list[_Source], dtype: str, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = group[0]
    place = first.base or first.place
    at = {} if first.base else {"revision": first.revision}
    try:
        # An adapter's folder has the tokenizer that it was trained with.
        tokenizer: Any = AutoTokenizer.from_pretrained(first.place, revision=first.revision)
        # The engine's mask is one for this attention; a model that lacks it is refused here.
        model: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=getattr(torch, dtype), attn_implementation="sdpa", **at
        )
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{place!r} can't be loaded: {reason}") from None
    window = getattr(model.config, "sliding_window", None)
    without_types = ["sliding_attention"] if window else ["full_attention"]
    kinds = set(getattr(model.config, "layer_types", None) or without_types)
    if kinds != {"full_attention"}:
        raise ModelError(
            f"{place!r} has layers of the kinds {', '.join(sorted(kinds))}; only full attention "
            "is served here"
        )
    adapters = [source for source in group if source.base]
    if adapters:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, first.place, adapter_name=first.adapter, revision=first.revision
        )
        for source in adapters[1:]:
            model.load_adapter(source.place, source.adapter, revision=source.revision)
    return model.to(device).eval(), tokenizer


def _dtype(device: str) -> str:
    """A CPU computes bfloat16 slower than float32, and a GPU the other way round."""
    return "bfloat16" if device == "cuda" else "float32"


def _needs(place: str, revision: str | None, slots: int, context: int) -> str:
    config = json.loads(_file(place, "config.json", revision).read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    bytes_each = _BYTES[_dtype("cpu")]
    most = min(context, config["max_position_embeddings"])
    cache = 2 * config["num_hidden_layers"] * heads * size * bytes_each * (slots + 1) * most
    stored = _BYTES.get(config.get("dtype") or config.get("torch_dtype") or "", 4)
    weights = _weights_bytes(place, revision) * bytes_each / stored
    return (
        f"{Path(place).name}: weights {weights / 1e9:.3f} GB, cache {cache / 1e9:.3f} GB for "
        f"{slots} answers at once of {most} tokens with their prompts (half of both on a GPU)"
    )


def _file(place: str, name: str, revision: str | None) -> Path:
    if Path(place).is_dir():
        return Path(place) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place, name, revision=revision))


def _weights_bytes(place: str, revision: str | None) -> int:
    if Path(place).is_dir():
        return sum(path.stat().st_size for path in Path(place).glob("*.safetensors"))
    from huggingface_hub import HfApi

    tree = HfApi().list_repo_tree(place, revision=revision)
    return sum(getattr(file, "size", 0) for file in tree if file.path.endswith(".safetensors"))
