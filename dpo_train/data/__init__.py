"""Any preference dataset becomes rows of messages: read, checked, filtered and split.

Knows no tokenizer and no model; what only a tokenizer can tell is checked in reference_pass.
"""

from dpo_train.data.load import Pairs, load_pairs
from dpo_train.data.row import SPLITS, Message, Row

__all__ = ["SPLITS", "Message", "Pairs", "Row", "load_pairs"]
