"""Tokenises the prompts of requests, in one thread beside the event loop.

Problem: a message could contain a special token like `<|im_end|>` and so fake a turn of the
assistant or the system. So special tokens in messages are tokenised as ordinary letters.
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
"""There is one thread, because a tokenizer can't be used by several threads at once."""
_FIRST_MARK = 0xF0000
"""The first of the characters that Unicode reserves for private use."""


class PromptEncoder:
    """Tokenises prompts of at most `context` tokens with one tokenizer."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        longest = max(map(len, tokenizer.get_vocab()))
        self._most_characters = context * longest
        """A longer text surely has more tokens than the context, so it is not tokenised."""
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = sorted({*special, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    async def of_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the token ids of messages in the chat template. Raises ApiError 400."""
        self._refuse_longer(sum(len(message["content"]) for message in messages), "messages")
        return await _in_thread(
            lambda: self._chat(messages), "messages: the chat template refuses them", None
        )

    async def of_text(self, text: str) -> list[int]:
        """Returns the token ids of a raw prompt, which may contain special tokens.

        Raises ApiError 400.
        """
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
        # Without special tokens in the messages, the template renders and tokenises them.
        spelled = sorted({s for m in messages for s in self._special.findall(m["content"])})
        if not spelled:
            encoded = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            return list(encoded["input_ids"])
        # The template may move or drop text, so it gets a mark, an unused character, for each
        # special token. Then we tokenise the rendered text, with the marks as letters.
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
        for piece in re.split(f"([{''.join(texts)}])", rendered):
            tokenizer = self._letters if piece in texts else self._tokenizer
            ids += tokenizer(texts.get(piece, piece), add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _letters(self) -> Any:
        """A copy of the tokenizer that treats special tokens as ordinary text.

        The setting would change all uses of the original, so it is a copy.
        """
        letters = copy.deepcopy(self._tokenizer)
        letters.split_special_tokens = True
        return letters


async def _in_thread(encode: Callable[[], list[int]], what: str, param: str | None) -> list[int]:
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREAD, encode)
    except Exception as error:  # templates may raise anything, tokenizers fail at lone surrogates
        raise ApiError(400, f"{what}: {one_line(error)}", param=param) from None
