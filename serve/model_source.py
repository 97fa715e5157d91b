"""This reads what shall be served: folders, Hub ids and adapters, and what memory they need.

Nothing heavy is imported or loaded before all is read, so that a mistake is reported at once.
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
    "trust_remote_code": "it needs Python code of its own, and this server runs none",
    "does not recognize this architecture": "transformers does not know its `model_type`",
    "Unrecognized configuration class": "it is no model that continues a text",
}
"""What errors of transformers mean, by words in them."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def one_line(error: object) -> str:
    """Returns what an error says, on one line of at most 200 characters that a terminal shows and
    does not obey."""
    line = " ".join(str(error).split())[:200]
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


@contextlib.contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Makes any error a ModelError that begins with `what`: the libraries raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        for words, reason in _REASONS.items():
            if words in str(error):
                raise ModelError(f"{what}: {reason}; {_OTHER_SERVER}") from None
        raise ModelError(f"{what}: {one_line(error)}") from None


def refusal(place: str, kind: str, reason: str, advice: str = _OTHER_SERVER) -> ModelError:
    """Returns the error for a model of a kind that this server can't answer with."""
    return ModelError(f"{place}: {kind} can't be served here: {reason}; {advice}")


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a whole model or of an adapter are."""

    place: str
    """A folder or a Hub id."""
    revision: str | None = None
    """A branch, tag or commit on the Hub."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and the name by which requests ask for it."""

    name: str
    checkpoint: Checkpoint
    """The whole model, which is loaded once however many adapters use it."""
    adapter: Checkpoint | None = None
    """What is added to it. None stands for the whole model alone."""


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

    A second line follows where the RoPE of the model makes the context shorter. Raises ModelError
    for what can be seen to be wrong by then.
    """
    checkpoints = dict.fromkeys(source.checkpoint for source in read_sources(models))
    return [line for checkpoint in checkpoints for line in _describe(checkpoint, slots, context)]


def served_context(config: Any, context: int) -> int:
    """Returns how many tokens a prompt and its answer may have together: `context` or fewer.

    A model has a longest position. With longrope and dynamic RoPE the longest row of a batch
    changes the answers to all others once it is longer than the rows that the model was trained
    with, so no row may be.
    """
    text = config.get_text_config()
    most = [context, getattr(text, "max_position_embeddings", None), *_fixed_rope_lengths(text)]
    return min(length for length in most if length)


def has_tokenizer(adapter: Checkpoint) -> bool:
    """The folder of an adapter may leave the tokenizer to its base."""
    return _read_json(adapter, "tokenizer_config.json") is not None


def _read_source(model: str) -> ModelSource:
    name, place = parse_model(model)
    folder = Path(place).expanduser()
    if place == "sample":
        return ModelSource(name or "sample", Checkpoint(_SAMPLE))
    if "://" in place:
        raise ModelError(
            f"{place}: a URL; bring the folder here first, like `aws s3 cp --recursive {place} "
            "winner`, and give its path"
        )
    if folder.is_dir():
        name, found = name or folder.resolve().name, Checkpoint(str(folder))
    elif place.startswith((".", "/", "~")):
        raise ModelError(f"{place}: no such folder; give an exported model's folder or a Hub id")
    else:
        place, _, revision = place.partition("@")
        name, found = name or place, Checkpoint(place, revision or None)
    adapter = _read_json(found, "adapter_config.json")
    if adapter is None:
        if folder.is_dir() and not (folder / "config.json").exists():
            raise ModelError(
                f"{folder}: neither config.json nor adapter_config.json; give a folder like "
                "runs/quickstart/winner"
            )
        return ModelSource(name, found)
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
            f"{found.place}: an adapter of the kind {kind}; only plain LoRA can share its base "
            f"here: {MERGE_ADAPTER}"
        )
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{found.place}: its adapter_config.json names no base_model_name_or_path; write the "
            "base's folder or Hub id there"
        )
    base = _SAMPLE if base == "sample" else base
    return ModelSource(name, Checkpoint(base, adapter.get("revision")), found)


def _read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """Returns a JSON file of a checkpoint, or None if it isn't there. Raises ModelError."""
    place = checkpoint.place
    path = Path(place) / name
    if not Path(place).is_dir():
        # Half a second to import, which a folder does not need.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with model_errors(f"{place!r} can't be read from the Hub"):
            try:
                path = Path(hf_hub_download(place, name, revision=checkpoint.revision))
            except EntryNotFoundError:  # also if only the cache may be asked and does not have it
                return None
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"{place}: its {name} holds no JSON object; bring it here once more")
    return content


def _describe(checkpoint: Checkpoint, slots: int, context: int) -> list[str]:
    # Seconds to import: what is wrong with the models' names is reported before.
    from transformers import AutoConfig

    place = checkpoint.place
    with model_errors(f"{place!r} has no configuration to load"):
        config: Any = AutoConfig.from_pretrained(
            place, revision=checkpoint.revision, trust_remote_code=False
        )
    name, tokens = Path(place).name, served_context(config, context)
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
            "answers to others (its RoPE depends on the longest)"
        )
    return lines


def _fixed_rope_lengths(config: Any) -> list[int]:
    """Returns the lengths up to which the RoPE of a model is the same for every batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    # Models with several kinds of layers have parameters for each kind.
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
    """Returns the size of the keys and values of so many tokens.

    What its names do not tell counts as 0: models with other names are refused once loaded.
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
    place, revision = checkpoint.place, checkpoint.revision
    folder = Path(place)
    if not folder.is_dir():
        # Half a second to import, which a folder does not need.
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import OfflineModeIsEnabled

        with model_errors(f"{place!r} can't be read from the Hub"):
            try:
                tree = HfApi().list_repo_tree(place, revision=revision)
                weights = [file for file in tree if file.path.endswith(".safetensors")]
                return sum(getattr(file, "size", 0) for file in weights)
            except OfflineModeIsEnabled:
                folder = Path(snapshot_download(place, revision=revision, local_files_only=True))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
