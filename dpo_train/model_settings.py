"""Changes a model's settings when it is loaded, and restores them when it is saved.

Dropout is switched off in the whole model: the reference is computed without it, and noise in the
log-ratios would harm DPO. TRL sets only `nn.Dropout` to 0. Many models (Granite, StarCoder2, OPT,
Falcon) hold dropout as a number in their modules or configuration, so we set these to 0 as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""Attributes of modules: noise before a router of experts, used only in training."""
_KEPT = "settings_as_loaded"
"""The attribute that we add to a model to keep the original values of its configuration."""
_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""Settings of a generation configuration that only sampling reads."""
_BEAMS = ("early_stopping", "length_penalty")
"""Settings that only beam search reads."""


def switch_off_dropout(model: Any) -> None:
    """Set all dropout and the noise of routers to 0, in a model's modules and configuration."""
    import torch  # slow to import

    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        noise = [name for name in _NOISE if vars(module).get(name)]
        for name in (*_dropouts(vars(module)), *noise):
            setattr(module, name, 0.0)
    kept = []
    own, of_text = model.config, model.config.get_text_config()
    for config in (own,) if of_text is own else (own, of_text):
        for name in _dropouts(vars(config)):
            kept.append((config, name, getattr(config, name)))
            setattr(config, name, 0.0)
        if "use_cache" in vars(config):  # TRL will switch it off
            kept.append((config, "use_cache", config.use_cache))
    setattr(model, _KEPT, kept)


@contextmanager
def as_loaded(model: Any) -> Iterator[None]:
    """Give a model its original configuration inside the `with` block, so that it can be saved."""
    kept = getattr(model, _KEPT, [])
    changed = [(config, name, getattr(config, name)) for config, name, _ in kept]
    for config, name, value in kept:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, value in changed:
            setattr(config, name, value)


def mend_generation_config(generation: Any) -> list[str]:
    """Remove settings without effect from a GenerationConfig, and return their names.

    transformers refuses to save a configuration with such a setting, for example a temperature
    without `do_sample`.
    """
    before = generation.to_dict()
    if _can_be_saved(generation):
        return []
    unread: tuple[str, ...] = () if generation.do_sample else _SAMPLING
    if generation.num_beams in (None, 1):
        unread += _BEAMS
    for name in unread:
        setattr(generation, name, None)
    if not _can_be_saved(generation):
        plain = type(generation)().to_dict()
        for name in before:
            if not name.endswith("token_id"):
                setattr(generation, name, plain.get(name))
    after = generation.to_dict()
    return sorted(name for name, value in before.items() if after.get(name) != value)


def _can_be_saved(generation: Any) -> bool:
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True


def _dropouts(values: Mapping[str, object]) -> list[str]:
    """Return names such as attention_dropout or resid_pdrop whose values aren't 0."""
    return [
        name
        for name, value in values.items()
        if ("dropout" in name or name.endswith(("pdrop", "layerdrop")))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and value
    ]
