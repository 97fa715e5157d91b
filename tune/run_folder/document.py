"""Defines the base class and field types of all JSON documents in a run folder."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Document(BaseModel):
    """A JSON document. Unknown fields are ignored, since later versions may add some."""

    model_config = ConfigDict(extra="ignore")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
"""A name of which paths in the run folder are made, so it can't lead out of the folder."""
T = TypeVar("T")
OrNone = Annotated[T | None, BeforeValidator(lambda value: value or None)]
"""A value or null. Earlier versions wrote an empty object instead of null."""
