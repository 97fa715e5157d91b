"""Liger's fused kernels in a model on a GPU: norms, gated MLPs and rotary embeddings in one pass
over memory each, where transformers takes up to eight.

liger-kernel (arXiv:2410.10989) comes with the extra `gpu`. Knows no trainer.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dpo_train.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_APART = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far the logits may lie from the model's own, as a share of the largest: they round twice."""


_refused: dict[str, str] = {}
"""By architecture, why its kernels are not to be used. Liger changes transformers' own modules, so
in a process only the first comparison is one with the model's own layers."""


def use_fused_kernels(model: Any) -> None:
    """Changes the layers of a model that is on a GPU, if liger-kernel is installed and knows them.

    Raises InputError if the logits of a few tokens then are others than the model's own.
    """
    if not find_spec("liger_kernel"):
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # slow to import

    kind = model.config.model_type
    own = None if kind in _refused else _logits(model)
    try:
        # The head and its loss are TRL's and the packed pass's own.
        _apply_liger_kernel_to_instance(
            model, fused_linear_cross_entropy=False, cross_entropy=False
        )
    except ImportError:  # it was written for another version of this architecture
        return
    if own is not None:
        apart = float((_logits(model) - own).abs().max() / own.abs().max())
        is_near = apart <= _APART[str(model.dtype).removeprefix("torch.")]
        _refused[kind] = "" if is_near else f"{apart:.2g}"
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
