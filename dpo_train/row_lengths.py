"""Measures how many tokens the rows of a dataset have: the longest rows and a sample of the others.

This module needs a model's tokenizer and nothing else of it, and knows nothing of memory.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dpo_train.config import DataConfig, ModelConfig
from dpo_train.data import Row
from dpo_train.data.row import texts_in
from dpo_train.errors import BadRow
from dpo_train.model import load_tokenizer
from dpo_train.reference_pass.chat_template import ChatTemplate
from dpo_train.reference_pass.tokenise import Tokeniser

_LONGEST_ROWS, _OTHER_ROWS = 50, 150
_MANY_ROWS = 10_000
"""A number of rows for datasets that can't be read yet: more than any pass has."""


@dataclass(frozen=True)
class PairLength:
    """The tokens of a pair's prompt, chosen and rejected answers."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def packed(self) -> int:
        """Tokens of the pair in a packed pass: the prompt counts once, and the last token of each
        answer does not count, because it predicts nothing."""
        return self.prompt + self.chosen + self.rejected - 2

    @property
    def row(self) -> int:
        """Tokens of the longer of the two rows [prompt, chosen] and [prompt, rejected]."""
        return self.prompt + max(self.chosen, self.rejected)


@dataclass(frozen=True)
class RowLengths:
    """The lengths of the longest pairs of a dataset, and of a sample of its pairs."""

    longest: tuple[PairLength, ...]
    sample: tuple[PairLength, ...]
    rows: int
    """The number of rows of the dataset."""

    @property
    def longest_row(self) -> PairLength:
        """The pair with the longest row."""
        return max(self.longest, key=lambda pair: pair.row)

    @property
    def longest_packed(self) -> int:
        """The most tokens of a pair in a packed pass."""
        return max(pair.packed for pair in self.longest)

    @property
    def mean(self) -> PairLength:
        """The mean length of each part over the sample."""

        def mean(values: Sequence[int]) -> int:
            return max(2, round(sum(values) / len(values)))

        parts = zip(*((p.prompt, p.chosen, p.rejected) for p in self.sample), strict=True)
        return PairLength(*(mean(part) for part in parts))

    def largest_pass(self, trials: int, pairs_each: int) -> int:
        """Return the tokens of the largest of 200 random packed passes.

        Each has `pairs_each` pairs of each trial, padded to the trial with the most tokens.
        """
        draw = random.Random(0)
        passes = (
            max(sum(pair.packed for pair in draw.choices(self.sample, k=pairs_each))
                for _ in range(trials))
            for _ in range(200)
        )  # fmt: skip
        return trials * max(passes)


def row_lengths(config: ModelConfig, data: DataConfig, rows: Sequence[Row]) -> RowLengths:
    """Return the lengths of the rows with the most letters, and of a sample of all rows."""
    tokenizer = load_tokenizer(config, fetched=False)
    template = ChatTemplate(tokenizer, repr(config.id))
    most = data.max_length_tokens
    ordered = sorted(rows, key=_letters, reverse=True)
    every = max(1, len(ordered) // _OTHER_ROWS)
    numbers = sorted({*range(min(_LONGEST_ROWS, len(ordered))), *range(0, len(ordered), every)})
    texts = {}
    for number in numbers:
        with suppress(BadRow):
            texts[number] = template.render(ordered[number])
    found = dict(zip(texts, Tokeniser(tokenizer, most).encode(list(texts.values())), strict=True))
    lengths = {
        number: PairLength(len(ids.prompt_ids), len(ids.chosen_ids), len(ids.rejected_ids))
        for number, ids in found.items()
        if not isinstance(ids, str)
    }
    longest = list(lengths.values())
    if any(isinstance(ids, str) and ids.startswith("longer") for ids in found.values()):
        # A row that was not tokenised here may have the greatest length that is allowed.
        longest += unknown_lengths(data).longest
    if not longest:  # the chat template refuses the rows, or all are too long
        return unknown_lengths(data)
    sample = [pair for number, pair in lengths.items() if number % every == 0]
    return RowLengths(tuple(longest), tuple(sample or longest), len(rows))


def unknown_lengths(data: DataConfig) -> RowLengths:
    """Return the lengths of rows that can't be read yet: all have `max_length_tokens`."""
    half = data.max_length_tokens // 2
    pair = PairLength(data.max_length_tokens - half, half, half)
    return RowLengths((pair,), (pair,), data.limit or _MANY_ROWS)


def _letters(row: Row) -> int:
    return sum(len(text) for text in texts_in(row.as_json()))
