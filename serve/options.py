"""These options say what is served and how, however it is started. The key is read here too.

Nothing heavy is imported, so that a mistake is reported at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

KEY, KEY_FILE = "SERVE_API_KEY", "SERVE_API_KEY_FILE"
"""Environment variables: the key, or a file whose first line it is."""
_ORIGIN = re.compile(r"(?!http://[^/]*:80$|https://[^/]*:443$)https?://[^A-Z/\s?#@]+")
"""As browsers send it: in small letters, without a path and without the port that goes unsaid."""


class Options(BaseModel):
    """The options of one process that answers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A folder, a Hub id or an adapter. Several stand apart by commas, each perhaps NAME=PLACE."""
    slots: int = Field(16, ge=1)
    """So many answers are generated at once."""
    context: int = Field(2048, ge=16)
    """A prompt and its answer may have so many tokens together."""
    queue: int = Field(128, ge=1)
    """So many requests may wait. More are answered with 503."""
    seconds: float = Field(120, gt=0)
    """A request may take so long. Then it ends with what there is."""
    generation_config: Literal["model", "none"] = "model"
    """Whose settings hold where a request says nothing: the model's own or OpenAI's."""
    allowed_origins: str = ""
    """Pages of these origins may ask from a browser. Commas stand between them; * allows all."""
    author: str = ""
    """It stands at the foot of the page."""
    cpus: float = Field(1, gt=0)
    """The process computes with so many cores."""

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, given: str) -> str:
        for origin in split_at_commas(given):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin} is no origin; give one like https://a.example:8443, or *"
                )
        return given


def split_at_commas(text: str) -> tuple[str, ...]:
    """Returns what stands between commas, without what is empty."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_key() -> str | None:
    """Returns the key that requests must bring, or None if none is set.

    Raises OSError, and ValueError if the key is empty: that is no key, but a mistake.
    """
    if path := os.environ.get(KEY_FILE):
        key = Path(path).read_text().partition("\n")[0].strip()
    else:
        value = os.environ.get(KEY)
        if value is None:
            return None
        key = value.strip()
    if not key:
        raise ValueError(f"{KEY_FILE if path else KEY} is set and holds no key")
    return key


def is_loopback(host: str) -> bool:
    """Says whether an address is this machine's own, which no other can reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
