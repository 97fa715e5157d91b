"""Reads the model's `generation_config.json`, which has the settings that a request leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.errors import ModelError

_ALLOWED = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.1, 10),
}
"""The smallest and the largest allowed values. With a smaller penalty logits become infinite."""


@dataclass(frozen=True)
class GenerationDefaults:
    """Values of settings that a request leaves out. The defaults here are OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    """None means all tokens that fit into the context."""


def read_defaults(config: Any) -> GenerationDefaults:
    """Returns the settings of transformers' GenerationConfig, and OpenAI's for missing ones.

    `do_sample: false` becomes a temperature of 0. Raises ModelError for a value out of range.
    """
    known = GenerationDefaults()
    temperature = 0.0 if config.do_sample is False else config.temperature
    defaults = GenerationDefaults(
        temperature=known.temperature if temperature is None else temperature,
        top_p=config.top_p or known.top_p,
        top_k=max(config.top_k or 0, 0),
        min_p=config.min_p or known.min_p,
        repetition_penalty=config.repetition_penalty or known.repetition_penalty,
        max_new_tokens=config.max_new_tokens,
    )
    for name, (least, most) in _ALLOWED.items():
        value = getattr(defaults, name)
        if not least <= value <= most:
            raise ModelError(
                f"generation_config.json: {name} is {value}, but must be from {least} to {most}; "
                "change it, or start the server with `--generation-config none`"
            )
    return defaults
