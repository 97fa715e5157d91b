"""Turns pairs into token ids, cut as TRL's DPOTrainer cuts them. It knows no model weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo_train.data.row import shared_length
from dpo_train.reference_pass.chat_template import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPARED = 50
"""Rows that are tokenised in both ways before the faster one is trusted."""


@dataclass(frozen=True)
class TokenIds:
    """The token ids of one pair: its prompt, and what follows it in both conversations."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True)
class _Encoded:
    """The token ids that a row's three texts begin with, and the other ids of each text."""

    shared: list[int]
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Tokeniser:
    """Turns rendered rows into token ids, in the tokenizer's own threads.

    The three texts of a row begin with the same text, which is half of all their letters. So we
    encode it only once, up to a special token: most tokenizers encode the text after such a token
    independently. If a tokenizer doesn't, the first rows show it, and texts are encoded whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> None:
        self._tokenizer: Any = tokenizer
        self._most = max_length_tokens
        self._special = _separators(tokenizer)
        self._compared = 0

    def encode(self, texts: Sequence[Rendered]) -> list[TokenIds | str]:
        """Return the token ids of each pair as TRL makes them, or why the pair is left out.

        A completion starts at the first token in which the rendered prompt and a rendered
        conversation differ.
        """
        if self._special is not None and self._compared < _COMPARED:
            first = texts[: _COMPARED - self._compared]
            self._compared += len(first)
            if self._cut_all(self._in_parts(first)) != self._cut_all(self._whole(first)):
                self._special = None
        encoded = self._whole(texts) if self._special is None else self._in_parts(texts)
        return self._cut_all(encoded)

    def _whole(self, texts: Sequence[Rendered]) -> list[_Encoded]:
        flat = [text for row in texts for text in (row.prompt, row.chosen, row.rejected)]
        if not flat:
            return []
        # The template has written the special tokens already.
        encoded: Any = self._tokenizer(
            flat, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        triples = zip(ids[::3], ids[1::3], ids[2::3], strict=True)
        return [_Encoded([], *triple) for triple in triples]

    def _in_parts(self, texts: Sequence[Rendered]) -> list[_Encoded]:
        assert self._special is not None
        parts: list[str] = []
        for row in texts:
            # The shared beginning is nearly always the whole prompt. Only otherwise we compare
            # letter by letter.
            beginning = row.prompt
            if not (row.chosen.startswith(beginning) and row.rejected.startswith(beginning)):
                beginning = beginning[: shared_length(beginning, row.chosen)]
                beginning = beginning[: shared_length(beginning, row.rejected)]
            end = max((found.end() for found in self._special.finditer(beginning)), default=0)
            parts += [beginning[:end], row.prompt[end:], row.chosen[end:], row.rejected[end:]]
        backend = self._tokenizer.backend_tokenizer
        encodings = backend.encode_batch_fast(parts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        return [_Encoded(*ids[first : first + 4]) for first in range(0, len(ids), 4)]

    def _cut_all(self, encoded: Sequence[_Encoded]) -> list[TokenIds | str]:
        return [self._cut(each) for each in encoded]

    def _cut(self, row: _Encoded) -> TokenIds | str:
        start = min(shared_length(row.prompt, row.chosen), shared_length(row.prompt, row.rejected))
        ids = TokenIds(row.shared + row.prompt[:start], row.chosen[start:], row.rejected[start:])
        if not ids.prompt_ids or not ids.chosen_ids or not ids.rejected_ids:
            return "empty after tokenising"
        if ids.chosen_ids == ids.rejected_ids:
            return "identical after tokenising"
        longer = max(len(ids.chosen_ids), len(ids.rejected_ids))
        if len(ids.prompt_ids) + longer > self._most:
            return f"longer than {self._most} tokens"
        return ids


def _separators(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern of the special tokens after which a text may be cut.

    A token whose match depends on the following text is not one of them. Returns None for a
    tokenizer that is not from the `tokenizers` library, and for one without such tokens.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and not (token.rstrip or token.single_word or token.normalized)
    ]
    if not tokens:
        return None
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
