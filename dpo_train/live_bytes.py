"""Counts the bytes of the tensors of a computation, also where the tensors have no values.

Knows no model and no trainer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_INDEXED = (
    torch.ops.aten.index,
    torch.ops.aten.index_put,
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
)
"""The operators that take indices or a mask."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that have been made and not yet freed.

    A tensor without values does not say how many positions a mask picks, so the caller gives their
    number. It can't answer a question like "is there no padding?" either, so the answer is no.
    """

    def __init__(self, excluded: Iterable[Tensor], picked: int) -> None:
        """excluded: tensors that don't count. picked: the positions that each mask picks."""
        super().__init__()
        self.now = self.peak = self.noted_peak = 0
        self._picked = picked
        self._seen = {tensor.untyped_storage()._cdata for tensor in excluded}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operator is torch.ops.aten._local_scalar_dense.default:
            return False
        if operator.overloadpacket in _INDEXED:
            args = (args[0], self._indices(args[1]), *args[2:])
        result = operator(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _indices(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Replaces a mask by as many indices as it picks."""
        masks = [index for index in indices if index is not None and index.dtype == torch.bool]
        if not masks:
            return indices
        return [torch.empty(self._picked, dtype=torch.int64) for _ in range(masks[0].dim())]

    def _count(self, storage: Any) -> None:
        """Counts a storage once, until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size

        def freed() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)


@contextmanager
def noting_peak(layer: nn.Module, live: LiveBytes) -> Iterator[None]:
    """Notes the peak at the moment when the backward has the gradient of the layer's input."""

    def note(_: Tensor) -> None:
        live.noted_peak = live.noted_peak or live.peak

    def on_forward(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        states = arguments[0] if arguments else named["hidden_states"]
        states.register_hook(note)

    handle = layer.register_forward_pre_hook(on_forward, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
