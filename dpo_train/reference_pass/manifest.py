"""The manifest.json of prepared data. It is written last, so only finished data have one."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict


class BaseNumbers(BaseModel):
    """The base model's ranking on the pairs of a split."""

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
    """The number of pairs of each split."""
    dropped: dict[str, int]
    """The number of rows that were left out, by reason."""
    pad_token_id: int
    base: dict[str, BaseNumbers]
    """The base model's numbers on the splits eval and test."""
    sha256: dict[str, str] = {"": ""}
    """Checksums of the files. An earlier version wrote none; its data are computed again."""

    def as_text(self) -> str:
        """Return the file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=1)
