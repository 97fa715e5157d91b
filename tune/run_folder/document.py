"""The base of all documents in a run folder."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Document(BaseModel):
    """What is written to disk; later versions may add fields."""

    model_config = ConfigDict(extra="ignore")


T = TypeVar("T")
OrNone = Annotated[T | None, BeforeValidator(lambda value: value or None)]
"""Where earlier versions wrote an empty object, later ones write null."""
