"""Counts the bytes of a pass on a model that has shapes but no values.

No weights are read and nothing is computed, so it works from the configuration alone, for each
architecture that transformers knows. Knows no machine and no process: `footprint` does.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import trl.trainer.utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from dpo_train import model, quantization
from dpo_train.activation_checkpointing import checkpointed_layers
from dpo_train.config import TrainConfig
from dpo_train.live_bytes import LiveBytes, noting_peak
from dpo_train.optimizers import moment_bytes
from dpo_train.row_lengths import PairLength
from dpo_train.trainers import trl_patches  # noqa: F401
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.adapters import Layout
from dpo_train.trainers.packed.forward import ATTENTION, completion_logps
from dpo_train.trainers.packed.linear import Adapters, StackedLinear, compute_dtype
from dpo_train.trainers.packed.rows import Rows, collate, lay_out

_FEW = (2, 3)
"""The numbers of layers that are counted. A larger model lies on the line through the two. A single
layer would not do, as its input may have no gradient."""


@dataclass(frozen=True)
class PassBytes:
    """The memory of a model and one pass, in bytes."""

    weights: int
    trained: int
    """All trained values in float32."""
    moments: int
    """The optimizer's moments."""
    kept: int
    """Tensors that the forward keeps for the backward."""
    peak: int
    """The most bytes of all tensors until the backward has passed the head and the last layer."""
    gradients_peak: int
    """The gradients at the backward's end. A weight that is both embedding and head has two."""
    scoring_peak: int
    """The most bytes of all tensors in a pass without gradients."""

    def plus(self, other: PassBytes, times: float) -> PassBytes:
        """Returns self + times * other, field by field."""
        mine, theirs = vars(self), vars(other)
        return PassBytes(**{name: round(mine[name] + times * theirs[name]) for name in mine})


def pass_bytes(
    architecture: PretrainedConfig, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> PassBytes:
    """Returns what a pass over `pairs` equal pairs of one trial holds on a device.

    architecture: the model's configuration, with the number of layers to extrapolate to.
    """
    layers = architecture.get_text_config().num_hidden_layers
    counts = [layers] if layers <= _FEW[1] else _FEW
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training shows the libraries' warnings again
        few, *more = (
            _counted(_with_layers(architecture, count), config, pair, pairs, device)
            for count in counts
        )
    if not more:
        return few
    return few.plus(more[0].plus(few, -1), layers - _FEW[0])


def _with_layers(architecture: PretrainedConfig, layers: int) -> PretrainedConfig:
    """Returns the configuration with fewer layers."""
    short = copy.deepcopy(architecture)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def _counted(
    architecture: PretrainedConfig, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> PassBytes:
    """Counts a pass of the architecture with all its layers."""
    # The model, without values.
    with torch.device("meta"):
        dtype = getattr(torch, config.model.dtype)
        # flash-attn keeps as much as sdpa and may not be installed, so sdpa is counted for it.
        eager = {"attn_implementation": "eager"} if config.model.attention == "eager" else {}
        base = AutoModelForCausalLM.from_config(architecture, dtype=dtype, **eager)
    if config.model.quantization is not None:
        quantization.take_over_without_values(base, config.model.quantization)
    weights = _bytes(base.parameters())
    layers = _layers(base, architecture)

    # The trainer's pass.
    if config.trainer == "packed":
        prepare, trained, scored = _packed(base, config, pair, pairs, device)
        moments = 2 * trained
    else:
        prepare, trained, scored = _padded(base, config, pair, pairs, device)
        moments = moment_bytes(config.optim.name, base.modules())

    # Count it with a backward, then without gradients.
    with FakeTensorMode(allow_non_fake_inputs=True):
        _use_fake_tensors(base)
        forward, held = prepare()
        excluded = [*base.parameters(), *held]
        with LiveBytes(excluded, scored) as live, noting_peak(layers[-1], live):
            total = forward()
            kept = live.now
            total.backward()
        with LiveBytes(excluded, scored) as scoring, torch.no_grad():
            forward()

    embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings()
    is_doubled = embedding.requires_grad and head is not None and head.weight is embedding
    return PassBytes(
        weights=weights,
        trained=trained,
        moments=moments,
        kept=kept,
        peak=live.noted_peak,
        gradients_peak=trained + (embedding.nbytes if is_doubled else 0),
        scoring_peak=scoring.peak,
    )


_Prepare = Callable[[], tuple[Callable[[], Tensor], Iterable[Tensor]]]
"""Makes the inputs; returns the forward, and the tensors held beside the weights and the pass."""


def _packed(
    base: Any, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> tuple[_Prepare, int, int]:
    """Returns the packed engine's pass, the bytes of what it trains, and 0 masked tokens."""
    # The base with the packed attention, and with checkpointing if it is requested.
    lora = config.lora
    assert lora is not None
    base.eval().requires_grad_(False)
    layout = Layout(adapters.adapted_layers(base, lora), lora.r)
    base.set_attn_implementation(ATTENTION)
    if config.optim.activation_checkpointing:
        for layer in checkpointed_layers(base):
            layer.training = True
    decoder = base.get_decoder()

    def prepare() -> tuple[Callable[[], Tensor], Iterable[Tensor]]:
        # The adapters of one trial.
        modules = dict(base.named_modules())
        flat = torch.empty(1, layout.size, dtype=compute_dtype(device))
        gradients = torch.empty(1, layout.size)
        matrices = layout.views(flat.requires_grad_(True)), layout.views(gradients)
        for (layer, a, b), (_, a_gradient, b_gradient) in zip(*matrices, strict=True):
            stack = StackedLinear(modules[layer.name])
            stack.adapters = Adapters(a, b.detach(), a_gradient, b_gradient)
        if device == "cuda":
            decoder.forward = torch.autocast("cpu", torch.bfloat16)(decoder.forward)
        # The rows.
        one = lay_out([0] * pair.prompt, [0] * pair.chosen, [0] * pair.rejected)
        rows = Rows(*map(_without_values, vars(collate([[one] * pairs], "cpu")).values()))
        return lambda: completion_logps(base, rows).sum(), [flat, gradients]

    return prepare, 4 * layout.size, 0


def _padded(
    base: Any, config: TrainConfig, pair: PairLength, pairs: int, device: str
) -> tuple[_Prepare, int, int]:
    """Returns the pass of TRL's trainer, the bytes of what it trains, and the completion tokens,
    which a mask picks. A pair has two rows, and all rows have the same length."""
    # The model as the trainer has it.
    trl.trainer.utils.add_fused_lm_head(base)
    policy = base
    if config.lora is not None:
        import peft  # slow to import

        policy = peft.get_peft_model(base, model.peft_config(config.lora))
    policy.train()
    if config.optim.activation_checkpointing:
        checkpointed_layers(base)
    trained = sum(4 * weight.numel() for weight in policy.parameters() if weight.requires_grad)

    def prepare() -> tuple[Callable[[], Tensor], Iterable[Tensor]]:
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

    return prepare, trained, pairs * (pair.chosen + pair.rejected)


@contextmanager
def _touched_tiles(base: Any, device: str) -> Iterator[None]:
    """Counts only the memory of TRL's head that is really used.

    The head allocates tiles of 32,768 words, even for a smaller vocabulary. On a CPU memory that is
    never written to takes no space, so we make the tiles as wide as the vocabulary meanwhile.
    """
    whole = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
    words = len(base.get_output_embeddings().weight)
    if device == "cpu":
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(whole, words)
    try:
        yield
    finally:
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = whole


def _use_fake_tensors(base: nn.Module) -> None:
    """Replaces the base's tensors by fake ones; tensors that were shared stay shared."""
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
    """Returns the decoder's layers in their order."""
    count = architecture.get_text_config().num_hidden_layers
    lists = (module for module in base.modules() if isinstance(module, nn.ModuleList))
    return next(module for module in lists if len(module) == count)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _without_values(value: Any) -> Any:
    """Returns a fake tensor in place of a tensor, and any other value as it is."""
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value
