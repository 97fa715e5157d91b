"""Uses Liger's fused kernels in a model on a GPU: norms, gated MLPs and rotary embeddings take one
pass over memory each, where transformers takes up to eight.

liger-kernel (arXiv:2410.10989) comes with the extra `gpu`. This module knows no trainer.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dpo_train.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""The largest difference from the model's own logits, as a share of the largest logit."""


_refused: dict[str, str] = {}
"""By architecture, the difference that was too large; empty if it was small enough.

Liger changes the modules of transformers. So only the first comparison in a process compares with
the model's own layers, and its result is kept."""


def use_fused_kernels(model: Any) -> None:
    """Replace the layers of a model on a GPU, if liger-kernel is installed and supports them.

    Raises InputError if the kernels change the logits of a few tokens.
    """
    if not find_spec("liger_kernel"):
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # slow to import

    kind = model.config.model_type
    own = None if kind in _refused else _logits(model)
    try:
        # TRL and the packed trainer have their own output layer and loss.
        _apply_liger_kernel_to_instance(
            model, fused_linear_cross_entropy=False, cross_entropy=False
        )
    except ImportError:  # liger-kernel supports another version of this architecture
        return
    if own is not None:
        difference = float((_logits(model) - own).abs().max() / own.abs().max())
        is_near = difference <= _TOLERANCE[str(model.dtype).removeprefix("torch.")]
        _refused[kind] = "" if is_near else f"{difference:.2g}"
    if _refused[kind]:
        raise InputError(
            f"model.id: liger-kernel changes this model's logits (by {_refused[kind]} of the "
            "largest); type `pip uninstall liger-kernel`"
        )


def _logits(model: Any) -> Tensor:
    import torch  # slow to import

    ids = torch.arange(64, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=ids, use_cache=False).logits.float()
    return logits
