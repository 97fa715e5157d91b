"""What a model's tokenizer makes of a dataset, told before anything is trained: how long the pairs
are, what is left out for its length, and one pair as it is trained. Writes nothing.
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
"""Enough for the lengths of any dataset; more would be waited for."""


@dataclass(frozen=True)
class TrainedPair:
    """A preference pair as text, cut where its tokens are cut."""

    place: str
    """File and line, or dataset and row."""
    prompt: str
    chosen: str
    """What the model learns to write after the prompt."""
    rejected: str
    tokens: tuple[int, int, int]
    """How many the three have."""


@dataclass(frozen=True)
class Preview:
    """The tokens of a dataset's pairs, of all of them or of a sample."""

    tokenizer: str
    """Its class and how many tokens it knows."""
    rows: int
    """Of all splits."""
    looked_at: int
    """Rows that were tokenised."""
    median: int
    """Tokens of a prompt with its longer completion."""
    most_of_95_percent: int
    longest: int
    dropped: dict[str, int]
    """How many of those looked at each reason leaves out."""
    example: TrainedPair
    """The first pair of the training split that was looked at."""


def preview(base: ModelConfig, data: DataConfig, pairs: Pairs) -> Preview:
    """Tokenises the rows, or 2,000 of them drawn at random where there are more.

    `base` must be resolved, and the rows be checked by `check_rows`. Raises InputError where no
    pair is left for a split, and for rows that the model can't be trained on.
    """
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
    left = Counter(name for name, _, _ in kept)
    if len(drawn) == len(rows) or not kept:
        refuse_nothing_left({name: left[name] for name in pairs.splits}, dropped)
    largest = max(max(map(max, vars(ids).values())) for _, _, ids in kept)
    ModelChecks(base, tokenizer).refuse_rows(max(_length(ids) for _, _, ids in kept), largest)
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
    """Split, row and token ids, or why there are none; too long is none of the reasons."""
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
