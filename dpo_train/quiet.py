"""Keeps libraries from printing what a user can't act on."""

from __future__ import annotations

import warnings


def quieten_libraries() -> None:
    """Switch off progress bars of loading weights, and warnings of future changes in libraries.

    A download from the Hub still shows its progress bar.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging  # slow to import

    logging.disable_progress_bar()
