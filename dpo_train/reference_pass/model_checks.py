"""Whether a base model can train on these rows: what its files say against it, found before the
first trial. Knows no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpo_train import model_settings, model_source
from dpo_train.config import ModelConfig
from dpo_train.errors import InputError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelChecks:
    """The configuration of a base, held against its tokenizer and against rows."""

    def __init__(self, base: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises InputError for a base that can't be loaded or trained here, whatever the rows."""
        self._base = base
        self._tokenizer = tokenizer
        self._config = model_source.architecture(base)
        self._text_config = self._config.get_text_config()
        self._embedded: int = self._text_config.vocab_size
        self._refuse_quantised()
        # Added tokens may lie beyond it where no text has them, as Gemma 3's for images.
        if tokenizer.vocab_size > self._embedded:
            raise self._too_many_tokens(f"has {tokenizer.vocab_size:,} tokens")

    def refuse_rows(self, longest: int, largest_id: int) -> None:
        """Raises InputError for rows that the model can't train on, or not as each alone.

        `longest`: tokens of the longest row; `largest_id`: the largest token id in any row.
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
        """What a person should know of the model, a line each."""
        from transformers import GenerationConfig  # slow to import

        folder = model_source.local_folder(self._base)
        hub_options = {"revision": self._base.revision} if folder is None else {}
        try:
            generation = GenerationConfig.from_pretrained(folder or self._base.id, **hub_options)
        except OSError:  # there is none
            return []
        unread = model_settings.mend_generation_config(generation)
        if not unread:
            return []
        return [
            f"the model's generation_config.json sets {', '.join(unread)}, which have no effect; "
            "exported models leave them out"
        ]

    def _refuse_quantised(self) -> None:
        """transformers' own quantisers say what they lack."""
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
        except Exception as error:  # a dozen kinds, each about a library or a device
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
    """The kind of a RoPE that changes with the longest row of a batch, and the most tokens of a row
    up to which it doesn't; None for any other.

    `config`: transformers' configuration of a model. longrope: Ding et al., 2024, arXiv 2402.13753;
    dynamic: NTK scaling by the row's length.
    """
    text_config = config.get_text_config()
    found = getattr(text_config, "rope_parameters", None) or getattr(
        text_config, "rope_scaling", None
    )
    if not isinstance(found, dict):
        return None
    # One for all layers, or one for each kind of layer.
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
    """Whether a model has an embedding for each position, which ends: seen in a model without
    memory, because no configuration says it."""
    import torch  # slow to import
    from transformers import AutoModelForCausalLM  # slow to import

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return any(
        isinstance(module, torch.nn.Embedding) and ("pos" in name or "wpe" in name)
        for name, module in empty.named_modules()
    )
