"""A model of transformers in memory, with its adapters."""

from __future__ import annotations

from typing import Any

from serve import attention
from serve.sources import Copy, ModelError, Source, dtype_on


def load_weights(copy: Copy, adapters: list[Source]) -> Any:
    """Ready to compute on this machine's device. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, dtype_on(device))
    try:
        # A model that takes no attention but its own is refused here.
        model: Any = AutoModelForCausalLM.from_pretrained(
            copy.place, revision=copy.revision, dtype=dtype, attn_implementation=attention.NAME
        )
    except Exception as error:  # the library raises a dozen kinds; each is about the place
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{copy.place!r} can't be loaded: {reason}") from None
    window = getattr(model.config, "sliding_window", None)
    without_types = ["sliding_attention"] if window else ["full_attention"]
    kinds = set(getattr(model.config, "layer_types", None) or without_types)
    if kinds != {"full_attention"}:
        raise ModelError(
            f"{copy.place!r} has layers of the kinds {', '.join(sorted(kinds))}; only full "
            "attention is served here"
        )
    if adapters:
        from peft import PeftModel

        first = adapters[0]
        model = PeftModel.from_pretrained(
            model, first.place, adapter_name=adapter_name(first.name), revision=first.revision
        )
        for source in adapters[1:]:
            model.load_adapter(source.place, adapter_name(source.name), revision=source.revision)
    return model.to(device).eval()


def adapter_name(model: str) -> str:
    """A model's name inside PEFT, which takes no dots."""
    return model.replace(".", "_dot_")
