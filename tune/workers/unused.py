"""What trials don't need and stays out of their processes: a second of imports of each."""

from __future__ import annotations

import sys

_LIBRARY = "wandb"


def leave_out_unused() -> None:
    """TRL imports W&B wherever it is installed, but no trial speaks to it: a child of the driver
    does. So W&B counts as not installed here. Python raises ImportError for what is None."""
    sys.modules.setdefault(_LIBRARY, None)  # type: ignore[arg-type]


def take_in_unused() -> None:
    """The user's own code may import it."""
    if sys.modules.get(_LIBRARY, sys) is None:
        del sys.modules[_LIBRARY]
