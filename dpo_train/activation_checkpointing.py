"""Activation checkpointing: a pass keeps what goes into each layer, and the backward computes the
layer again (arXiv:1604.06174). It costs about a third more computing and most of the memory less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dpo_train import memory
from dpo_train.errors import InputError

OPTIONS = {"use_reentrant": False, "preserve_rng_state": False}
"""Of torch's checkpoint. No layer draws random numbers: dropout is off."""
_HOOK = "make_inputs_require_grads"
"""The name of transformers' own hook."""


def checkpointed_layers(model: Any) -> list[Any]:
    """The layers that are computed again, ready for it: each is while its `training` is true.

    transformers would also make the embeddings' outputs ask for a gradient, which only its other
    way to checkpoint needs. Raises InputError for a model whose layers can't be computed again.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # slow to import

    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            "optim.activation_checkpointing: transformers can't recompute the layers of this "
            "model; take it out, and lower optim.micro_batch_size to save memory"
        )
    model.activation_checkpointing_enable(OPTIONS)
    model.disable_input_require_grads()
    return layers


def switch_off(model: Any) -> None:
    """Leaves the model as it was loaded."""
    model.activation_checkpointing_disable()
    model.disable_input_require_grads()
    # Of a hook that was set twice, by TRL and by transformers, one is left.
    hooks = model.get_input_embeddings()._forward_hooks
    for number in [n for n, hook in hooks.items() if getattr(hook, "__name__", "") == _HOOK]:
        del hooks[number]


def kept_bytes(forward: Callable[[], Any], layers: Sequence[Any], apart: Iterable[Any]) -> int:
    """What a pass holds for its backward where these layers are computed again: what it keeps, and
    the insides of the one layer that is computed just then."""
    if not any(layer.training for layer in layers):
        return memory.kept_bytes(forward, apart)[1]
    # One layer that is not computed again keeps what any of them holds in its turn. A pass without
    # checkpoints could need more memory than there is.
    last = layers[-1]
    last.training = False
    try:
        return memory.kept_bytes(forward, apart)[1]
    finally:
        last.training = True
