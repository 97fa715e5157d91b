"""Packages that only some settings need, and that come with an extra of the project."""

from __future__ import annotations

from importlib.util import find_spec

from dpo_train.errors import InputError


def refuse_missing(setting: str, package: str, extra: str) -> None:
    """Raises InputError if the package that a setting needs is not installed; imports nothing.

    `setting`: as in a YAML, like `model.quantization: nf4`.
    """
    if find_spec(package) is None:
        raise InputError(f"{setting} needs {package}; type `pip install 'dpo-tune[{extra}]'`")
