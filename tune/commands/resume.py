"""Reads the number of `dpo-tune resume --trials`."""

from __future__ import annotations

import re

from dpo_train.errors import InputError
from tune.config.load import load_search
from tune.run_folder.paths import RunFolder


def wanted_trials(folder: RunFolder, text: str | None) -> int | None:
    """Return how many trials the run shall have in all, from `24` or `+8`. Raises InputError."""
    if text is None:
        return None
    if not re.fullmatch(r"\+?[0-9]{1,9}", text):
        raise InputError(
            f"--trials: {text!r} is not a number; type `--trials 24` or `--trials +16`"
        )
    now = load_search(folder.search_yaml).total_trials
    return int(text) + (now if text.startswith("+") else 0)
