"""This loads a model of transformers with its adapters."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from serve import attention
from serve.model_source import Checkpoint, ModelError, ModelSource, dtype_on, one_line


def load_weights(checkpoint: Checkpoint, adapters: list[ModelSource]) -> Any:
    """Returns a model that is ready to compute on this machine's device. Raises ModelError."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, dtype_on(device))
    try:
        # A model that takes no attention but its own is refused here.
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.place,
            revision=checkpoint.revision,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,  # no pickle
        )
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        raise _load_error(checkpoint.place, error) from None
    window = getattr(model.config, "sliding_window", None)
    default_types = ["sliding_attention"] if window else ["full_attention"]
    layer_types = set(getattr(model.config, "layer_types", None) or default_types)
    if layer_types != {"full_attention"}:
        raise ModelError(
            f"{checkpoint.place!r} has layers of the kinds {', '.join(sorted(layer_types))}; only "
            "full attention is served here"
        )
    for source in adapters:
        try:
            model = _add_adapter(model, source)
        except Exception as error:  # of as many kinds
            raise _load_error(source.place, error) from None
    return model.to(device).eval()


def peft_adapter_name(model: str) -> str:
    """Returns the name of a model inside PEFT, which takes no dots."""
    return model.replace(".", "_dot_")


def _add_adapter(model: Any, source: ModelSource) -> Any:
    name = peft_adapter_name(source.name)
    options = {"revision": source.revision, "use_safetensors": True}
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, source.place, adapter_name=name, **options)
    model.load_adapter(source.place, name, **options)
    return model


def _load_error(place: str, error: Exception) -> ModelError:
    reason = one_line(error)
    return ModelError(f"{place!r} can't be loaded: {reason}")
