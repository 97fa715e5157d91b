"""A model of transformers in memory, with its adapters."""

from __future__ import annotations

from typing import Any

from serve import attention
from serve.model_source import Copy, ModelError, Source, dtype_on, one_line


def load_weights(copy: Copy, adapters: list[Source]) -> Any:
    """Ready to compute on this machine's device. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, dtype_on(device))
    try:
        # A model that takes no attention but its own is refused here.
        model: Any = AutoModelForCausalLM.from_pretrained(
            copy.place,
            revision=copy.revision,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,  # no pickle
        )
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        raise _unloadable(copy.place, error) from None
    window = getattr(model.config, "sliding_window", None)
    without_types = ["sliding_attention"] if window else ["full_attention"]
    kinds = set(getattr(model.config, "layer_types", None) or without_types)
    if kinds != {"full_attention"}:
        raise ModelError(
            f"{copy.place!r} has layers of the kinds {', '.join(sorted(kinds))}; only full "
            "attention is served here"
        )
    for source in adapters:
        try:
            model = _with_adapter(model, source)
        except Exception as error:  # of as many kinds
            raise _unloadable(source.place, error) from None
    return model.to(device).eval()


def _with_adapter(model: Any, source: Source) -> Any:
    from peft import PeftModel

    name, asked = adapter_name(source.name), {"revision": source.revision, "use_safetensors": True}
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, source.place, adapter_name=name, **asked)
    model.load_adapter(source.place, name, **asked)
    return model


def _unloadable(place: str, error: Exception) -> ModelError:
    reason = one_line(error)
    return ModelError(f"{place!r} can't be loaded: {reason}")


def adapter_name(model: str) -> str:
    """A model's name inside PEFT, which takes no dots."""
    return model.replace(".", "_dot_")
