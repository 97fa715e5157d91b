"""Reads a GGUF file with llama.cpp itself, from the package cyllama."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cyllama.llama import llama_cpp

_FLOAT32 = 0


class _Model(llama_cpp.LlamaModel):  # type: ignore[misc]
    @property
    def n_vocab(self) -> int:
        """Return the size of the vocabulary. cyllama 0.2.18 reads this attribute but lacks it."""
        return int(self.get_vocab().n_vocab)


class LlamaCpp:
    """A GGUF file in llama.cpp, on a CPU; use it as a context manager."""

    def __init__(self, path: Path, context: int = 512) -> None:
        llama_cpp.disable_logging()
        of_model = llama_cpp.LlamaModelParams()
        of_model.n_gpu_layers = 0
        self._model: Any = _Model(str(path), of_model, verbose=False)
        self._vocabulary = self._model.get_vocab()
        params = llama_cpp.LlamaContextParams()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = 1
        # Keys and values are in float32, so that any difference comes from the file.
        params.type_k = params.type_v = _FLOAT32
        self._context: Any = llama_cpp.LlamaContext(self._model, params, verbose=False)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._model.close()

    def tokens(self, text: str, add_special: bool = False) -> list[int]:
        """Return the tokens of a text, in which special tokens stand by their names."""
        return list(self._vocabulary.tokenize(text, add_special, True))

    def text(self, token: int) -> str:
        """Return the text of a token in an answer; empty if the token is special."""
        return str(self._vocabulary.token_to_piece(token, 0, False))

    def ends(self, token: int) -> bool:
        """Return whether a token ends an answer."""
        return bool(self._vocabulary.is_eog(token))

    def metadata(self, key: str) -> str:
        """Return a value of the file's metadata, as text."""
        return str(self._model.meta_val_str(key))

    def logits(self, tokens: Sequence[int], begin: int = 0) -> np.ndarray[Any, Any]:
        """Return the logits after each token, [tokens, V]; `begin` tokens were given earlier."""
        if begin == 0:
            self._context.kv_cache_clear()
        batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1, verbose=False)
        for at, token in enumerate(tokens):
            batch.add(token, begin + at, [0], True)
        self._context.decode(batch)
        found = [np.array(self._context.get_logits_ith(at)) for at in range(len(tokens))]
        batch.close()
        return np.stack(found)

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """Return the most probable tokens after a prompt, until one ends the answer."""
        found: list[int] = []
        fed: Sequence[int] = prompt
        begin = 0
        while len(found) < most:
            token = int(self.logits(fed, begin)[-1].argmax())
            if self.ends(token):
                break
            found.append(token)
            begin += len(fed)
            fed = [token]
        return found
