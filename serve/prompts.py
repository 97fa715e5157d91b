"""This makes token ids of what requests say, in one thread beside the event loop.

A text in a request is text: where it spells a special token of the model, as `<|im_end|>` is one,
it becomes the tokens of those letters, so that nobody can write another's turn or the system's.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from serve.errors import ApiError
from serve.model_source import one_line

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
"""One, because a tokenizer can't be used by several threads at once."""
_FIRST_MARK = 0xF0000
"""Of the characters that Unicode leaves to private use."""


class PromptEncoder:
    """Makes token ids with one tokenizer, for prompts of at most `context` tokens."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        longest = max(map(len, tokenizer.get_vocab()))
        self._most_characters = context * longest
        """A longer text has more tokens than the context, however it is cut."""
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = sorted({*special, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    async def of_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the messages as the chat template renders them. Raises ApiError 400."""
        self._refuse_longer(sum(len(message["content"]) for message in messages), "messages")
        return await _in_thread(
            lambda: self._chat(messages), "messages: the chat template refuses them", None
        )

    async def of_text(self, text: str) -> list[int]:
        """Returns a raw prompt, in which special tokens are what they are. Raises ApiError 400."""
        self._refuse_longer(len(text), "prompt")
        return await _in_thread(
            lambda: list(self._tokenizer(text)["input_ids"]), "prompt", "prompt"
        )

    def _refuse_longer(self, characters: int, param: str) -> None:
        if characters > self._most_characters:
            raise ApiError(
                400,
                f"{characters} characters are more than the context of {self._context} tokens",
                param=param,
                code="context_length_exceeded",
            )

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        spelled = sorted({s for m in messages for s in self._special.findall(m["content"])})
        if not spelled:
            encoded = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            return list(encoded["input_ids"])
        # The template gets a mark in place of each, and may move and drop it with its text.
        contents = "".join(message["content"] for message in messages)
        free = (chr(code) for code in range(_FIRST_MARK, 0x110000) if chr(code) not in contents)
        marks = dict(zip(spelled, free, strict=False))
        marked = [
            {**m, "content": self._special.sub(lambda found: marks[found[0]], m["content"])}
            for m in messages
        ]
        rendered = self._tokenizer.apply_chat_template(
            marked, add_generation_prompt=True, tokenize=False
        )
        texts = {mark: text for text, mark in marks.items()}
        ids: list[int] = []
        for part in re.split(f"([{''.join(texts)}])", rendered):
            tokenizer = self._letters if part in texts else self._tokenizer
            ids += tokenizer(texts.get(part, part), add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _letters(self) -> Any:
        """The tokenizer, to which a special token's text is like any other.

        A copy, for what it is set to holds for all that use it.
        """
        letters = copy.deepcopy(self._tokenizer)
        letters.split_special_tokens = True
        return letters


async def _in_thread(encode: Callable[[], list[int]], what: str, param: str | None) -> list[int]:
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREAD, encode)
    except Exception as error:  # templates raise what they like, tokenizers at a lone surrogate
        raise ApiError(400, f"{what}: {one_line(error)}", param=param) from None
