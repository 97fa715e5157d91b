"""Checks, before the first trial, that a base model can train on the rows, by the model's files.

This module loads no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpo_train import model_settings, model_source
from dpo_train.config import ModelConfig
from dpo_train.errors import InputError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelChecks:
    """Checks a base's configuration against its tokenizer and against rows."""

    def __init__(self, base: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError for a base that can't be loaded or trained here, whatever the rows."""
        self._base = base
        self._tokenizer = tokenizer
        self._config = model_source.architecture(base)
        self._text_config = self._config.get_text_config()
        self._embedded: int = self._text_config.vocab_size
        self._refuse_quantised()
        # Added tokens that no text has may have no embedding, like Gemma 3's tokens for images.
        if tokenizer.vocab_size > self._embedded:
            raise self._too_many_tokens(f"has {tokenizer.vocab_size:,} tokens")

    def refuse_rows(self, longest: int, largest_id: int) -> None:
        """Raise InputError for rows that the model can't train on.

        It refuses also rows whose results would depend on their batch. `longest` is the number of
        tokens of the longest row, and `largest_id` the largest token id in any row.
        """
        largest_id = max(largest_id, self._tokenizer.pad_token_id or 0)
        if largest_id >= self._embedded:
            token = self._tokenizer.convert_ids_to_tokens(largest_id)
            raise self._too_many_tokens(f"writes {token!r} as {largest_id:,}")
        changing = changing_rope(self._config)
        if changing is not None and longest > changing[1]:
            kind, most = changing
            raise InputError(
                f"model.id: the RoPE of {self._base.id!r} ({kind}) changes with the longest row of "
                f"a batch if that is over {most:,} tokens. A row has {longest:,}, so its results "
                "would depend on the other rows of its batch; type "
                f"`data.max_length_tokens: {most}`"
            )
        positions = getattr(self._text_config, "max_position_embeddings", None)
        if positions and longest > positions and _are_learned(self._config):
            raise InputError(
                f"model.id: {self._base.id!r} has learned {positions:,} positions, and a row has "
                f"{longest:,} tokens; type `data.max_length_tokens: {positions}`"
            )

    def notes(self) -> list[str]:
        """Return notes for the user on the model, a line each."""
        from transformers import GenerationConfig  # slow to import

        folder = model_source.local_folder(self._base)
        hub_options = {"revision": self._base.revision} if folder is None else {}
        try:
            generation = GenerationConfig.from_pretrained(folder or self._base.id, **hub_options)
        except OSError:  # the model has no generation_config.json
            return []
        unread = model_settings.mend_generation_config(generation)
        if not unread:
            return []
        return [
            "settings of the model's generation_config.json have no effect, and exported models "
            f"leave them out: {', '.join(unread)}"
        ]

    def _refuse_quantised(self) -> None:
        """Raise InputError for a quantised model that is to be quantised again or can't be loaded.

        The quantisers of transformers report which library or device is missing.
        """
        quantised = getattr(self._config, "quantization_config", None)
        if quantised is None:
            return
        if self._base.quantization is not None:
            raise InputError(
                f"model.quantization: {self._base.id!r} is already published quantised; take "
                "model.quantization out, or give the model unquantised"
            )
        from transformers.quantizers import AutoHfQuantizer  # slow to import

        try:
            quantiser = AutoHfQuantizer.from_config(quantised, pre_quantized=True)
            quantiser.validate_environment(device_map=None)
        except Exception as error:  # there are many kinds, each about a library or a device
            raise InputError(
                f"model.id: {self._base.id!r} is quantised and can't be loaded here "
                f"({one_line(error, 200)}); install what it needs, or give the model unquantised"
            ) from None

    def _too_many_tokens(self, what: str) -> InputError:
        return InputError(
            f"model.id: the tokenizer of {self._base.id!r} {what}, and the model has embeddings "
            f"for {self._embedded:,}; save the model after `resize_token_embeddings`"
        )


def changing_rope(config: Any) -> tuple[str, int] | None:
    """Return the kind of a RoPE that changes with a batch's longest row; None for any other RoPE.

    Return also the most tokens of a row up to which it does not change. `config` is transformers'
    configuration of a model. The kinds are longrope (Ding et al., 2024, arXiv 2402.13753) and
    dynamic (NTK scaling by the row's length).
    """
    text_config = config.get_text_config()
    found = getattr(text_config, "rope_parameters", None) or getattr(
        text_config, "rope_scaling", None
    )
    if not isinstance(found, dict):
        return None
    # There is one RoPE for all layers, or one for each kind of layer.
    for rope in (found, *(each for each in found.values() if isinstance(each, dict))):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                text_config, "original_max_position_embeddings", None
            )
            return kind, int(original or text_config.max_position_embeddings)
        if kind == "dynamic":
            return kind, int(text_config.max_position_embeddings)
    return None


def _are_learned(config: Any) -> bool:
    """Return whether a model has a learned embedding for each position, so that positions are few.

    No configuration says so, so we look at the modules of a model without weights.
    """
    import torch  # slow to import
    from transformers import AutoModelForCausalLM  # slow to import

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return any(
        isinstance(module, torch.nn.Embedding) and ("pos" in name or "wpe" in name)
        for name, module in empty.named_modules()
    )
