"""The memory of each optimizer: AdamW keeps two moments of each trained weight, in float32 or in 8
bits (arXiv:2110.02861). transformers makes the optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Name = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]

TRANSFORMERS_NAMES: dict[Name, str] = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""By our name, the name in transformers' TrainingArguments."""
_LEAST = 4096
"""Elements below which bitsandbytes keeps a tensor's moments in float32. transformers does so for
all embeddings."""
_BLOCK = 256
"""Values that share a float32 scale in 8 bits."""


def moment_bytes(name: Name, modules: Iterable[nn.Module]) -> int:
    """Return the bytes of both moments of all trained weights of the modules.

    A shared weight counts once. Pages that a paged optimizer may move to the host's memory count as
    if they stayed on the GPU.
    """
    from torch import nn  # slow to import

    sizes: dict[int, int] = {}
    for module in modules:
        for weight in module.parameters(recurse=False):
            if weight.requires_grad:
                count = weight.numel()
                is_small = count < _LEAST or isinstance(module, nn.Embedding)
                in_8_bits = name.endswith("8bit") and not is_small
                size = 2 * (count + 4 * (count // _BLOCK) if in_8_bits else 4 * count)
                # An embedding that is also the output layer is kept as an embedding.
                sizes[id(weight)] = max(size, sizes.get(id(weight), 0))
    return sum(sizes.values())
