"""The part of a trial's configuration that says what is minimised."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dpo_train.config_base import Part

LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)

COUPLED_LOSSES = ("aot", "aot_unpaired", "sft")
"""Those that sort a batch's rows, or take a mean over all its tokens: of two halves of a batch the
mean is not that of the whole."""
NOT_PACKED = ("aot", "aot_unpaired")
"""They sort over a batch, so a pair has no loss of its own."""


class DpoConfig(Part):
    loss: Literal[LOSSES] | list[Literal[LOSSES]] = "sigmoid"  # type: ignore[valid-type]
    """One of TRL's losses, or several that are added."""
    loss_weights: list[float] | None = None
    """Weights of several losses; 1 each by default."""
    beta: float = Field(0.1, gt=0, le=1000)
    """How strongly the policy is held to the reference (tau for ipo)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """For robust, exo_pair and aot, and under `trainer: packed` for sigmoid: the share of labels
    taken to be flipped. TRL's sigmoid knows none."""
    discopop_tau: float = Field(0.05, gt=0)
    """For discopop: temperature of the modulation."""

    @property
    def losses(self) -> list[str]:
        return [self.loss] if isinstance(self.loss, str) else list(self.loss)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.losses:
            raise ValueError("loss: the list is empty; name at least one loss")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.losses)} losses; "
                "give one for each"
            )
        if "exo_pair" in self.losses and self.label_smoothing == 0:
            raise ValueError("exo_pair needs label_smoothing above 0; its paper uses 1e-3")
        return self
