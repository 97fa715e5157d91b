"""manifest.json of prepared data: what they hold. It is written last."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict


class BaseNumbers(BaseModel):
    """What the base model has on the pairs of a split."""

    model_config = ConfigDict(frozen=True)

    ranking: float
    interval: tuple[float, float]
    """The 95 % interval of `ranking`."""
    pairs: int


class Manifest(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True)

    format: int
    pairs: dict[str, int]
    """How many each split has."""
    dropped: dict[str, int]
    """How many rows each reason took."""
    pad_token_id: int
    base: dict[str, BaseNumbers]
    """Of the splits eval and test."""
    sha256: dict[str, str] = {"": ""}
    """Checksums of the files. An earlier version wrote none; its data are computed anew."""

    def as_text(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1)
