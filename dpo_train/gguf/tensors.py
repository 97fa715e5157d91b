"""Converts a model's weights to the form in which GGUF stores them, one tensor after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpo_train.errors import InputError
from dpo_train.gguf.architecture import Architecture

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Quantization = Literal["f16", "q8_0"]
_BLOCK, _BLOCK_BYTES = 32, 34
"""Weights that share a scale in q8_0, and their bytes: one float16 and 32 int8."""


@dataclass(frozen=True)
class Planned:
    """A tensor of the file before it is written."""

    name: str
    source: str
    """transformers' name; "" for the factors of the rotary embedding."""
    shape: tuple[int, ...]
    stored: Literal["f32", "f16", "q8_0"]
    """The type in the file."""

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """The shape of the array that is written: of bytes for q8_0, else of numbers."""
        if self.stored != "q8_0":
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // _BLOCK * _BLOCK_BYTES)

    @property
    def bytes(self) -> int:
        """The tensor's bytes in the file."""
        return math.prod(self.byte_shape) * {"f32": 4, "f16": 2, "q8_0": 1}[self.stored]


def mapped(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model folder, memory-mapped: only what is read takes memory."""
    from safetensors.torch import load_file  # imports torch, which is slow

    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def plan(
    architecture: Architecture, weights: Mapping[str, Tensor], quantization: Quantization
) -> list[Planned]:
    """Return the file's tensors in their order. Raises InputError if one is unknown or missing.

    Norms and biases are stored in float32. As in llama.cpp, a tensor whose rows are not a multiple
    of 32 weights is stored in float16.
    """
    planned = []
    if architecture.rope_factors:
        size = (len(architecture.rope_factors),)
        planned.append(Planned("rope_freqs.weight", "", size, "f32"))
    for source, weight in weights.items():
        name = architecture.name(source)
        if name is None:
            raise InputError(
                f"gguf: the model has the weights {source}, which llama.cpp's {architecture.kind} "
                "does not have; leave GGUF out"
            )
        if name:
            shape = tuple(weight.shape)
            planned.append(Planned(name, source, shape, _stored(shape, quantization)))
    found = {each.name for each in planned if each.source}
    wrong = sorted(found ^ architecture.expected())
    if wrong:
        what = "has" if wrong[0] in found else "lacks"
        raise InputError(
            f"gguf: the model {what} the weights {wrong[0]} and {len(wrong) - 1} others, unlike "
            f"the {architecture.kind} that its config.json describes; give a complete model"
        )
    return planned


def _stored(shape: tuple[int, ...], quantization: Quantization) -> Literal["f32", "f16", "q8_0"]:
    if len(shape) == 1:
        return "f32"
    return "f16" if shape[-1] % _BLOCK else quantization


def arrays(
    architecture: Architecture, weights: Mapping[str, Tensor], planned: list[Planned]
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the array to write for each planned tensor, computed one at a time.

    Raises InputError for weights that are not finite, or would not be in float16.
    """
    import numpy as np  # beside torch, which is slow to import

    for each in planned:
        if not each.source:
            yield np.array(architecture.rope_factors, dtype=np.float32)
            continue
        values = architecture.arranged(each.name, weights[each.source].float())
        yield _converted(values.contiguous().numpy(), each)


def _converted(values: np.ndarray[Any, Any], planned: Planned) -> np.ndarray[Any, Any]:
    import numpy as np  # beside torch, which is slow to import

    largest = max(float(values.max()), -float(values.min()))
    bound = {"f32": math.inf, "f16": 65504.0, "q8_0": 65504.0 * 127}[planned.stored]
    if not largest < bound:  # this is true for NaN, too
        raise InputError(
            f"gguf: {planned.source} holds {largest:g}, which {planned.stored} can't store"
            + ("; type `--quantize q8_0`" if largest < 65504.0 * 127 else "")
        )
    if planned.stored == "f32":
        return values
    if planned.stored == "f16":
        return values.astype(np.float16)
    from gguf import GGMLQuantizationType, quantize  # an optional extra

    blocks: np.ndarray[Any, Any] = quantize(values, GGMLQuantizationType.Q8_0)
    return blocks
