"""The base of all documents in a run folder."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Document(BaseModel):
    """What is written to disk; later versions may add fields."""

    model_config = ConfigDict(extra="ignore")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
"""A name in the run folder, which leads nowhere else: paths are made of it."""
T = TypeVar("T")
OrNone = Annotated[T | None, BeforeValidator(lambda value: value or None)]
"""Where earlier versions wrote an empty object, later ones write null."""
