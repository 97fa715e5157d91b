"""Many answers at once from one model: requests join and leave the running batch between tokens.

Iteration-level scheduling (Orca, OSDI 2022) over a fixed number of slots of a KV cache that is
allocated once. Knows token ids, not HTTP.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, CacheLayerMixin

from serve.sampling import Sampling, TokenChoice, choose
from serve.text import TextStream

_PREFILL_TOKENS = 1024
"""Of prompts in one forward: a longer prompt is read in parts, between which the others go on."""


class Full(Exception):
    """No room in the queue."""


@dataclass
class Chunk:
    """What one step adds to an answer."""

    text: str = ""
    tokens: list[TokenChoice] = field(default_factory=list)
    finish_reason: str | None = None
    """`stop` or `length` at the end; `error` if the step failed."""


@dataclass(eq=False)
class Answer:
    """One answer that is being made. `send` is called from the engine's thread."""

    prompt: list[int]
    sampling: Sampling
    send: Callable[[Chunk], None]
    adapter: str | None = None
    in_parts: bool = True
    """Whether each token is told as it comes, or all of them at the end: far less work."""
    deadline: float = float("inf")
    """On the monotonic clock; the answer ends there with `length`."""
    is_dropped: bool = False
    """Set by whoever no longer listens; the slot is free at the next token."""
    ids: list[int] = field(default_factory=list)
    _read: int = 0
    """Tokens of the prompt that are in the cache."""
    _text: Any = None
    _unread: list[int] = field(default_factory=list)
    """Tokens of which no text was made yet."""
    _untold: Chunk = field(default_factory=Chunk)
    _generator: torch.Generator | None = None


class Engine:
    """Owns a model and a thread that runs it."""

    def __init__(
        self, model: Any, tokenizer: Any, slots: int, context: int, most_waiting: int
    ) -> None:
        """Takes `slots` answers of `context` tokens each at once, prompts included."""
        self.model = model
        self.tokenizer = tokenizer
        self.slots, self.context, self.most_waiting = slots, context, most_waiting
        self._place = _Place()
        layers: Any = [
            _SlotLayer(slots + 1, context, self._place)
            for _ in range(model.config.num_hidden_layers)
        ]
        self._cache = Cache(layers=layers)
        self._ends = _end_tokens(model, tokenizer)
        self._waiting: queue.Queue[Answer | None] = queue.Queue(most_waiting)
        self._reading: deque[Answer] = deque()
        self._writing: list[Answer] = []
        """In the order of their slots, from the first."""
        self._group: list[Answer] = []
        """Whose prompts are read right now."""
        self.steps = self.tokens = 0
        """Forwards that made tokens, and tokens made: their ratio is the mean batch."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, answer: Answer) -> None:
        """Queues an answer. Raises Full."""
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            raise Full from None

    def close(self) -> None:
        """Ends the thread after the answers that are being made."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            try:
                if self._reading:
                    self._read()
                if self._writing:
                    self._write()
            except Exception as error:  # out of memory, most likely: these fail, later ones may not
                for answer in dict.fromkeys([*self._writing, *self._group, *self._reading]):
                    with contextlib.suppress(RuntimeError):  # its event loop is closed
                        answer.send(Chunk(text=str(error), finish_reason="error"))
                self._writing, self._group, self._reading = [], [], deque()

    def _admit(self) -> bool:
        """Takes from the queue what slots are free for; waits if there is nothing to do."""
        while len(self._writing) + len(self._reading) < self.slots:
            is_idle = not self._writing and not self._reading
            try:
                answer = self._waiting.get(block=is_idle)
            except queue.Empty:
                return True
            if answer is None:
                if is_idle:
                    return False
                self._waiting.put(None)  # the end comes after the running answers
                return True
            if not answer.is_dropped:
                answer._text = TextStream(self.tokenizer, answer.sampling.stop)
                answer._generator = answer.sampling.generator()
                self._reading.append(answer)
        return True

    @torch.inference_mode()
    def _read(self) -> None:
        """Reads prompts into the slots behind the running ones: several, or part of a long one."""
        group = self._group = []
        longest = 0
        while self._reading:
            first = self._reading[0]
            if first.is_dropped:
                self._reading.popleft()
                continue
            left = len(first.prompt) - first._read
            longest = max(longest, min(left, _PREFILL_TOKENS))
            if group and (
                longest * (len(group) + 1) > _PREFILL_TOKENS or first._read or group[0]._read
            ):
                break
            group.append(self._reading.popleft())
            if left > _PREFILL_TOKENS:
                break
        if not group:
            return
        start = group[0]._read
        parts = [answer.prompt[start : start + _PREFILL_TOKENS] for answer in group]
        width = max(map(len, parts))
        # Padding lies behind each prompt: what it leaves in the cache is written over, never read.
        ids = torch.tensor([part + [0] * (width - len(part)) for part in parts])
        is_whole = start + width >= len(group[0].prompt)
        # A long prompt lies in a slot of its own until it is whole: the others' slots move.
        apart = start > 0 or not is_whole
        first_slot = self.slots if apart else len(self._writing)
        self._place.rows = slice(first_slot, first_slot + len(group))
        self._place.columns = slice(start, start + width)
        self._place.width = start + width
        positions = torch.arange(start, start + width).expand(len(group), -1)
        mask = torch.arange(start + width)[None] <= torch.arange(start, start + width)[:, None]
        last = torch.tensor([len(part) - 1 for part in parts])
        told = last.unique()  # logits of all positions of a long prompt would be gigabytes
        logits = self._forward(ids, positions, mask[None, None], group, told)
        for answer, part in zip(group, parts, strict=True):
            answer._read += len(part)
        if not is_whole:
            self._reading.appendleft(group[0])
            return
        if apart:
            self._move(self.slots, len(self._writing), len(group[0].prompt))
        self._writing += group
        self._extend(group, logits[torch.arange(len(group)), torch.searchsorted(told, last)])

    @torch.inference_mode()
    def _write(self) -> None:
        """One token more for every running answer."""
        answers = self._writing
        at = torch.tensor([len(answer.prompt) + len(answer.ids) - 1 for answer in answers])
        self._place.rows = slice(0, len(answers))
        self._place.columns = at
        self._place.width = int(at.max()) + 1
        ids = torch.tensor([[answer.ids[-1]] for answer in answers])
        mask = torch.arange(self._place.width)[None] <= at[:, None]
        logits = self._forward(ids, at[:, None], mask[:, None, None], answers)
        self._extend(list(answers), logits[:, -1])

    def _forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        answers: list[Answer],
        told: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """Logits of shape (rows, tokens, vocabulary), of the positions `told` or of all."""
        device = self.model.device
        self._place.to(device)
        adapters = {}
        if hasattr(self.model, "peft_config"):
            adapters["adapter_names"] = [answer.adapter or "__base__" for answer in answers]
        output = self.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=mask.expand(len(ids), -1, -1, -1).to(device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=told.to(device) if isinstance(told, torch.Tensor) else told,
            **adapters,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _extend(self, answers: list[Answer], logits: torch.Tensor) -> None:
        """Chooses the next token of each from logits of shape (answers, vocabulary)."""
        choices = choose(
            logits,
            [answer.sampling for answer in answers],
            [answer._generator for answer in answers],
            [answer.ids for answer in answers],
        )
        self.steps += 1
        self.tokens += len(answers)
        now = time.monotonic()
        for answer, choice in zip(answers, choices, strict=True):
            answer.ids.append(choice.id)
            reason = self._finish_reason(answer, choice.id, now)
            if choice.id not in self._ends:
                answer._untold.tokens.append(choice)
                answer._unread.append(choice.id)
            if answer.in_parts or answer.sampling.stop or reason is not None:
                answer._untold.text += answer._text.add(answer._unread, reason is not None)
                answer._unread = []
                if answer._text.is_stopped:
                    reason = "stop"
            if answer.is_dropped or reason is not None:
                self._leave(answer)
            if not answer.is_dropped and (answer.in_parts or reason is not None):
                answer._untold.finish_reason = reason
                answer.send(answer._untold)
                answer._untold = Chunk()

    def _finish_reason(self, answer: Answer, token: int, now: float) -> str | None:
        if token in self._ends:
            return "stop"
        is_long = len(answer.ids) >= answer.sampling.max_tokens
        is_full = len(answer.prompt) + len(answer.ids) >= self.context
        return "length" if is_long or is_full or now > answer.deadline else None

    def _leave(self, answer: Answer) -> None:
        """Frees its slot: the last one moves there, so that the running ones lie together."""
        slot = self._writing.index(answer)
        last = self._writing.pop()
        if last is not answer:
            self._writing[slot] = last
            self._move(len(self._writing), slot, len(last.prompt) + len(last.ids))

    def _move(self, source: int, target: int, length: int) -> None:
        layers: Any = self._cache.layers
        for layer in layers:
            layer.move(source, target, length)


@dataclass
class _Place:
    """Where the next forward's keys and values go, for all layers."""

    rows: slice = field(default_factory=lambda: slice(0))
    columns: slice | torch.Tensor = field(default_factory=lambda: slice(0))
    """Of a read, a range; of a write, the column of each row."""
    width: int = 0

    def to(self, device: torch.device) -> None:
        if isinstance(self.columns, torch.Tensor):
            self.columns = self.columns.to(device)


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: (slots, heads, context, head size), allocated at the first."""

    is_sliding = False

    def __init__(self, slots: int, context: int, place: _Place) -> None:
        super().__init__()
        self._slots, self._context, self._at = slots, context, place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            torch.zeros(
                self._slots, states.shape[1], self._context, states.shape[3],
                dtype=states.dtype, device=states.device,
            )
            for states in (key_states, value_states)
        )  # fmt: skip
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self._at
        found = []
        for stored, states in ((self.keys, key_states), (self.values, value_states)):
            assert stored is not None
            rows = stored[at.rows]
            if isinstance(at.columns, slice):
                rows[:, :, at.columns] = states
            else:
                rows[torch.arange(len(rows), device=rows.device), :, at.columns] = states[:, :, 0]
            found.append(rows[:, :, : at.width])
        return found[0], found[1]

    def move(self, source: int, target: int, length: int) -> None:
        for stored in (self.keys, self.values):
            assert stored is not None
            stored[target, :, :length] = stored[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._at.width, 0

    def get_seq_length(self) -> int:
        return self._at.width

    def get_max_length(self) -> int:
        return self._context


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    found = set(ends if isinstance(ends, list) else [ends])
    return (found | {tokenizer.eos_token_id}) - {None}
