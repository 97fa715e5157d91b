"""Where a search's results go: Weights & Biases, the Hugging Face Hub, Ray Serve."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpo_train.config_base import Part
from dpo_train.config_fields import Allowed


class WandbConfig(Part):
    """What is sent to Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    """Whether trials are sent to Weights & Biases while they run (`online`), are written to files
    that `wandb sync` sends later (`offline`), or neither (`disabled`)."""
    project: Annotated[str, Allowed("1 to 128 characters, none of / \\ # ? % :")] = Field(
        "dpo-tune", pattern=r"^[^/\\#?%:]{1,128}$"
    )
    """The W&B project. It is created if it does not exist."""
    entity: str | None = None
    """The W&B user or team; by default that of the login."""
    sweep: Annotated[str | None, Allowed("a sweep's id: letters, digits, `_` and `-`")] = Field(
        None, pattern=r"^[A-Za-z0-9_-]+$", examples=["k3f9x2ab"]
    )
    """Id of an existing sweep that the trials join. By default each search creates its own."""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    """Tags of every W&B run of the search."""


class HubConfig(Part):
    """How the winner is published on the Hugging Face Hub."""

    when: Literal["improved", "always", "never"] = "never"
    """Whether the winner is pushed when the search ends: only if it beats the model in the
    repository (`improved`), `always`, or `never`. `dpo-tune push` can push it at any time."""
    repo: str | None = None
    """The repository on the Hugging Face Hub, as owner/name. It is created if it does not exist."""
    private: bool = True
    """Whether the repository must be private: a new one is created private, and one that is public
    is refused."""
    license: str | None = None
    """The winner's licence by the Hub's name, like apache-2.0. It is needed if base model and
    dataset do not state the same licence."""
    merged: bool = False
    """Whether a LoRA is merged into its base before it is pushed. By default the adapter is pushed
    without the base."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the pushed weights. An adapter that is not merged stays as it was trained."""
    gguf: Literal["f16", "q8_0"] | None = None
    """Type of the weights in a GGUF file for llama.cpp, which is then pushed with a Modelfile for
    Ollama; a LoRA is merged for it. By default there is no such file."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.repo is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo):
            raise ValueError(f"repo: {self.repo!r} is not owner/name; type `your-name/its-name`")
        if self.license is not None and not re.fullmatch(r"[a-z0-9.-]+", self.license):
            raise ValueError(
                f"license: {self.license!r} can't be the Hub's name of a licence; type one like "
                "`apache-2.0`"
            )
        if self.when != "never" and self.repo is None:
            raise ValueError(f"when: {self.when} needs a repo; type `repo: your-name/its-name`")
        return self


class ServeConfig(Part):
    """How the winner is served after the search."""

    after: bool = False
    """Whether the search ends by serving its winner on the Ray cluster that it ran on. This
    replaces whatever a config file had the cluster serve."""
    open: bool = False
    """Whether other machines may send requests; they then need the cluster's SERVE_API_KEY."""
    port: int = Field(8000, ge=1, le=65535)
    """The HTTP port."""
    gpus: float = Field(0, ge=0)
    """GPUs of one replica. With a fraction, several replicas share a GPU."""
    min_replicas: int = Field(1, ge=0)
    """The fewest replicas. With 0, all resources are freed while there are no requests."""
    max_replicas: int = Field(1, ge=1)
    """The most replicas. Ray Serve adds replicas while requests queue."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: {self.min_replicas} is more than max_replicas, "
                f"{self.max_replicas}; type `max_replicas: {self.min_replicas}`"
            )
        return self
