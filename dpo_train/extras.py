"""Optional packages that only some settings need. The project's extras install them."""

from __future__ import annotations

from importlib.util import find_spec

from dpo_train.command_line import python_module
from dpo_train.errors import InputError

_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3"}
"""The package of each kind of attention. If it is missing, transformers would download a kernel
from the Hub and run it, so we refuse."""


def refuse_attention(attention: str | None, device: str) -> None:
    """Raise InputError for a kind of attention that needs a GPU or a package that is missing."""
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
    """Raise InputError if the package that a setting needs is not installed. Imports nothing.

    `setting` is written as in a YAML, like `model.quantization: nf4`.
    """
    if find_spec(package) is None:
        command = python_module("pip", "install", f"dpo-tune[{extra}]")
        raise InputError(f"{setting} needs {package}; type `{command}`")
