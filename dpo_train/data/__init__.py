"""Turns any preference dataset into rows of messages: it reads, checks, filters and splits them.

This package knows no tokenizer and no model. Checks that need a tokenizer are in reference_pass.
"""

from dpo_train.data.load import Pairs, load_pairs
from dpo_train.data.row import SPLITS, Message, Row

__all__ = ["SPLITS", "Message", "Pairs", "Row", "load_pairs"]
