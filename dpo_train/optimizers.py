"""What AdamW keeps of each trained weight: two moments, in float32 or in 8 bits (arXiv:2110.02861).

transformers makes the optimizers; which one takes how much memory is said here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Name = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]

OF_TRANSFORMERS: dict[Name, str] = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""By our name that of transformers' TrainingArguments."""
_LEAST = 4096
"""bitsandbytes keeps the moments of a smaller tensor in float32, and transformers those of
embeddings."""
_BLOCK = 256
"""In 8 bits so many values share a float32 scale."""


def moment_bytes(name: Name, modules: Iterable[nn.Module]) -> int:
    """The bytes of both moments of all weights of the modules that are trained, each once. Pages
    that a paged optimizer may move to the host's memory count as if they stayed."""
    from torch import nn  # slow to import

    sizes: dict[int, int] = {}
    for module in modules:
        for weight in module.parameters(recurse=False):
            if weight.requires_grad:
                count = weight.numel()
                is_small = count < _LEAST or isinstance(module, nn.Embedding)
                in_8_bits = name.endswith("8bit") and not is_small
                size = 2 * (count + 4 * (count // _BLOCK) if in_8_bits else 4 * count)
                # An embedding that is the output layer too is kept as an embedding.
                sizes[id(weight)] = max(size, sizes.get(id(weight), 0))
    return sum(sizes.values())
