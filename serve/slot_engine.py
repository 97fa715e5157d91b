"""Many answers at once from one model: requests join and leave the running batch between tokens.

Iteration-level scheduling (Orca, OSDI 2022) over a fixed number of slots of a KV cache that is
allocated once.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from typing import Any

import torch

from serve.attention import Part, SlotCache, Step
from serve.engine import Answer, Chunk, Unwatched, Waiting, Watch
from serve.model_source import ModelError, one_line
from serve.sampling import choose
from serve.text import TextStream
from serve.weights import adapter_name

_FAILURES = 3
"""Steps in a row after which the engine gives up: health checks then say so."""
_PROMPT_TOKENS = 1024
"""Of prompts in one step: a longer one is read in parts, between which the others go on."""


class SlotEngine:
    """Owns a model, as serve.weights loads it, and a thread that runs it. An Engine."""

    def __init__(
        self, model: Any, tokenizer: Any, slots: int, context: int, most_waiting: int
    ) -> None:
        """Takes `slots` answers of `context` tokens each at once, prompts included.

        Raises ModelError for a model whose attention is not done here.
        """
        context = min(context, model.config.max_position_embeddings)
        self.model = model
        self._tokenizer = tokenizer
        self.slots, self.context, self.most_waiting = slots, context, most_waiting
        self._cache = SlotCache(slots + 1, context)
        self._ends = _end_tokens(model, tokenizer)
        self.watch: Watch = Unwatched()
        self._waiting = Waiting()
        self._reading: deque[_Running] = deque()
        """Whose prompts are not read yet, or the first of which in part."""
        self._writing: list[_Running] = []
        """In the order of their slots, from the first."""
        self._told = torch.empty(0)
        head = model.get_output_embeddings()
        self._hook = head.register_forward_pre_hook(lambda _, given: self._few(*given))
        self._allocate()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, answer: Answer) -> None:
        """Queues an answer. Raises Full."""
        idle = self.slots - len(self._writing) - len(self._reading)
        self._waiting.put(answer, self.most_waiting + max(0, idle))

    def close(self) -> None:
        """Ends the thread after the answers that were asked for."""
        self._waiting.end()
        self._thread.join()
        self._hook.remove()

    @torch.inference_mode()
    def _allocate(self) -> None:
        try:
            step = Step([], [Part(0, 0, 2)], self.model.device)
            self._forward([[0, 0]], step, [None], [1])
        except Exception as error:  # what a model's own code raises
            reason = one_line(error)
            raise ModelError(f"{self.model.name_or_path!r} can't be served: {reason}") from None

    def _run(self) -> None:
        failures = 0
        try:
            while failures < _FAILURES and self._admit():
                try:
                    self._step()
                    failures = 0
                except Exception as error:  # out of memory, likely: these fail, later ones may not
                    failures += 1
                    there = [one.answer for one in [*self._writing, *self._reading]]
                    self._writing, self._reading = [], deque()
                    self._fail(there, str(error))
        finally:  # closed, or a device that will not work again
            self._fail(self._waiting.close(), "the engine has ended")

    def _fail(self, answers: list[Answer], reason: str) -> None:
        for answer in answers:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                answer.send(Chunk(text=reason, finish_reason="error"))
            self.watch.ended(answer)

    def _admit(self) -> bool:
        """Takes from the queue what slots are free for; waits if there is nothing to do.

        Whether there is more to do.
        """
        while len(self._writing) + len(self._reading) < self.slots:
            is_idle = not self._writing and not self._reading
            answer = self._waiting.get(block=is_idle)
            if answer is None:
                return not is_idle
            self._reading.append(_Running(answer, self._tokenizer))
        return True

    @torch.inference_mode()
    def _step(self) -> None:
        """One token more for every answer, and of the prompts that wait what there is room for."""
        parts = self._next_parts()
        rows = [*self._writing, *(one for one, _ in parts)]
        if not rows:
            return
        step = Step(
            [one.length - 1 for one in self._writing], [part for _, part in parts],
            self.model.device,
        )  # fmt: skip
        ids = [one.answer.ids[-1:] for one in self._writing]
        ids += [one.answer.prompt[p.start : p.start + p.length] for one, p in parts]
        told = [end - 1 for end in itertools.accumulate(map(len, ids))]
        names = [one.answer.model for one in rows]
        logits = self._forward(ids, step, names, told)
        for one, part in parts:
            one.read += part.length
        if parts and parts[-1][0].is_read_in_part:
            rows.pop()
            parts.pop()
        for one, part in parts:
            if part.slot != len(self._writing):
                self._cache.move(part.slot, len(self._writing), one.read)
            self._writing.append(self._reading.popleft())
        self._extend(rows, logits[: len(rows)])

    def _next_parts(self) -> list[tuple[_Running, Part]]:
        """Of prompts that wait in their order: whole ones into the slots behind the written ones.

        A long one lies in a slot of its own until it is whole: the others' slots move meanwhile.
        """
        self._reading = deque(one for one in self._reading if not self._is_let_go(one))
        parts: list[tuple[_Running, Part]] = []
        room = _PROMPT_TOKENS
        for one in self._reading:
            length = min(room, len(one.answer.prompt) - one.read)
            is_whole = one.read == 0 and length == len(one.answer.prompt)
            if length == 0 or (not is_whole and parts and parts[0][1].slot == self.slots):
                break
            slot = len(self._writing) + len(parts) if is_whole else self.slots
            parts.append((one, Part(slot, one.read, length)))
            room -= length
        return parts

    def _is_let_go(self, one: _Running) -> bool:
        if one.answer.is_dropped:
            self.watch.ended(one.answer)
        return one.answer.is_dropped

    def _forward(
        self, ids: list[list[int]], step: Step, names: list[str | None], told: list[int]
    ) -> torch.Tensor:
        """Logits of shape (told, vocabulary) for the tokens at the indices `told`; `ids` and the
        adapters' names row by row."""
        device = self.model.device
        adapters = {}
        if hasattr(self.model, "peft_config"):
            adapters["adapter_names"] = [
                adapter_name(name) if name else "__base__"
                for name, row in zip(names, ids, strict=True)
                for _ in row
            ]
        self._told = torch.tensor(told, device=device)
        output = self.model(
            input_ids=torch.tensor([one for row in ids for one in row], device=device)[:, None],
            position_ids=step.positions[:, None],
            use_cache=False,
            cache=self._cache,
            step=step,
            **adapters,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _few(self, states: torch.Tensor) -> torch.Tensor:
        """Before the head: logits of all tokens of a long prompt would be gigabytes."""
        return states[self._told]

    def _extend(self, running: list[_Running], logits: torch.Tensor) -> None:
        """Chooses the next token of each from logits of shape (answers, vocabulary)."""
        if not running:
            return
        choices = choose(
            logits,
            [one.answer.sampling for one in running],
            [one.generator for one in running],
            [one.answer.ids for one in running],
        )
        self.watch.stepped(len(running), len(self._waiting))
        now = time.monotonic()
        for one, choice in zip(running, choices, strict=True):
            answer = one.answer
            answer.ids.append(choice.id)
            answer.first_at = answer.first_at or now
            reason = self._finish_reason(one, choice.id, now)
            if not self._is_end(one, choice.id):
                one.untold.tokens.append(choice)
                one.unread.append(choice.id)
            if answer.in_parts or answer.sampling.stop or reason is not None:
                one.untold.text += one.text.add(one.unread, reason is not None)
                one.unread = []
                if one.text.is_stopped:
                    reason = "stop"
            if answer.is_dropped or reason is not None:
                self._leave(one)
            if not answer.is_dropped and (answer.in_parts or reason is not None):
                one.untold.finish_reason = reason
                answer.send(one.untold)
                one.untold = Chunk()

    def _finish_reason(self, one: _Running, token: int, now: float) -> str | None:
        if self._is_end(one, token):
            return "stop"
        is_long = len(one.answer.ids) >= one.answer.sampling.max_tokens
        is_full = one.length >= self.context
        return "length" if is_long or is_full or now > one.answer.deadline else None

    def _is_end(self, one: _Running, token: int) -> bool:
        return token in self._ends or token == one.answer.end_token

    def _leave(self, one: _Running) -> None:
        """Frees its slot: the last one moves there, so that the running ones lie together."""
        slot, last = self._writing.index(one), self._writing[-1]
        if last is not one:
            self._cache.move(len(self._writing) - 1, slot, last.length)
            self._writing[slot] = last
        self._writing.pop()
        self.watch.ended(one.answer)


class _Running:
    """An answer that has a slot."""

    def __init__(self, answer: Answer, tokenizer: Any) -> None:
        self.answer = answer
        self.read = 0
        """Tokens of the prompt that are in the cache."""
        self.text = TextStream(tokenizer, answer.sampling.stop)
        self.unread: list[int] = []
        """Tokens of which no text was made yet."""
        self.untold = Chunk()
        self.generator = answer.sampling.generator()

    @property
    def is_read_in_part(self) -> bool:
        return self.read < len(self.answer.prompt)

    @property
    def length(self) -> int:
        """Of prompt and answer together."""
        return len(self.answer.prompt) + len(self.answer.ids)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    found = set(ends if isinstance(ends, list) else [ends])
    return (found | {tokenizer.eos_token_id}) - {None}
