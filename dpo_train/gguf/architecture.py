"""The architectures that can be written as GGUF: their settings, and GGUF's form of their tensors.

A setting that llama.cpp does not support is refused by its name and value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's names by transformers' names of modules, which for layers lack `model.layers.N.`."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Architecture:
    """The settings of a model, by GGUF's names."""

    kind: str
    """llama, qwen2 or qwen3. transformers and GGUF use the same names."""
    vocabulary: int
    """Rows of the embedding. There may be more of them than tokens."""
    layers: int
    context_length: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_base: float
    rope_factors: tuple[float, ...]
    """The divisor of each frequency of the rotary embedding (Llama 3); empty if there is none."""
    is_tied: bool
    """Whether the output layer shares the input embedding's weights."""

    def name(self, name: str) -> str | None:
        """Return GGUF's name of a parameter in transformers, or None for an unknown parameter.

        It is "" for a tied output layer, which a GGUF file leaves out.
        """
        module, _, parameter = name.rpartition(".")
        if module == "lm_head" and self.is_tied:
            return ""
        layer = _LAYER.fullmatch(module)
        short = layer[2] if layer else module
        is_known = short in _TENSORS and parameter in ("weight", "bias")
        if not is_known or short.startswith(("model.", "lm_head")) == bool(layer):
            return None
        prefix = f"blk.{layer[1]}." if layer else ""
        return f"{prefix}{_TENSORS[short]}.{parameter}"

    def expected(self) -> set[str]:
        """Return the names of all tensors that the file must hold."""
        attention = {"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"}
        of_layer = attention | {"attn_norm.weight", "ffn_norm.weight"}
        of_layer |= {"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
        if self.kind == "qwen2":
            of_layer |= {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
        if self.kind == "qwen3":
            of_layer |= {"attn_q_norm.weight", "attn_k_norm.weight"}
        names = {f"blk.{layer}.{name}" for layer in range(self.layers) for name in of_layer}
        names |= {"token_embd.weight", "output_norm.weight"}
        return names if self.is_tied else names | {"output.weight"}

    def arranged(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in llama.cpp's order of rows; `name` is GGUF's.

        In a rotary embedding transformers rotates coordinate i of a head with i + head_size/2. In a
        Llama llama.cpp rotates neighbours, 2i with 2i + 1, so the rows of Q and K are interleaved.
        In Qwen2 and Qwen3 llama.cpp rotates as transformers does.
        """
        module = name.split(".")[-2]
        if self.kind != "llama" or module not in ("attn_q", "attn_k"):
            return tensor
        heads = self.heads if module == "attn_q" else self.kv_heads
        halves = tensor.reshape(heads, 2, self.head_size // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)


def describe(config: Any) -> Architecture:
    """Return the settings of transformers' configuration.

    Raises InputError for a model that can't be written.
    """
    kind = config.model_type
    if kind not in _NAMES or config.architectures not in (None, [f"{_NAMES[kind]}ForCausalLM"]):
        own = ", ".join(config.architectures or [kind])
        raise InputError(
            f"gguf: the model is {own}, and only {', '.join(_NAMES.values())} can be written as "
            f"GGUF; leave GGUF out: `{dpo_tune('push', 'RUN', '--to', 'FOLDER')}` writes it for "
            "transformers, and llama.cpp's own converter may know it"
        )
    if getattr(config, "quantization_config", None):
        raise InputError("gguf: the model is quantised; give a base that is not")
    rope = config.rope_parameters
    _refuse_settings(config, rope)
    return Architecture(
        kind=kind,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        context_length=config.max_position_embeddings,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=_head_size(config),
        norm_epsilon=config.rms_norm_eps,
        rope_base=rope["rope_theta"],
        rope_factors=_rope_factors(config) if rope["rope_type"] == "llama3" else (),
        is_tied=config.tie_word_embeddings,
    )


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def _refuse_settings(config: Any, rope: Mapping[str, Any]) -> None:
    """Raise InputError for a setting that llama.cpp does not support in this architecture."""
    kind = config.model_type
    allowed: dict[str, tuple[object, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "rope_type": ("default", "llama3") if kind == "llama" else ("default",),
        "partial_rotary_factor": (1, None),
    }
    if kind == "qwen2":  # for Qwen2 llama.cpp reads no key for the size of a head
        allowed["head_dim"] = (config.hidden_size // config.num_attention_heads,)
    for name, values in allowed.items():
        value = rope.get(name, getattr(config, name, values[0]))
        if value not in values:
            raise InputError(
                f"gguf: the model's config.json has {name}: {value}, and llama.cpp supports only "
                f"{' or '.join(map(str, values))} in a {_NAMES[kind]}; leave GGUF out: "
                f"`{dpo_tune('push', 'RUN', '--to', 'FOLDER')}` writes it for transformers"
            )


def _rope_factors(config: Any) -> tuple[float, ...]:
    """Return Llama 3's divisors of the frequencies, shape (head_size / 2,), as in transformers."""
    import torch  # slow to import
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # slow to import

    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = _head_size(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2).float() / size)
    return tuple((plain / slowed).tolist())
