"""The loss in a trial's configuration."""

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
"""Losses that need the whole batch at once: they sort its rows, or take a mean over all its tokens.
The mean of two halves of a batch would be another loss."""
NOT_PACKED = ("aot", "aot_unpaired")
"""Losses that `trainer: packed` can't train: they sort a batch, so a single pair has no loss."""


class DpoConfig(Part):
    """The loss and its settings."""

    loss: Literal[LOSSES] | list[Literal[LOSSES]] = "sigmoid"  # type: ignore[valid-type]
    """One of TRL's losses, or a list of losses that are added up."""
    loss_weights: list[float] | None = None
    """The weight of each loss in a list. Null gives each the weight 1."""
    beta: float = Field(0.1, gt=0, le=1000)
    """How strongly the policy is held to the reference. It is ipo's tau."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The assumed share of wrong labels, for robust, exo_pair and aot. sigmoid uses it only with
    `trainer: packed`."""
    discopop_tau: float = Field(0.05, gt=0)
    """The temperature of discopop's modulation."""

    @property
    def losses(self) -> list[str]:
        """The names of the losses, as a list."""
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
