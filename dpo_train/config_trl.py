"""Fields of TRL's DPOConfig that a trial may set by their own names, and why it may not set others.

Imports no TRL: the names of all its fields stand in a file that `trainers.trl_fields` makes.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_train.config_base import Part
from dpo_train.config_names import OF_TRL

TABLE = Path(__file__).parent / "trainers" / "trl_fields.json"
"""The default of every field of the pinned TRL's DPOConfig, by its name."""
F_DIVERGENCE_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
)  # fmt: skip
"""The losses that TRL computes with another divergence than the reverse KL."""


class TrlConfig(Part):
    """The defaults are TRL's own."""

    f_divergence_type: Literal[
        "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"
    ] = "reverse_kl"  # fmt: skip
    """What holds the policy to the reference (f-DPO, arXiv:2309.16240)."""
    f_alpha_divergence_coef: float = Field(0.5, gt=0)
    """The α of `alpha_divergence`."""
    use_weighting: bool = False
    """Whether pairs are weighted by how likely the policy finds them (WPO, arXiv:2406.11827)."""
    torch_empty_cache_steps: int | None = Field(None, ge=1)
    """A GPU's unused memory is given back after so many steps."""

    @model_validator(mode="before")
    @classmethod
    def _answer_for_others(cls, content: Any) -> Any:
        """Says of a field that TRL has, and that is none of these, what to do instead."""
        others = set(content) - set(cls.model_fields) if isinstance(content, dict) else set()
        for name in sorted(map(str, others)):
            for advice, names in OF_TRL.items():
                if name in names:
                    raise ValueError(f"{name} can't be set here; {advice}")
            if name in json.loads(TABLE.read_text(encoding="utf-8")):
                raise ValueError(
                    f"{name} is not passed on to TRL, because dpo-tune does not test it; take it "
                    f"out. Allowed: {', '.join(cls.model_fields)}"
                )
        return content
