"""Where a search's results go: Weights & Biases, the Hugging Face Hub, Ray Serve."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpo_train.config_base import Part
from dpo_train.config_fields import Allowed


class WandbConfig(Part):
    mode: Literal["online", "offline", "disabled"] = "offline"
    """Weights & Biases sees the trials while they run, or later, from files that `wandb sync`
    sends, or never."""
    project: Annotated[str, Allowed("1 to 128 characters, none of / \\ # ? % :")] = Field(
        "dpo-tune", pattern=r"^[^/\\#?%:]{1,128}$"
    )
    """Made at the first run, if need be."""
    entity: str | None = None
    """A user or a team; by default the login's own."""
    sweep: Annotated[str | None, Allowed("a sweep's id: letters, digits, `_` and `-`")] = Field(
        None, pattern=r"^[A-Za-z0-9_-]+$", examples=["k3f9x2ab"]
    )
    """Id of an existing sweep that the trials join; by default each search makes its own."""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    """Of every run."""


class HubConfig(Part):
    when: Literal["improved", "always", "never"] = "never"
    """Whether the winner is pushed when the search ends: if it beats what the repository holds,
    or in any case, or only by `dpo-tune push`."""
    repo: str | None = None
    """The repository on the Hugging Face Hub, owner/name; made if need be."""
    private: bool = True
    """Whether a repository that is made is private. One that is public is refused then."""
    license: str | None = None
    """The Hub's name of the winner's licence, like apache-2.0; needed where base model and dataset
    do not state the same one."""
    merged: bool = False
    """Whether a LoRA goes into its base's weights; else the adapter alone is pushed."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of pushed weights; an adapter alone stays as it was trained."""
    gguf: Literal["f16", "q8_0"] | None = None
    """Whether a GGUF file for llama.cpp and a Modelfile for Ollama are pushed beside the weights,
    and how its weights are stored; a LoRA is merged for it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.repo is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo):
            raise ValueError(f"repo: {self.repo!r} is no owner/name; type `your-name/its-name`")
        if self.license is not None and not re.fullmatch(r"[a-z0-9.-]+", self.license):
            raise ValueError(f"license: {self.license!r} is no id of the Hub's, like apache-2.0")
        if self.when != "never" and self.repo is None:
            raise ValueError(f"when: {self.when} needs a repo; type `repo: your-name/its-name`")
        return self


class ServeConfig(Part):
    after: bool = False
    """Whether a search ends by serving its winner on the Ray cluster that it ran on, in place of
    what a config file had that cluster serve."""
    open: bool = False
    """Whether others than a node's own programs may ask, who then need the cluster's
    SERVE_API_KEY."""
    port: int = Field(8000, ge=1, le=65535)
    """The HTTP port."""
    gpus: float = Field(0, ge=0)
    """Of a replica; a fraction shares one."""
    min_replicas: int = Field(1, ge=0)
    """0 gives everything back when nobody asks."""
    max_replicas: int = Field(1, ge=1)
    """Ray Serve adds replicas as requests queue."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: {self.min_replicas} is more than max_replicas, {self.max_replicas}"
            )
        return self
