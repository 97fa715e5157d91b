"""Fields of TRL's DPOConfig that a trial may set under TRL's names, and why it may not set others.

This module does not import TRL: it reads the names of TRL's fields from a file that
`trainers.trl_fields` writes.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_train.config_base import Part
from dpo_train.config_names import TRL_FIELDS

TABLE = Path(__file__).parent / "trainers" / "trl_fields.json"
"""The file with the default of every field of the pinned TRL's DPOConfig, by name."""
F_DIVERGENCE_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
)  # fmt: skip
"""The losses that TRL can compute with another divergence than the reverse KL."""
_REMOVED = ("pad_to_multiple_of",)
"""Fields of earlier versions, whose runs and exports hold them as null."""


class TrlConfig(Part):
    """Further fields of TRL's DPOConfig. The defaults are TRL's."""

    f_divergence_type: Literal[
        "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"
    ] = "reverse_kl"  # fmt: skip
    """The divergence that holds the policy to the reference (f-DPO, arXiv:2309.16240)."""
    f_alpha_divergence_coef: float = Field(0.5, gt=0)
    """The α of `alpha_divergence`."""
    use_weighting: bool = False
    """Whether pairs are weighted by their probability under the policy (WPO, arXiv:2406.11827)."""
    torch_empty_cache_steps: int | None = Field(None, ge=1)
    """Optimizer steps after which torch gives a GPU's unused memory back. Null never does."""

    @model_validator(mode="before")
    @classmethod
    def _answer_for_others(cls, content: Any) -> Any:
        """Raise ValueError for any other field of TRL, with what to do instead."""
        if isinstance(content, dict):
            removed = [name for name in _REMOVED if content.get(name, ...) is None]
            content = {name: content[name] for name in content if name not in removed}
        others = set(content) - set(cls.model_fields) if isinstance(content, dict) else set()
        for name in sorted(map(str, others)):
            for advice, names in TRL_FIELDS.items():
                if name in names:
                    raise ValueError(f"{name} can't be set here; {advice}")
            if name in json.loads(TABLE.read_text(encoding="utf-8")):
                raise ValueError(
                    f"{name} is not passed on to TRL, because dpo-tune does not test it; take it "
                    f"out. Allowed: {', '.join(cls.model_fields)}"
                )
        return content
