"""Keeps a library that trials don't need out of their processes, which saves a second each."""

from __future__ import annotations

import sys

_LIBRARY = "wandb"


def leave_out_unused() -> None:
    """Make W&B look as if it were not installed.

    TRL imports W&B if it is installed, but trials don't use it: a child of the driver does. Python
    raises ImportError for a module that is None.
    """
    sys.modules.setdefault(_LIBRARY, None)  # type: ignore[arg-type]


def take_in_unused() -> None:
    """Make W&B importable again, for the user's own code."""
    if sys.modules.get(_LIBRARY, sys) is None:
        del sys.modules[_LIBRARY]
