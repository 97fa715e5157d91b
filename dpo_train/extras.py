"""Packages that only some settings need, and that come with an extra of the project."""

from __future__ import annotations

from importlib.util import find_spec

from dpo_train.command_line import python_module
from dpo_train.errors import InputError

_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3"}
"""The package of each. Without it transformers would fetch a kernel from the Hub, and run it."""


def refuse_attention(attention: str | None, device: str) -> None:
    """Raises InputError for a way to compute attention that can't be had here."""
    package = _FLASH.get(attention or "")
    if package is None:
        return
    if device != "cuda":
        raise InputError(f"model.attention: {attention} needs a GPU; type `attention: sdpa`")
    if find_spec(package) is None:
        command = python_module("pip", "install", "flash-attn")
        raise InputError(
            f"model.attention: {attention} needs the package {package}, which is not installed; "
            f"install it (`{command}`), or type `attention: sdpa`"
        )


def refuse_missing(setting: str, package: str, extra: str) -> None:
    """Raises InputError if the package that a setting needs is not installed; imports nothing.

    `setting`: as in a YAML, like `model.quantization: nf4`.
    """
    if find_spec(package) is None:
        command = python_module("pip", "install", f"dpo-tune[{extra}]")
        raise InputError(f"{setting} needs {package}; type `{command}`")
