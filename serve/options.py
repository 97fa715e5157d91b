"""Defines the options of the server, for each way to start it, and reads the API key.

Nothing heavy is imported, so that mistakes are reported at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

KEY, KEY_FILE = "SERVE_API_KEY", "SERVE_API_KEY_FILE"
"""The environment variables of the key, and of a file whose first line is the key."""
_ORIGIN = re.compile(r"(?!http://[^/]*:80$|https://[^/]*:443$)https?://[^A-Z/\s?#@]+")
"""An origin as browsers send it: in small letters, without a path and without the default port."""


class Options(BaseModel):
    """The options of one server process."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A folder, a Hub id or an adapter, or several separated by commas; each may be NAME=MODEL."""
    slots: int = Field(16, ge=1)
    """How many answers are generated at once."""
    context: int = Field(2048, ge=16)
    """The most tokens of a prompt and its answer together."""
    queue: int = Field(128, ge=1)
    """How many requests may wait. Further requests get status 503."""
    seconds: float = Field(120, gt=0)
    """The time limit of a request. Then its answer ends as it is."""
    generation_config: Literal["model", "none"] = "model"
    """The settings that a request leaves out: the model's own, or OpenAI's for `none`."""
    allowed_origins: str = ""
    """Origins whose pages may call the API from a browser, separated by commas; * allows all."""
    author: str = ""
    """The text at the bottom of the web page."""
    cpus: float = Field(1, gt=0)
    """How many CPU cores the process computes with."""

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, given: str) -> str:
        for origin in split_at_commas(given):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin} is no origin; give one like https://a.example:8443, or * for all"
                )
        return given


def split_at_commas(text: str) -> tuple[str, ...]:
    """Returns the items between commas, without empty ones."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def read_key() -> str | None:
    """Returns the key that requests must have, or None if no key is set.

    Raises OSError, and ValueError if the key is empty, since that is a mistake.
    """
    if path := os.environ.get(KEY_FILE):
        key = Path(path).read_text().partition("\n")[0].strip()
    else:
        value = os.environ.get(KEY)
        if value is None:
            return None
        key = value.strip()
    if not key:
        raise ValueError(f"{KEY_FILE if path else KEY} is set but holds no key; set or unset it")
    return key


def is_loopback(host: str) -> bool:
    """Returns whether an address is this machine's own, which other machines can't reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
