"""Keeps libraries from printing what nobody who trains a model can act on."""

from __future__ import annotations

import warnings


def quieten_libraries() -> None:
    """Switches off bars that show weights being read, and what libraries announce to those who call
    them. A download from the Hub still has its bar."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging  # slow to import

    logging.disable_progress_bar()
