"""Finds the models to serve, folders, Hub ids and adapters, and computes what memory they need.

Nothing heavy is imported or loaded before all models are found, so that mistakes are reported at
once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import ModelError

_SAMPLE = str(Path(__file__).parent.parent / "dpo_train" / "sample" / "model")
_OTHER_SERVER = "vLLM may serve it: deploy/serve_llm.yaml says how"
MERGE_ADAPTER = "merge it into its base first (PEFT's merge_and_unload) and give that folder"
_REASONS = {
    "trust_remote_code": "it needs its own Python code, which this server does not run",
    "does not recognize this architecture": "transformers does not know its `model_type`",
    "Unrecognized configuration class": "it is no model that generates text",
}
"""The meaning of transformers' errors, by words in them."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def one_line(error: object) -> str:
    """Returns an error's message as one line of at most 200 characters, without control characters
    that a terminal would interpret."""
    line = " ".join(str(error).split())[:200]
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


@contextlib.contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Turns any error into a ModelError that begins with `what`: libraries raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        for words, reason in _REASONS.items():
            if words in str(error):
                raise ModelError(f"{what}: {reason}; {_OTHER_SERVER}") from None
        raise ModelError(f"{what}: {one_line(error)}") from None


def refusal(location: str, kind: str, reason: str, advice: str = _OTHER_SERVER) -> ModelError:
    """Returns the error for a kind of model that this server does not support."""
    return ModelError(f"{location}: {kind} can't be served here: {reason}; {advice}")


@dataclass(frozen=True)
class Checkpoint:
    """The location of the weights of a whole model or of an adapter."""

    location: str
    """A folder or a Hub id."""
    revision: str | None = None
    """A branch, tag or commit on the Hub."""


@dataclass(frozen=True)
class ModelSource:
    """The parts of a served model, and its name in requests."""

    name: str
    checkpoint: Checkpoint
    """The whole model. It is loaded once for all its adapters."""
    adapter: Checkpoint | None = None
    """The adapter on the model, if there is one."""


def split_models(models: str) -> list[str]:
    """Returns the models in a list that is separated by commas."""
    return [model.strip() for model in models.split(",")]


def parse_model(model: str) -> tuple[str, str]:
    """Returns (name, location) of `MODEL` or `NAME=MODEL`; the name is empty if none is given.

    The path of a folder may contain a `=`.
    """
    if "=" not in model or Path(model).expanduser().is_dir():
        return "", model
    name, _, location = model.partition("=")
    return name, location


def read_sources(models: list[str]) -> list[ModelSource]:
    """Returns the sources of models, each given as `MODEL` or `NAME=MODEL`.

    A model is a folder or a Hub id, the latter optionally with `@revision`. Raises ModelError.
    """
    sources = [_read_source(model) for model in models]
    if len({source.name for source in sources}) < len(sources):
        raise ModelError(f"two models of one name in {', '.join(models)}; type NAME=MODEL")
    return sources


def describe_memory(models: list[str], slots: int, context: int) -> list[str]:
    """Returns a line on the memory of each checkpoint and its cache, before anything is loaded.

    A second line follows if the RoPE of the model limits the context. Raises ModelError for
    mistakes that are visible before loading.
    """
    checkpoints = dict.fromkeys(source.checkpoint for source in read_sources(models))
    return [line for checkpoint in checkpoints for line in _describe(checkpoint, slots, context)]


def served_context(config: Any, context: int) -> int:
    """Returns the most tokens of a prompt with its answer: `context`, or the model's limit.

    A model has a largest position. With longrope and dynamic RoPE, a row that is longer than the
    rows in training changes the answers to all other rows of the batch, so we limit the length.
    """
    text = config.get_text_config()
    most = [context, getattr(text, "max_position_embeddings", None), *_fixed_rope_lengths(text)]
    return min(length for length in most if length)


def has_tokenizer(adapter: Checkpoint) -> bool:
    """Returns whether an adapter has its own tokenizer, else it uses that of its base."""
    return _read_json(adapter, "tokenizer_config.json") is not None


def _read_source(model: str) -> ModelSource:
    # The sample model, a folder, or a Hub id.
    name, location = parse_model(model)
    folder = Path(location).expanduser()
    if location == "sample":
        return ModelSource(name or "sample", Checkpoint(_SAMPLE))
    if "://" in location:
        raise ModelError(
            f"{location}: this is a URL; copy the folder to this machine first, like "
            f"`aws s3 cp --recursive {location} winner`, and give its path"
        )
    if folder.is_dir():
        name, found = name or folder.resolve().name, Checkpoint(str(folder))
    elif location.startswith((".", "/", "~")):
        raise ModelError(f"{location}: no such folder; give an exported model's folder or a Hub id")
    else:
        location, _, revision = location.partition("@")
        name, found = name or location, Checkpoint(location, revision or None)
    # A whole model.
    adapter = _read_json(found, "adapter_config.json")
    if adapter is None:
        if folder.is_dir() and not (folder / "config.json").exists():
            raise ModelError(
                f"{folder}: has neither config.json nor adapter_config.json; give a folder like "
                "runs/quickstart/winner"
            )
        return ModelSource(name, found)
    # An adapter, and its base.
    unsupported = {
        "use_dora": adapter.get("use_dora"),
        "modules_to_save": adapter.get("modules_to_save"),
        "trainable_token_indices": adapter.get("trainable_token_indices"),
        "bias": adapter.get("bias", "none") != "none",
        "lm_head": "lm_head" in (adapter.get("target_modules") or ()),
    }
    kind = ", ".join([str(adapter.get("peft_type")), *filter(unsupported.get, unsupported)])
    if kind != "LORA":
        raise ModelError(
            f"{found.location}: this adapter is of the kind {kind}, but only plain LoRA can share "
            f"its base here: {MERGE_ADAPTER}"
        )
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{found.location}: its adapter_config.json has no base_model_name_or_path; write the "
            "base's folder or Hub id there"
        )
    base = _SAMPLE if base == "sample" else base
    return ModelSource(name, Checkpoint(base, adapter.get("revision")), found)


def _read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """Returns a JSON file of a checkpoint, or None if it does not exist. Raises ModelError."""
    location = checkpoint.location
    path = Path(location) / name
    if not Path(location).is_dir():
        # The import takes half a second, and a folder does not need it.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with model_errors(f"{location!r} can't be read from the Hub"):
            try:
                path = Path(hf_hub_download(location, name, revision=checkpoint.revision))
            except EntryNotFoundError:  # also if the client is offline and its cache lacks the file
                return None
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"{location}: its {name} is no JSON object; copy or download it again")
    return content


def _describe(checkpoint: Checkpoint, slots: int, context: int) -> list[str]:
    # The import takes seconds, so mistakes in the models' names are reported before it.
    from transformers import AutoConfig

    location = checkpoint.location
    with model_errors(f"{location!r} has no configuration to load"):
        config: Any = AutoConfig.from_pretrained(
            location, revision=checkpoint.revision, trust_remote_code=False
        )
    name, tokens = Path(location).name, served_context(config, context)
    stored_bytes = _BYTES.get(str(config.dtype or "").removeprefix("torch."), 4)
    weights = _weights_bytes(checkpoint) * _BYTES["float32"] / stored_bytes
    cache = _cache_bytes(config.get_text_config(), (slots + 1) * tokens)
    lines = [
        f"{name}: weights {weights / 1e9:.3f} GB, cache {cache / 1e9:.3f} GB for "
        f"{slots} answers at once of {tokens} tokens with their prompts (half of both on a GPU)"
    ]
    if tokens in _fixed_rope_lengths(config.get_text_config()) and tokens < context:
        lines.append(
            f"{name}: the context is {tokens} tokens, because a longer request would change the "
            "answers to other requests (its RoPE depends on the longest one)"
        )
    return lines


def _fixed_rope_lengths(config: Any) -> list[int]:
    """Returns the lengths up to which a model's RoPE is the same for every batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    # A model with several kinds of layers has parameters for each kind.
    layers = [layer for layer in rope.values() if isinstance(layer, dict)] or [rope]
    kinds = [layer.get("rope_type") for layer in layers]
    lengths = [config.max_position_embeddings] if "dynamic" in kinds else []
    lengths += [
        layer.get("original_max_position_embeddings") or config.max_position_embeddings
        for layer, kind in zip(layers, kinds, strict=True)
        if kind == "longrope"
    ]
    return lengths


def _cache_bytes(config: Any, tokens: int) -> int:
    """Returns the bytes of the keys and values of so many tokens.

    A missing setting counts as 0: models with other names of settings are refused once loaded.
    """

    def number(name: str) -> int:
        value = getattr(config, name, None)
        return value if isinstance(value, int) else 0

    heads = number("num_attention_heads")
    key_heads = number("num_key_value_heads") or heads
    head_size = number("head_dim") or number("hidden_size") // max(heads, 1)
    values = 2 * number("num_hidden_layers") * key_heads * head_size * tokens
    return values * _BYTES["float32"]


def _weights_bytes(checkpoint: Checkpoint) -> int:
    location, revision = checkpoint.location, checkpoint.revision
    folder = Path(location)
    if not folder.is_dir():
        # The import takes half a second, and a folder does not need it.
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import OfflineModeIsEnabled

        with model_errors(f"{location!r} can't be read from the Hub"):
            try:
                tree = HfApi().list_repo_tree(location, revision=revision)
                weights = [file for file in tree if file.path.endswith(".safetensors")]
                return sum(getattr(file, "size", 0) for file in weights)
            except OfflineModeIsEnabled:
                folder = Path(snapshot_download(location, revision=revision, local_files_only=True))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
