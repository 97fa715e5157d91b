"""Preference pairs as token ids, cut as TRL's DPOTrainer cuts them. Knows no model weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo_train.data import Row, shared_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenIds:
    """The token ids of one pair: its prompt and what follows the prompt in either conversation."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def tokenise(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int
) -> TokenIds | str:
    """The token ids of a pair as TRL makes them, or the reason why the pair is dropped.

    A completion starts at the first token in which the rendered prompt and a rendered conversation
    differ.
    """
    prompt = _template(tokenizer, row.prompt, add_generation_prompt=True)
    chosen = _template(tokenizer, row.prompt + row.chosen)
    rejected = _template(tokenizer, row.prompt + row.rejected)
    start = min(shared_length(prompt, chosen), shared_length(prompt, rejected))
    ids = TokenIds(prompt[:start], chosen[start:], rejected[start:])
    if not ids.prompt_ids or not ids.chosen_ids or not ids.rejected_ids:
        return "empty after tokenising"
    if ids.chosen_ids == ids.rejected_ids:
        return "identical after tokenising"
    if start + max(len(ids.chosen_ids), len(ids.rejected_ids)) > max_length_tokens:
        return f"longer than {max_length_tokens} tokens"
    return ids


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[Any], **options: Any) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **options
    )
    return list(encoded["input_ids"])
