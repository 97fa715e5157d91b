"""Shows how a model tokenises a dataset, before training: how long the pairs are, how many are left
out as too long, and one pair as it is trained. It writes no file.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_train import model
from dpo_train.config import DataConfig, ModelConfig
from dpo_train.data import Pairs, Row
from dpo_train.data.bad_rows import refuse_nothing_left
from dpo_train.data.special_tokens import SpecialTokens
from dpo_train.errors import BadRow
from dpo_train.reference_pass.chat_template import ChatTemplate, Rendered
from dpo_train.reference_pass.model_checks import ModelChecks
from dpo_train.reference_pass.tokenise import TokenIds, Tokeniser
from dpo_train.reference_pass.tokens import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_ROWS = 2000
"""Most rows that are tokenised: enough for the lengths, and quick."""


@dataclass(frozen=True)
class TrainedPair:
    """A preference pair as text, cut at the same points as its tokens."""

    place: str
    """File and line, or dataset and row."""
    prompt: str
    chosen: str
    """What the model learns to write after the prompt."""
    rejected: str
    tokens: tuple[int, int, int]
    """The number of tokens of prompt, chosen and rejected."""


@dataclass(frozen=True)
class Preview:
    """How a dataset's pairs, or a sample of them, are tokenised.

    The length of a pair is that of its prompt with its longer completion, in tokens.
    """

    tokenizer: str
    """The tokenizer's class, and how many tokens it has."""
    rows: int
    """Rows of all splits."""
    looked_at: int
    """Rows that were tokenised."""
    median: int
    """The median length."""
    most_of_95_percent: int
    """The length that 95 % of the pairs do not exceed."""
    longest: int
    dropped: dict[str, int]
    """How many of the tokenised rows are left out, by reason."""
    example: TrainedPair
    """The first tokenised pair of the training split."""


def preview(base: ModelConfig, data: DataConfig, pairs: Pairs) -> Preview:
    """Tokenise the rows, or 2,000 random ones if there are more.

    `base` must be resolved, and `check_rows` must have checked the rows. Raises InputError if no
    pair is left for a split, and for rows that the model can't train on.
    """
    # Tokenise a sample, and count what is left out.
    rows = [(name, row) for name, split in pairs.splits.items() for row in split]
    drawn = sorted(random.Random(0).sample(range(len(rows)), min(_MOST_ROWS, len(rows))))
    tokenizer = model.load_tokenizer(base, fetched=False)
    found = _tokenised([rows[number] for number in drawn], tokenizer, base)
    dropped: Counter[str] = Counter()
    kept: list[tuple[str, Row, TokenIds]] = []
    lengths: list[int] = []
    for name, row, ids in found:
        if not isinstance(ids, str):
            lengths.append(_length(ids))
            if lengths[-1] > data.max_length_tokens:
                ids = f"longer than {data.max_length_tokens} tokens"
        if isinstance(ids, str):
            dropped[ids] += 1
        else:
            kept.append((name, row, ids))

    # Refuse what the search would refuse.
    left = Counter(name for name, _, _ in kept)
    if len(drawn) == len(rows) or not kept:
        refuse_nothing_left({name: left[name] for name in pairs.splits}, dropped)
    largest = max(max(map(max, vars(ids).values())) for _, _, ids in kept)
    ModelChecks(base, tokenizer).refuse_rows(max(_length(ids) for _, _, ids in kept), largest)

    # Choose a pair to show, and sum up the lengths.
    _, row, ids = next((each for each in kept if each[0] == "train"), kept[0])
    median, most = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return Preview(
        tokenizer=f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens",
        rows=len(rows),
        looked_at=len(drawn),
        median=int(median),
        most_of_95_percent=int(most),
        longest=max(lengths),
        dropped=dict(dropped),
        example=_as_trained(row, ids, tokenizer),
    )


def _tokenised(
    rows: Sequence[tuple[str, Row]], tokenizer: PreTrainedTokenizerBase, base: ModelConfig
) -> list[tuple[str, Row, TokenIds | str]]:
    """Return split, row and token ids of each row, or why it is left out; any length is kept."""
    template = ChatTemplate(tokenizer, repr(base.id))
    special = SpecialTokens(special_tokens(tokenizer))
    texts: list[tuple[str, Row, Rendered]] = []
    refused: list[tuple[str, Row, TokenIds | str]] = []
    for name, row in rows:
        try:
            special.refuse(row)
            texts.append((name, row, template.render(row)))
        except BadRow as bad:
            refused.append((name, row, bad.reason))
    encoded = Tokeniser(tokenizer, sys.maxsize).encode([text for _, _, text in texts])
    tokenised = zip(texts, encoded, strict=True)
    return [*((name, row, ids) for (name, row, _), ids in tokenised), *refused]


def _length(ids: TokenIds) -> int:
    return len(ids.prompt_ids) + max(len(ids.chosen_ids), len(ids.rejected_ids))


def _as_trained(row: Row, ids: TokenIds, tokenizer: Any) -> TrainedPair:
    parts = (ids.prompt_ids, ids.chosen_ids, ids.rejected_ids)
    prompt, chosen, rejected = (tokenizer.decode(part) for part in parts)
    counts = (len(ids.prompt_ids), len(ids.chosen_ids), len(ids.rejected_ids))
    return TrainedPair(row.location, prompt, chosen, rejected, counts)
