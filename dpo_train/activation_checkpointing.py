"""Activation checkpointing: a pass keeps only the input of each layer, and the backward computes
the layer again (arXiv:1604.06174). It saves most of the memory, and costs a third more computing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dpo_train import memory
from dpo_train.errors import InputError

OPTIONS = {"use_reentrant": False, "preserve_rng_state": False}
"""Options of torch's checkpoint. Dropout is off, so no random state has to be kept."""
_HOOK = "make_inputs_require_grads"
"""The name of the hook that transformers adds."""


def checkpointed_layers(model: Any) -> list[Any]:
    """Switch checkpointing on, and return the layers that the backward will compute again.

    A layer is computed again only while its `training` is true. transformers would also make the
    outputs of the embeddings require a gradient. Only its reentrant checkpointing needs that, so we
    switch it off. Raises InputError for a model whose layers can't be computed again.
    """
    layers = _layers(model)
    if not layers:
        raise InputError(
            "optim.activation_checkpointing: transformers can't recompute the layers of this "
            "model; take it out, and lower optim.micro_batch_size to save memory"
        )
    model.activation_checkpointing_enable(OPTIONS)
    model.disable_input_require_grads()
    return layers


def can_be_checkpointed(model: Any) -> bool:
    """Whether transformers can compute the layers of this model again."""
    return bool(_layers(model))


def _layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer  # slow to import

    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]


def switch_off(model: Any) -> None:
    """Switch checkpointing off, so that the model is as it was loaded."""
    model.activation_checkpointing_disable()
    model.disable_input_require_grads()
    # TRL and transformers may both have added the hook, and only one of them is removed above. So
    # we remove the other here.
    hooks = model.get_input_embeddings()._forward_hooks
    for number in [n for n, hook in hooks.items() if getattr(hook, "__name__", "") == _HOOK]:
        del hooks[number]


def kept_bytes(forward: Callable[[], Any], layers: Sequence[Any], excluded: Iterable[Any]) -> int:
    """Return the bytes that a pass holds for its backward if these layers are computed again.

    They are what the pass keeps, and the activations of the one layer that is being recomputed.
    """
    if not any(layer.training for layer in layers):
        return memory.kept_bytes(forward, excluded)[1]
    # A pass without any checkpointing could run out of memory. So we measure with only the last
    # layer not checkpointed: it keeps what each layer holds while it is recomputed.
    last = layers[-1]
    last.training = False
    try:
        return memory.kept_bytes(forward, excluded)[1]
    finally:
        last.training = True
