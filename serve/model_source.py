"""This reads what shall be served: folders, Hub ids and adapters, and what memory they need.

Nothing heavy is imported or loaded before all is read, so that a mistake is reported at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SAMPLE = Path(__file__).parent.parent / "dpo_train" / "sample" / "model"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ModelError(ValueError):
    """What was asked for can't be served. The message is one line: what was given, what to type."""


def one_line(error: object) -> str:
    """Returns what an error says, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a whole model, which are loaded once however many adapters use them."""

    place: str
    """A folder or a Hub id."""
    revision: str | None
    """A branch, tag or commit on the Hub."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and the name by which requests ask for it."""

    name: str
    place: str
    revision: str | None
    base: Checkpoint | None
    """The base of an adapter. A whole model has None."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights that it needs, which adapters of one base share."""
        return self.base or Checkpoint(self.place, self.revision)

    @property
    def has_tokenizer(self) -> bool:
        """The folder of an adapter may leave the tokenizer to its base."""
        return _read_json(self.place, "tokenizer_config.json", self.revision) is not None


def split_models(models: str) -> list[str]:
    """Splits at commas what names several models."""
    return [model.strip() for model in models.split(",")]


def parse_model(model: str) -> tuple[str, str]:
    """Returns (name, place) of `PLACE` or `NAME=PLACE`; the name is empty if none is given.

    The path of a folder may hold a `=`.
    """
    if "=" not in model or Path(model).expanduser().is_dir():
        return "", model
    name, _, place = model.partition("=")
    return name, place


def read_sources(models: list[str]) -> list[ModelSource]:
    """Reads models, each `PLACE` or `NAME=PLACE`.

    A place is a folder or a Hub id, the latter perhaps with `@revision`. Raises ModelError.
    """
    sources = [_read_source(model) for model in models]
    if len({source.name for source in sources}) < len(sources):
        raise ModelError(f"two models of one name in {', '.join(models)}; type NAME=PLACE")
    return sources


def describe_memory(models: list[str], slots: int, context: int) -> list[str]:
    """Returns a line for each checkpoint and its cache, before anything is loaded.

    Raises ModelError for what can be seen to be wrong by then.
    """
    checkpoints = dict.fromkeys(source.checkpoint for source in read_sources(models))
    return [_describe_memory(checkpoint, slots, context) for checkpoint in checkpoints]


def dtype_on(device: str) -> str:
    """A CPU computes float32 as it was judged in, a GPU bfloat16 in half the time and memory."""
    return "bfloat16" if device == "cuda" else "float32"


def _read_source(model: str) -> ModelSource:
    name, place = parse_model(model)
    folder = Path(place).expanduser()
    if place == "sample":
        return ModelSource(name or "sample", str(_SAMPLE), None, None)
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
    adapter = _read_json(place, "adapter_config.json", revision)
    if adapter is None:
        if is_folder and not (folder / "config.json").exists():
            raise ModelError(
                f"{place}: neither config.json nor adapter_config.json; give a folder like "
                "runs/quickstart/winner"
            )
        return ModelSource(name, place, revision, None)
    unsupported = [
        key
        for key in ("use_dora", "modules_to_save", "trainable_token_indices")
        if adapter.get(key)
    ]
    if adapter.get("bias", "none") != "none":
        unsupported.append("bias")
    if "lm_head" in (adapter.get("target_modules") or ()):
        unsupported.append("lm_head")
    if adapter.get("peft_type") != "LORA" or unsupported:
        kind = ", ".join([str(adapter.get("peft_type")), *unsupported])
        raise ModelError(
            f"{place}: an adapter of the kind {kind}; only plain LoRA can share its base here: "
            "merge it into its base first (PEFT's merge_and_unload) and give that folder"
        )
    base = adapter["base_model_name_or_path"]
    base = str(_SAMPLE) if base == "sample" else base
    return ModelSource(name, place, revision, Checkpoint(base, adapter.get("revision")))


def _read_json(place: str, name: str, revision: str | None) -> dict[str, Any] | None:
    """Returns a JSON file of a folder or a Hub id, or None if it isn't there. Raises ModelError."""
    path = Path(place) / name
    if not Path(place).is_dir():
        # Half a second to import, which a folder does not need.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(place, name, revision=revision))
        except EntryNotFoundError:  # also if only the cache may be asked and does not have it
            return None
        except Exception as error:  # the library raises a dozen kinds; each is about the name
            raise _hub_error(place, error) from None
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return content


def _hub_error(place: str, error: Exception) -> ModelError:
    reason = one_line(error)
    return ModelError(f"{place!r} can't be read from the Hub: {reason}")


def _describe_memory(checkpoint: Checkpoint, slots: int, context: int) -> str:
    # Seconds to import: what is wrong with the models' names is reported before.
    from transformers import AutoConfig

    place, revision = checkpoint.place, checkpoint.revision
    try:
        config: Any = AutoConfig.from_pretrained(place, revision=revision)
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        reason = one_line(error)
        raise ModelError(f"{place!r} has no configuration to load: {reason}") from None
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    bytes_each = _BYTES[dtype_on("cpu")]
    tokens = min(context, config.max_position_embeddings)
    cache = 2 * config.num_hidden_layers * heads * head_size * bytes_each * (slots + 1) * tokens
    stored_bytes = _BYTES.get(str(config.dtype or "").removeprefix("torch."), 4)
    weights = _weights_bytes(checkpoint) * bytes_each / stored_bytes
    return (
        f"{Path(place).name}: weights {weights / 1e9:.3f} GB, cache {cache / 1e9:.3f} GB for "
        f"{slots} answers at once of {tokens} tokens with their prompts (half of both on a GPU)"
    )


def _weights_bytes(checkpoint: Checkpoint) -> int:
    place, revision = checkpoint.place, checkpoint.revision
    if Path(place).is_dir():
        return sum(path.stat().st_size for path in Path(place).glob("*.safetensors"))
    # Half a second to import, which a folder does not need.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        tree = HfApi().list_repo_tree(place, revision=revision)
        return sum(getattr(file, "size", 0) for file in tree if file.path.endswith(".safetensors"))
    except OfflineModeIsEnabled:
        folder = snapshot_download(place, revision=revision, local_files_only=True)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    except Exception as error:  # the library raises a dozen kinds; each is about the name
        raise _hub_error(place, error) from None
