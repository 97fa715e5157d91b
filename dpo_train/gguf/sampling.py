"""Reads a model's default sampling from its generation_config.json."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "num_predict",
}
"""Ollama's names, by transformers' names."""
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")
"""Settings that greedy decoding does not use."""


def defaults(generation: Any) -> dict[str, float | int]:
    """Return the values that the configuration sets, by Ollama's names. No defaults are filled in.

    `do_sample: false` becomes temperature 0.
    """
    stated = {
        ollama_name: value
        for name, ollama_name in _NAMES.items()
        if (value := getattr(generation, name, None)) is not None
    }
    if generation.do_sample is False:
        kept = {name: value for name, value in stated.items() if name not in _SAMPLING_ONLY}
        return {"temperature": 0, **kept}
    return stated


def ends(generation: Any) -> list[int]:
    """Return the ids of the tokens that end an answer."""
    stated = generation.eos_token_id
    if stated is None:
        return []
    return list(stated) if isinstance(stated, list | tuple) else [stated]
