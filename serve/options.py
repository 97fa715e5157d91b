"""What is served and how, however it is started; and the key. Light: a mistake is told at once."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

KEY, KEY_FILE = "SERVE_API_KEY", "SERVE_API_KEY_FILE"
"""Environment variables: the key, or a file whose first line it is."""


class Options(BaseModel):
    """Of one process that answers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A folder, a Hub id or an adapter; several apart by commas, each perhaps as NAME=PLACE."""
    slots: int = Field(16, ge=1)
    """Answers that are made at once."""
    context: int = Field(2048, ge=16)
    """Tokens of a prompt and its answer together."""
    queue: int = Field(128, ge=1)
    """Requests that may wait; more are answered 503."""
    seconds: float = Field(120, gt=0)
    """For one request; then it ends with what there is."""
    author: str = ""
    """Stands at the foot of the page."""
    cpus: float = Field(1, gt=0)
    """Cores that it computes with."""


def read_key() -> str | None:
    """The key that requests must bring, if one is set. Raises OSError, and ValueError if it is
    empty: that is no key, but a mistake."""
    if path := os.environ.get(KEY_FILE):
        key = Path(path).read_text().partition("\n")[0].strip()
    else:
        given = os.environ.get(KEY)
        if given is None:
            return None
        key = given.strip()
    if not key:
        raise ValueError(f"{KEY_FILE if path else KEY} is set and holds no key")
    return key


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
