"""This generates many answers at once: requests join and leave the running batch between tokens.

This is iteration-level scheduling (Orca, OSDI 2022) over a fixed number of slots of a KV cache that
is allocated once.
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
"""After so many failed steps in a row the engine gives up, and health checks then say so."""
_MAX_PREFILL_TOKENS = 1024
"""One step prefills so many tokens of prompts. A longer prompt is prefilled in chunks, between
which the other requests go on."""


class SlotEngine:
    """Has a model, as serve.models loads it, and a thread that runs it for many requests."""

    def __init__(
        self, model: Any, tokenizer: Any, slots: int, context: int, max_waiting: int
    ) -> None:
        """Takes `slots` requests at once, each with `context` tokens of prompt and answer.

        `max_waiting` more may wait. The model may allow a shorter context. Raises ModelError for a
        model that would answer here in another way than alone.
        """
        context = served_context(model.config, context)
        self.model = model
        self._tokenizer = tokenizer
        self.slots, self.context, self.max_waiting = slots, context, max_waiting
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        """A token has so many logits."""
        self._cache = SlotCache(slots + 1, context)
        self._end_token_ids: set[int | None] = set()  # the answers of the check have no end
        self.monitor = EngineMonitor()
        self._waiting = RequestQueue()
        self._prefilling: deque[_Running] = deque()
        """The prompts of these are not in the cache yet. The first one's may be there in part."""
        self._decoding: list[_Running] = []
        """These stand in the order of their slots, from the first slot."""
        self._logit_indices = torch.empty(0)
        self_check.check(model, self._generate_now, slots, context)
        ends = model.generation_config.eos_token_id  # one, a list, or None, which no token is
        ends = ends if isinstance(ends, list) else [ends]
        self._end_token_ids = {tokenizer.eos_token_id, *ends}
        self._take_model()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request. Raises QueueFull."""
        idle = self.slots - len(self._decoding) - len(self._prefilling)
        self._waiting.put(request, self.max_waiting + max(0, idle))

    def close(self) -> None:
        """Finishes the requests that were submitted, ends the thread and gives the model back."""
        self._waiting.close()
        self._thread.join()
        self._release_model()

    def _take_model(self) -> None:
        """Changes the model for the engine. Raises UnsupportedAttention."""
        self._own_attention = attention.set_attention(base_of(self.model), attention.NAME)
        head = self.model.get_output_embeddings()
        # The logits of all tokens of a long prompt would be gigabytes: the head gets a few states.
        self._hook = head.register_forward_pre_hook(lambda _, given: given[0][self._logit_indices])

    def _release_model(self) -> None:
        self._hook.remove()
        attention.set_attention(base_of(self.model), self._own_attention)

    def _generate_now(self, requests: list[GenerationRequest], max_prefill_tokens: int) -> None:
        """Generates answers in the caller's thread, before the engine's own starts.

        One step prefills at most so many tokens of prompts. Raises what the model raises.
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
        failures = 0
        try:
            while failures < _MAX_FAILURES and self._admit():
                try:
                    self._step(_MAX_PREFILL_TOKENS)
                    failures = 0
                except Exception as error:  # out of memory, likely: these fail, later ones may not
                    failures += 1
                    running = [one.request for one in [*self._decoding, *self._prefilling]]
                    self._decoding, self._prefilling = [], deque()
                    self._fail(running, str(error))
        finally:  # closed, or a device that will not work again
            self._fail(self._waiting.drain(), "the engine has ended")

    def _fail(self, requests: list[GenerationRequest], reason: str) -> None:
        for request in requests:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                request.send(Chunk(text=reason, finish_reason="error"))
            self.monitor.on_end(request)

    def _admit(self) -> bool:
        """Takes requests from the queue into the free slots. It waits if there is nothing to do.

        Returns whether there is something to do; there is not once the queue is closed and empty.
        """
        while len(self._decoding) + len(self._prefilling) < self.slots:
            is_idle = not self._decoding and not self._prefilling
            request = self._waiting.get(block=is_idle)
            if request is None:
                return not is_idle
            try:
                self._prefilling.append(_Running(request, self._tokenizer))
            except Exception as error:  # of this one request; the others go on
                self._fail([request], str(error))
        return True

    @torch.inference_mode()
    def _step(self, max_prefill_tokens: int) -> None:
        """Decodes one token of every answer, and prefills as many prompt tokens as have room."""
        chunks = self._next_prompt_chunks(max_prefill_tokens)
        rows = [*self._decoding, *(one for one, _ in chunks)]
        if not rows:
            return
        step = BatchStep(
            [one.length - 1 for one in self._decoding], [chunk for _, chunk in chunks],
            self.model.device,
        )  # fmt: skip
        ids = [one.request.output_ids[-1:] for one in self._decoding]
        ids += [one.request.prompt_ids[c.start : c.start + c.length] for one, c in chunks]
        logits = self._forward(ids, step, [one.request.adapter for one in rows])
        for one, chunk in chunks:
            one.prefilled += chunk.length
        if chunks and not chunks[-1][0].is_prefilled:
            rows.pop()
            chunks.pop()
        for one, chunk in chunks:
            if chunk.slot != len(self._decoding):
                self._cache.move(chunk.slot, len(self._decoding), one.prefilled)
            self._decoding.append(self._prefilling.popleft())
        self._append_tokens(rows, logits[: len(rows)])

    def _next_prompt_chunks(self, room: int) -> list[tuple[_Running, PromptChunk]]:
        """Chooses what is prefilled next, of `room` tokens in all.

        Whole prompts go into the slots behind the decoding ones.
        A long prompt has a slot of its own until it is complete, because the slots of the others
        move meanwhile.
        """
        self._prefilling = deque(one for one in self._prefilling if not self._is_cancelled(one))
        chunks: list[tuple[_Running, PromptChunk]] = []
        for one in self._prefilling:
            prompt_length = len(one.request.prompt_ids)
            length = min(room, prompt_length - one.prefilled)
            is_whole = one.prefilled == 0 and length == prompt_length
            if length == 0 or (not is_whole and chunks and chunks[0][1].slot == self.slots):
                break
            slot = len(self._decoding) + len(chunks) if is_whole else self.slots
            chunks.append((one, PromptChunk(slot, one.prefilled, length)))
            room -= length
        return chunks

    def _is_cancelled(self, one: _Running) -> bool:
        if one.request.is_cancelled:
            self.monitor.on_end(one.request)
        return one.request.is_cancelled

    def _forward(
        self, ids: list[list[int]], step: BatchStep, adapters: list[str | None]
    ) -> torch.Tensor:
        """Returns logits of shape (requests, vocabulary) for the last token of each request.

        `ids` and `adapters` have an entry for each request.
        """
        device = self.model.device
        adapter_arguments = {}
        if hasattr(self.model, "peft_config"):
            adapter_arguments["adapter_names"] = [
                adapter or "__base__"
                for adapter, row in zip(adapters, ids, strict=True)
                for _ in row
            ]
        last = [end - 1 for end in itertools.accumulate(map(len, ids))]
        self._logit_indices = torch.tensor(last, device=device)
        output = self.model(
            input_ids=torch.tensor([one for row in ids for one in row], device=device)[:, None],
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
        choices = sample_next_tokens(logits, [one.sampling for one in running])
        self.monitor.on_step(len(running), len(self._waiting))
        now = time.monotonic()
        for one, choice in zip(running, choices, strict=True):
            request = one.request
            request.output_ids.append(choice.id)
            one.sampling.append(choice.id)
            request.first_token_at = request.first_token_at or now
            is_end = choice.id in self._end_token_ids or choice.id == request.end_token_id
            is_long = len(request.output_ids) >= request.sampling.max_tokens
            is_cut = is_long or one.length >= self.context or now > request.deadline
            reason = "stop" if is_end else "length" if is_cut else None
            if not is_end:
                one.unsent.tokens.append(choice)
                one.undecoded_ids.append(choice.id)
            if request.is_streamed or request.sampling.stop or reason is not None:
                one.unsent.text += one.text.add(one.undecoded_ids, reason is not None)
                one.undecoded_ids = []
                if one.text.is_stopped:
                    reason = "stop"
            if request.is_cancelled or reason is not None:
                self._free_slot(one)
            if not request.is_cancelled and (request.is_streamed or reason is not None):
                one.unsent.finish_reason = reason
                request.send(one.unsent)
                one.unsent = Chunk()

    def _free_slot(self, one: _Running) -> None:
        """Moves the last request into the slot of this one, so that the slots in use adjoin."""
        slot, last = self._decoding.index(one), self._decoding[-1]
        if last is not one:
            self._cache.move(len(self._decoding) - 1, slot, last.length)
            self._decoding[slot] = last
        self._decoding.pop()
        self.monitor.on_end(one.request)


class _Running:
    """A request that has a slot."""

    def __init__(self, request: GenerationRequest, tokenizer: Any) -> None:
        self.request = request
        self.prefilled = 0
        """So many tokens of the prompt are in the cache."""
        self.text = TextStream(tokenizer, request.sampling.stop)
        self.undecoded_ids: list[int] = []
        """No text was made of these tokens yet."""
        self.unsent = Chunk()
        self.sampling = SamplingState(request.sampling, request.prompt_ids)

    @property
    def is_prefilled(self) -> bool:
        return self.prefilled >= len(self.request.prompt_ids)

    @property
    def length(self) -> int:
        """Counts the tokens of prompt and answer together."""
        return len(self.request.prompt_ids) + len(self.request.output_ids)
