"""What is asked to be served: folders, Hub ids and adapters by name, and what they need in memory.

Nothing heavy is imported or loaded here, so that a mistake is told at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SAMPLE = Path(__file__).parent.parent / "dpo_train" / "sample" / "model"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ModelError(ValueError):
    """What was asked to be served can't be. One line: given, and what to type."""


def one_line(error: object) -> str:
    """Returns what an error says, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True)
class Copy:
    """Weights in memory: a folder or a Hub id, and of that a branch, tag or commit."""

    place: str
    revision: str | None


@dataclass(frozen=True)
class Source:
    """A model under the name by which requests ask for it."""

    name: str
    place: str
    revision: str | None
    base: Copy | None
    """Of an adapter; None for a model that is whole."""

    @property
    def copy(self) -> Copy:
        """The weights that it needs, which adapters of one base share."""
        return self.base or Copy(self.place, self.revision)

    @property
    def has_tokenizer(self) -> bool:
        """An adapter's folder may leave that to its base."""
        return _content(self.place, "tokenizer_config.json", self.revision) is not None


def split(models: str) -> list[str]:
    """Several, apart by commas."""
    return [model.strip() for model in models.split(",")]


def parse(model: str) -> tuple[str, str]:
    """(name, place) of `PLACE` or `NAME=PLACE`; the name is empty if none is given. A folder's own
    path may hold a `=`."""
    if "=" not in model or Path(model).expanduser().is_dir():
        return "", model
    name, _, place = model.partition("=")
    return name, place


def read(models: list[str]) -> list[Source]:
    """Each is `PLACE` or `NAME=PLACE`, a place a folder or a Hub id, perhaps with `@revision`.

    Raises ModelError.
    """
    sources = [_read(model) for model in models]
    if len({source.name for source in sources}) < len(sources):
        raise ModelError(f"two models of one name in {', '.join(models)}; type NAME=PLACE")
    return sources


def needs(models: list[str], slots: int, context: int) -> list[str]:
    """A line for each copy of weights in memory and its cache, before anything is loaded.

    Raises ModelError for what can be seen to be wrong by then.
    """
    copies = dict.fromkeys(source.copy for source in read(models))
    return [_needs(copy, slots, context) for copy in copies]


def dtype_on(device: str) -> str:
    """A CPU computes float32 as it was judged in, a GPU bfloat16 in half the time and memory."""
    return "bfloat16" if device == "cuda" else "float32"


def _read(model: str) -> Source:
    name, place = parse(model)
    folder = Path(place).expanduser()
    if place == "sample":
        return Source(name or "sample", str(_SAMPLE), None, None)
    is_folder = folder.is_dir()
    if "://" in place:
        raise ModelError(
            f"{place}: a URL; bring the folder here first, like `aws s3 cp --recursive {place} "
            "winner`, and give its path"
        )
    if not is_folder and place.startswith((".", "/", "~")):
        raise ModelError(f"{place}: no such folder; give an exported model's folder or a Hub id")
    revision = None
    if is_folder:
        name, place = name or folder.resolve().name, str(folder)
    else:
        place, _, revision = place.partition("@")
        name, revision = name or place, revision or None
    adapter = _content(place, "adapter_config.json", revision)
    if adapter is None:
        if is_folder and not (folder / "config.json").exists():
            raise ModelError(
                f"{place}: neither config.json nor adapter_config.json; give a folder like "
                "runs/quickstart/winner"
            )
        return Source(name, place, revision, None)
    unlike = [
        key
        for key in ("use_dora", "modules_to_save", "trainable_token_indices")
        if adapter.get(key)
    ]
    if adapter.get("bias", "none") != "none":
        unlike.append("bias")
    if "lm_head" in (adapter.get("target_modules") or ()):
        unlike.append("lm_head")
    if adapter.get("peft_type") != "LORA" or unlike:
        kind = ", ".join([str(adapter.get("peft_type")), *unlike])
        raise ModelError(
            f"{place}: an adapter of the kind {kind}; only plain LoRA can share its base here: "
            "merge it into its base first (PEFT's merge_and_unload) and give that folder"
        )
    base = adapter["base_model_name_or_path"]
    base = str(_SAMPLE) if base == "sample" else base
    return Source(name, place, revision, Copy(base, adapter.get("revision")))


def _content(place: str, name: str, revision: str | None) -> dict[str, Any] | None:
    """A JSON file of a folder or a Hub id; None if it isn't there. Raises ModelError."""
    path = Path(place) / name
    if not Path(place).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(place, name, revision=revision))
        except EntryNotFoundError:  # also if only the cache may be asked and does not have it
            return None
        except Exception as error:  # the library raises a dozen kinds; each is about the name
            raise _unread(place, error) from None
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return content


def _unread(place: str, error: Exception) -> ModelError:
    reason = one_line(error)
    return ModelError(f"{place!r} can't be read from the Hub: {reason}")


def _needs(copy: Copy, slots: int, context: int) -> str:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(copy.place, revision=copy.revision)
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        reason = one_line(error)
        raise ModelError(f"{copy.place!r} has no configuration to load: {reason}") from None
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_each = _BYTES[dtype_on("cpu")]
    most = min(context, config.max_position_embeddings)
    cache = 2 * config.num_hidden_layers * heads * size * bytes_each * (slots + 1) * most
    stored = _BYTES.get(str(config.dtype or "").removeprefix("torch."), 4)
    weights = _weights_bytes(copy) * bytes_each / stored
    return (
        f"{Path(copy.place).name}: weights {weights / 1e9:.3f} GB, cache {cache / 1e9:.3f} GB for "
        f"{slots} answers at once of {most} tokens with their prompts (half of both on a GPU)"
    )


def _weights_bytes(copy: Copy) -> int:
    if Path(copy.place).is_dir():
        return sum(path.stat().st_size for path in Path(copy.place).glob("*.safetensors"))
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        tree = HfApi().list_repo_tree(copy.place, revision=copy.revision)
        return sum(getattr(file, "size", 0) for file in tree if file.path.endswith(".safetensors"))
    except OfflineModeIsEnabled:
        there = snapshot_download(copy.place, revision=copy.revision, local_files_only=True)
        return sum(path.stat().st_size for path in Path(there).glob("*.safetensors"))
    except Exception as error:  # the library raises a dozen kinds; each is about the name
        raise _unread(copy.place, error) from None
