"""Counts the bytes of a pass on a model that has shapes but no values: nothing is read, and nothing
is computed. So it works for every architecture that transformers knows, from its config alone.

Knows no machine and no process; what those hold beside a pass is `footprint`.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import trl.trainer.utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PretrainedConfig

from dpo_train import model, quantization
from dpo_train.activation_checkpointing import checkpointed_layers
from dpo_train.config import TrainConfig
from dpo_train.optimizers import moment_bytes
from dpo_train.row_lengths import PairLength
from dpo_train.trainers import trl_patches  # noqa: F401
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.adapters import Layout
from dpo_train.trainers.packed.forward import ATTENTION, completion_logps
from dpo_train.trainers.packed.linear import Adapters, StackedLinear, compute_dtype
from dpo_train.trainers.packed.rows import Rows, collate, lay_out

_FEW = (2, 3)
"""Numbers of layers that are built; what a model of more holds lies on the line through the two.
Of a single layer the input may have no gradient."""


@dataclass(frozen=True)
class PassBytes:
    """What a model and one pass hold, in bytes."""

    weights: int
    trained: int
    """float32 values of all that is trained."""
    moments: int
    """The optimizer's two of each of them."""
    kept: int
    """Tensors that the forward keeps for the backward."""
    peak: int
    """All tensors, when the backward has come through head and last layer; where most are."""
    gradients_peak: int
    """The gradients at the backward's end. A weight that is both embedding and head has two."""
    scoring_peak: int
    """All tensors of a pass without gradients."""

    def plus(self, other: PassBytes, times: float) -> PassBytes:
        mine, theirs = vars(self), vars(other)
        return PassBytes(**{name: round(mine[name] + times * theirs[name]) for name in mine})


def pass_bytes(
    architecture: PretrainedConfig, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> PassBytes:
    """What a pass over so many equal pairs of one trial holds on that device."""
    layers = architecture.get_text_config().num_hidden_layers
    counts = [layers] if layers <= _FEW[1] else _FEW
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, which training says again
        few, *more = (
            _counted(_with_layers(architecture, count), config, pair, pairs, device)
            for count in counts
        )
    if not more:
        return few
    return few.plus(more[0].plus(few, -1), layers - _FEW[0])


def _with_layers(architecture: PretrainedConfig, layers: int) -> PretrainedConfig:
    short = copy.deepcopy(architecture)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def _counted(
    architecture: PretrainedConfig, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> PassBytes:
    with torch.device("meta"):
        dtype = getattr(torch, config.model.dtype)
        # flash-attn, which may not be here, keeps what sdpa keeps.
        eager = {"attn_implementation": "eager"} if config.model.attention == "eager" else {}
        base = AutoModelForCausalLM.from_config(architecture, dtype=dtype, **eager)
    if config.model.quantization is not None:
        quantization.take_over_without_values(base, config.model.quantization)
    weights = _bytes(base.parameters())
    layers = _layers(base, architecture)
    if config.trainer == "packed":
        run, trained, scored = _packed(base, config, pair, pairs, device)
        moments = 2 * trained
    else:
        run, trained, scored = _padded(base, config, pair, pairs, device)
        moments = moment_bytes(config.optim.name, base.modules())
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(base)
        forward, held = run()
        with _LiveBytes([*base.parameters(), *held], scored) as live, _noted(layers[-1], live):
            total = forward()
            kept = live.now
            total.backward()
        with _LiveBytes([*base.parameters(), *held], scored) as scoring, torch.no_grad():
            forward()
    embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings()
    is_doubled = embedding.requires_grad and head is not None and head.weight is embedding
    return PassBytes(
        weights=weights,
        trained=trained,
        moments=moments,
        kept=kept,
        peak=live.noted,
        gradients_peak=trained + (embedding.nbytes if is_doubled else 0),
        scoring_peak=scoring.peak,
    )


_Run = Callable[[], tuple[Callable[[], Tensor], Iterable[Tensor]]]
"""Lays out the inputs; returns the forward, and what is held beside the weights and the pass."""


def _packed(
    base: Any, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> tuple[_Run, int, int]:
    """A pass as the packed engine makes it."""
    lora = config.lora
    assert lora is not None
    base.eval().requires_grad_(False)
    layout = Layout(adapters.adapted_layers(base, lora), lora.r)
    base.set_attn_implementation(ATTENTION)
    if config.optim.activation_checkpointing:
        for layer in checkpointed_layers(base):
            layer.training = True
    decoder = base.get_decoder()

    def run() -> tuple[Callable[[], Tensor], Iterable[Tensor]]:
        modules = dict(base.named_modules())
        flat = torch.empty(1, layout.size, dtype=compute_dtype(device))
        slopes = torch.empty(1, layout.size)
        halves = zip(layout.views(flat.requires_grad_(True)), layout.views(slopes), strict=True)
        for (layer, a, b), (_, a_slope, b_slope) in halves:
            stack = StackedLinear(modules[layer.name])
            stack.adapters = Adapters(a, b.detach(), a_slope, b_slope)
        if device == "cuda":
            decoder.forward = torch.autocast("cpu", torch.bfloat16)(decoder.forward)
        one = lay_out([0] * pair.prompt, [0] * pair.chosen, [0] * pair.rejected)
        rows = Rows(*map(_hollow, vars(collate([[one] * pairs], "cpu")).values()))
        return lambda: completion_logps(base, rows).sum(), [flat, slopes]

    return run, 4 * layout.size, 0


def _padded(
    base: Any, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> tuple[_Run, int, int]:
    """A pass as TRL's trainer makes it: two rows a pair, all of the same length."""
    trl.trainer.utils.add_fused_lm_head(base)
    policy = base
    if config.lora is not None:
        import peft  # slow to import

        policy = peft.get_peft_model(base, model.peft_config(config.lora))
    policy.train()
    if config.optim.activation_checkpointing:
        checkpointed_layers(base)
    trained = sum(4 * weight.numel() for weight in policy.parameters() if weight.requires_grad)

    def run() -> tuple[Callable[[], Tensor], Iterable[Tensor]]:
        shape = (2 * pairs, pair.row)
        ids, mask, labels = (torch.empty(shape, dtype=torch.int64) for _ in range(3))

        def forward() -> Tensor:
            bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=device == "cuda")
            with bfloat16, _touched_tiles(base, device):
                outputs = policy(
                    input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True
                )
            total: Tensor = outputs.log_probs.sum()
            return total

        return forward, []

    return run, trained, pairs * (pair.chosen + pair.rejected)


@contextmanager
def _touched_tiles(base: Any, device: str) -> Iterator[None]:
    """TRL's head has tiles of 32,768 words, however few there are. On a CPU the part of a tile that
    nothing is written to takes no memory, so the tile is made as wide as the vocabulary here."""
    whole = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
    words = len(base.get_output_embeddings().weight)
    if device == "cpu":
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(whole, words)
    try:
        yield
    finally:
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = whole


def _fill(base: nn.Module) -> None:
    """Puts tensors of the mode that is on in place of the base's own; what was shared stays so."""
    made: dict[Tensor, Tensor] = {}
    for module in base.modules():
        for named in (module._parameters, module._buffers):
            for name, old in named.items():
                if old is None:
                    continue
                if old not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    is_weight = isinstance(old, nn.Parameter)
                    made[old] = nn.Parameter(new, old.requires_grad) if is_weight else new
                named[name] = made[old]  # type: ignore[assignment]


def _layers(base: nn.Module, architecture: PretrainedConfig) -> nn.ModuleList:
    """The decoder's layers, one behind the other."""
    count = architecture.get_text_config().num_hidden_layers
    lists = (module for module in base.modules() if isinstance(module, nn.ModuleList))
    return next(module for module in lists if len(module) == count)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _hollow(value: Any) -> Any:
    """A tensor of the mode that is on in place of one with values; another value as it is."""
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


@contextmanager
def _noted(layer: nn.Module, live: _LiveBytes) -> Iterator[None]:
    """Notes the peak until the gradient of that layer's input is known."""

    def note(_: Tensor) -> None:
        live.noted = live.noted or live.peak

    def on_forward(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        states = given[0] if given else named["hidden_states"]
        states.register_hook(note)

    handle = layer.register_forward_pre_hook(on_forward, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not freed yet.

    Tensors without values don't say which positions a mask picks: it is told how many. Nor do they
    answer a question like "are there no pads?", to which it says no.
    """

    def __init__(self, apart: Iterable[Tensor], picked: int) -> None:
        super().__init__()
        self.now = self.peak = self.noted = 0
        self._picked = picked
        self._seen = {tensor.untyped_storage()._cdata for tensor in apart}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operator is torch.ops.aten._local_scalar_dense.default:
            return False
        if operator.overloadpacket in _INDEXED:
            args = (args[0], self._places(args[1]), *args[2:])
        result = operator(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _places(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        masks = [index for index in indices if index is not None and index.dtype == torch.bool]
        if not masks:
            return indices
        return [torch.empty(self._picked, dtype=torch.int64) for _ in range(masks[0].dim())]

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size

        def freed() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)


_INDEXED = (
    torch.ops.aten.index,
    torch.ops.aten.index_put,
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
)
