"""`confirm.evaluate`: the user's own function, found by its name and asked about a folder."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path

from dpo_train.errors import InputError


def refuse_missing(name: str) -> None:
    """Raises InputError if no module of that name is found; imports none of it."""
    module = name.partition(":")[0]
    _look_in(Path.cwd())
    try:
        found = importlib.util.find_spec(module)
    except ImportError:  # of what stands before its last dot
        found = None
    if found is None:
        raise InputError(
            f"confirm.evaluate: there is no module {module!r} here or among what is installed; "
            "give package.module:function"
        )


def evaluate_folder(name: str, folder: Path, cwd: str) -> dict[str, float]:
    """What the function says of an exported folder. Raises what it raises, and ValueError if it
    gives other than finite numbers by name."""
    _look_in(Path(cwd))
    module, _, function = name.partition(":")
    said = getattr(importlib.import_module(module), function)(folder)
    if not isinstance(said, dict) or not said:
        raise ValueError(f"{name} returned {said!r:.60}; it must return numbers by name")
    numbers = {str(key): float(value) for key, value in said.items()}
    if wrong := [key for key, value in numbers.items() if not math.isfinite(value)]:
        raise ValueError(f"{name} returned no finite number for {', '.join(wrong)}")
    return numbers


def _look_in(folder: Path) -> None:
    """The folder of the command, where an installed script would not look."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
