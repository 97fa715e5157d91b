"""Generates many answers at once: requests join and leave the running batch between tokens.

This is iteration-level scheduling (Orca, OSDI 2022) over a fixed number of slots of a KV cache,
which is allocated once.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from typing import Any

import torch

from serve import attention, self_check
from serve.attention import BatchStep, PromptChunk, SlotCache, base_of
from serve.engine import Chunk, EngineMonitor, GenerationRequest, RequestQueue
from serve.model_source import served_context
from serve.sampling import sample_next_tokens
from serve.sampling_params import SamplingState
from serve.text import TextStream

_MAX_FAILURES = 3
"""After this many failed steps in a row the engine ends, and health checks fail."""
_MAX_PREFILL_TOKENS = 1024
"""The most prompt tokens that one step prefills. A longer prompt is prefilled in chunks, between
which other requests are decoded."""


class SlotEngine:
    """Runs a model from serve.models for many requests, in its own thread."""

    def __init__(
        self, model: Any, tokenizer: Any, slots: int, context: int, max_waiting: int
    ) -> None:
        """Checks the model and starts the thread.

        The engine runs `slots` requests at once, each with up to `context` tokens of prompt and
        answer; `max_waiting` more may wait. The model may limit the context further. Raises
        ModelError for a model whose answers here would differ from those of transformers.
        """
        # The slots.
        context = served_context(model.config, context)
        self.model = model
        self._tokenizer = tokenizer
        self.slots, self.context, self.max_waiting = slots, context, max_waiting
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        """The number of logits of a token."""
        self._cache = SlotCache(slots + 1, context)  # the last slot is for a long prompt
        self._end_token_ids: set[int | None] = set()  # the self-check's answers don't end early
        # The requests.
        self.monitor = EngineMonitor()
        self._waiting = RequestQueue()
        self._prefilling: deque[_Running] = deque()
        """Requests whose prompt is not yet in the cache. Of the first one, a part may be there."""
        self._decoding: list[_Running] = []
        """Requests with a prefilled prompt, in the order of their slots, which start at slot 0."""
        self._logit_indices = torch.empty(0)
        """The rows of hidden states that the output head computes logits for."""
        # The self-check, then the thread.
        self_check.check(model, self._generate_now, slots, context)
        ends = model.generation_config.eos_token_id  # one id, a list, or None, which matches no id
        ends = ends if isinstance(ends, list) else [ends]
        self._end_token_ids = {tokenizer.eos_token_id, *ends}
        self._take_model()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request. Raises QueueFull."""
        idle = self.slots - len(self._decoding) - len(self._prefilling)
        self._waiting.put(request, self.max_waiting + max(0, idle))

    def close(self) -> None:
        """Finishes the submitted requests, ends the thread and restores the model."""
        self._waiting.close()
        self._thread.join()
        self._release_model()

    def _take_model(self) -> None:
        """Gives the model the engine's attention and output head. Raises UnsupportedAttention."""
        self._own_attention = attention.set_attention(base_of(self.model), attention.NAME)
        head = self.model.get_output_embeddings()
        # The logits of all tokens of a long prompt would take gigabytes, so the head gets only the
        # hidden states at the logit indices.
        self._hook = head.register_forward_pre_hook(lambda _, args: args[0][self._logit_indices])

    def _release_model(self) -> None:
        """Restores what `_take_model` changed."""
        self._hook.remove()
        attention.set_attention(base_of(self.model), self._own_attention)

    def _generate_now(self, requests: list[GenerationRequest], max_prefill_tokens: int) -> None:
        """Generates answers in the caller's thread, before the engine's own starts.

        One step prefills `max_prefill_tokens` prompt tokens at most. Raises the model's errors.
        """
        self._take_model()
        try:
            for request in requests:
                self._waiting.put(request, len(requests))
            while len(self._waiting) or self._decoding or self._prefilling:
                self._admit()
                self._step(max_prefill_tokens)
        finally:
            self._release_model()

    def _run(self) -> None:
        """Runs steps until the engine is closed or too many steps fail; the thread's function."""
        failures = 0
        try:
            while failures < _MAX_FAILURES and self._admit():
                try:
                    self._step(_MAX_PREFILL_TOKENS)
                    failures = 0
                except Exception as error:  # likely out of memory, so later requests may succeed
                    failures += 1
                    running = [each.request for each in [*self._decoding, *self._prefilling]]
                    self._decoding, self._prefilling = [], deque()
                    self._fail(running, str(error))
        finally:  # the engine was closed, or its device no longer works
            self._fail(self._waiting.drain(), "the engine has ended")

    def _fail(self, requests: list[GenerationRequest], reason: str) -> None:
        """Ends requests with an error."""
        for request in requests:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                request.send(Chunk(text=reason, finish_reason="error"))
            self.monitor.on_end(request)

    def _admit(self) -> bool:
        """Moves requests from the queue into free slots, and waits for one if all slots are free.

        Returns False once the queue is closed and nothing is left to do.
        """
        while len(self._decoding) + len(self._prefilling) < self.slots:
            is_idle = not self._decoding and not self._prefilling
            request = self._waiting.get(block=is_idle)
            if request is None:
                return not is_idle
            try:
                self._prefilling.append(_Running(request, self._tokenizer))
            except Exception as error:  # only this request fails
                self._fail([request], str(error))
        return True

    @torch.inference_mode()
    def _step(self, max_prefill_tokens: int) -> None:
        """Decodes a token of each running answer, and prefills up to `max_prefill_tokens`."""
        # 1. Plan: one token for each decoding request, then the prompt chunks.
        chunks = self._next_prompt_chunks(max_prefill_tokens)
        running = [*self._decoding, *(prefilling for prefilling, _ in chunks)]
        if not running:
            return
        step = BatchStep(
            [decoding.length - 1 for decoding in self._decoding], [chunk for _, chunk in chunks],
            self.model.device,
        )  # fmt: skip
        ids = [decoding.request.output_ids[-1:] for decoding in self._decoding]
        ids += [
            prefilling.request.prompt_ids[chunk.start : chunk.start + chunk.length]
            for prefilling, chunk in chunks
        ]
        # 2. Compute: one forward pass of all these tokens.
        logits = self._forward(ids, step, [each.request.adapter for each in running])
        for prefilling, chunk in chunks:
            prefilling.prefilled += chunk.length
        # 3. Only the last prompt may be incomplete. It gets no token yet.
        if chunks and not chunks[-1][0].is_prefilled:
            running.pop()
            chunks.pop()
        # 4. Requests with a complete prompt decode from now on.
        for prefilling, chunk in chunks:
            if chunk.slot != len(self._decoding):
                self._cache.move(chunk.slot, len(self._decoding), prefilling.prefilled)
            self._decoding.append(self._prefilling.popleft())
        # 5. Draw the next token of each request.
        self._append_tokens(running, logits[: len(running)])

    def _next_prompt_chunks(self, max_tokens: int) -> list[tuple[_Running, PromptChunk]]:
        """Chooses which prompt tokens are prefilled next, `max_tokens` in total at most.

        Whole prompts go into the slots after the decoding ones. The slots of other requests move
        while a long prompt is prefilled in chunks, so it has the last slot until it is complete.
        """
        self._prefilling = deque(each for each in self._prefilling if not self._is_cancelled(each))
        chunks: list[tuple[_Running, PromptChunk]] = []
        for prefilling in self._prefilling:
            prompt_length = len(prefilling.request.prompt_ids)
            length = min(max_tokens, prompt_length - prefilling.prefilled)
            is_whole = prefilling.prefilled == 0 and length == prompt_length
            if length == 0 or (not is_whole and chunks and chunks[0][1].slot == self.slots):
                break
            slot = len(self._decoding) + len(chunks) if is_whole else self.slots
            chunks.append((prefilling, PromptChunk(slot, prefilling.prefilled, length)))
            max_tokens -= length
        return chunks

    def _is_cancelled(self, running: _Running) -> bool:
        if running.request.is_cancelled:
            self.monitor.on_end(running.request)
        return running.request.is_cancelled

    def _forward(
        self, ids: list[list[int]], step: BatchStep, adapters: list[str | None]
    ) -> torch.Tensor:
        """Returns the logits of each request's last token, of shape (requests, vocabulary).

        `ids` has the new tokens of each request, `adapters` its adapter.
        """
        device = self.model.device
        adapter_arguments = {}
        if hasattr(self.model, "peft_config"):
            adapter_arguments["adapter_names"] = [
                adapter or "__base__"
                for adapter, row in zip(adapters, ids, strict=True)
                for _ in row
            ]
        last_tokens = [end - 1 for end in itertools.accumulate(map(len, ids))]
        self._logit_indices = torch.tensor(last_tokens, device=device)
        output = self.model(
            input_ids=torch.tensor([token for row in ids for token in row], device=device)[:, None],
            position_ids=step.positions[:, None],
            use_cache=False,
            cache=self._cache,
            step=step,
            **adapter_arguments,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _append_tokens(self, running: list[_Running], logits: torch.Tensor) -> None:
        """Draws the next token of each request from logits of shape (requests, vocabulary)."""
        if not running:
            return
        choices = sample_next_tokens(logits, [each.sampling for each in running])
        self.monitor.on_step(len(running), len(self._waiting))
        now = time.monotonic()
        for each, choice in zip(running, choices, strict=True):
            # Append the token, and see whether the answer ends with it.
            request = each.request
            request.output_ids.append(choice.id)
            each.sampling.append(choice.id)
            request.first_token_at = request.first_token_at or now
            is_end = choice.id in self._end_token_ids or choice.id == request.end_token_id
            is_long = len(request.output_ids) >= request.sampling.max_tokens
            is_cut = is_long or each.length >= self.context or now > request.deadline
            reason = "stop" if is_end else "length" if is_cut else None
            # Make text of the new tokens. A stop text also ends the answer.
            if not is_end:
                each.unsent.tokens.append(choice)
                each.ids_without_text.append(choice.id)
            if request.is_streamed or request.sampling.stop or reason is not None:
                each.unsent.text += each.text.add(each.ids_without_text, reason is not None)
                each.ids_without_text = []
                if each.text.is_stopped:
                    reason = "stop"
            # Free the slot of an ended request, and send the chunk.
            if request.is_cancelled or reason is not None:
                self._free_slot(each)
            if not request.is_cancelled and (request.is_streamed or reason is not None):
                each.unsent.finish_reason = reason
                request.send(each.unsent)
                each.unsent = Chunk()

    def _free_slot(self, ended: _Running) -> None:
        """Moves the last request into the slot of an ended one, so used slots stay adjacent."""
        slot, last = self._decoding.index(ended), self._decoding[-1]
        if last is not ended:
            self._cache.move(len(self._decoding) - 1, slot, last.length)
            self._decoding[slot] = last
        self._decoding.pop()
        self.monitor.on_end(ended.request)


class _Running:
    """A request that has a slot."""

    def __init__(self, request: GenerationRequest, tokenizer: Any) -> None:
        self.request = request
        self.prefilled = 0
        """The number of prompt tokens in the cache."""
        self.text = TextStream(tokenizer, request.sampling.stop)
        self.ids_without_text: list[int] = []
        """Tokens of the answer that are not yet in its text."""
        self.unsent = Chunk()
        self.sampling = SamplingState(request.sampling, request.prompt_ids)

    @property
    def is_prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.prefilled >= len(self.request.prompt_ids)

    @property
    def length(self) -> int:
        """The number of tokens of prompt and answer together."""
        return len(self.request.prompt_ids) + len(self.request.output_ids)
