"""A packed trial as a session: many in one process share an engine and are trained together.

Whoever waits in `advance` drives: no thread of the engine's own, and alone it is a plain loop.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from dpo_train import export
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.errors import Diverged
from dpo_train.memory import NO_BOUNDS, MemoryBounds
from dpo_train.model_source import from_anywhere
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.trial import PackedTrial

T = TypeVar("T")


class PackedSession:
    """A Session. Sessions of the same base and data in a process are one pack."""

    def __init__(
        self,
        config: TrainConfig,
        prepared: Path,
        device: str,
        memory: MemoryBounds = NO_BOUNDS,
    ) -> None:
        self._config = config
        self._shared = _Shared.of(config.model, prepared, device, memory)
        self.reference_pairs = self._shared.take_reference_pairs()
        self._trial = self._shared.join(config)
        self.pairs_total = self._trial.pairs_total
        self.pairs_at_once = config.optim.pairs_at_once

    @property
    def pairs_done(self) -> int:
        return self._trial.pairs_seen + self._trial.computed

    @property
    def tokens_at_once(self) -> int:
        return self._shared.engine.tokens_at_once

    def advance(self) -> Evaluation:
        evaluation = self.advance_for(math.inf)
        assert evaluation is not None
        return evaluation

    def advance_for(self, seconds: float) -> Evaluation | None:
        return self._shared.advance(self._trial, seconds)

    def save(self, folder: Path) -> int:
        return self._shared.save(self._trial, folder)

    def restore(self, folder: Path) -> None:
        self._trial.restore(folder)

    def export(self, folder: Path) -> None:
        base, lora = from_anywhere(self._config.model), self._config.lora
        assert lora is not None
        layout, weights = self._trial.own_layout, self._trial.own_weights

        def save(part: Path) -> None:
            adapters.save(layout, weights, base, lora, part)

        export.write_around(save, self._shared.engine.tokenizer, self._config, folder)

    def close(self) -> None:
        self._shared.leave(self._trial)


class _Shared:
    """The engine of this process, and who trains on it. Whoever drives does what others ask for
    (to join, to leave) between two steps."""

    _now: _Shared | None = None
    _opening = threading.Lock()

    def __init__(self, key: tuple[str, Path, str], engine: PackedEngine) -> None:
        self._key = key
        self.engine = engine
        self._turn = threading.Condition()
        self._is_driven = False
        self._asked: list[Callable[[], None]] = []
        self._running: list[PackedTrial] = []
        self._answers: dict[PackedTrial, Evaluation | BaseException] = {}
        self._waiting: set[PackedTrial] = set()
        self._uncounted = engine.reference_pairs

    @classmethod
    def of(cls, base: ModelConfig, prepared: Path, device: str, memory: MemoryBounds) -> _Shared:
        """The engine over that base and data, opened if it is another one or there is none."""
        key = (base.model_dump_json(), prepared, device)
        with cls._opening:
            now = cls._now
            if now is None or now._key != key or now.engine.is_closed:
                if now is not None:
                    now.engine.close()
                cls._now = now = cls(key, PackedEngine(base, prepared, device, memory))
            return now

    def take_reference_pairs(self) -> int:
        """Pairs whose reference log-probs the opening computed; told once."""
        count, self._uncounted = self._uncounted, 0
        return count

    def join(self, config: TrainConfig) -> PackedTrial:
        return self._between_steps(lambda: self.engine.join(config))

    def leave(self, trial: PackedTrial) -> None:
        def part() -> None:
            self._answers.pop(trial, None)
            if trial in self._running:
                self._running.remove(trial)
            if trial in self._waiting:  # by a process that died since
                self._answers[trial] = RuntimeError("the session was closed")

        self._between_steps(part)

    def save(self, trial: PackedTrial, folder: Path) -> int:
        """Writes the state after the trial's last whole step; what is computed of the next one is
        computed again."""

        def write() -> int:
            if trial.is_due or trial in self._answers:
                return 0
            trial.save(folder)
            return trial.pairs_seen

        return self._between_steps(write)

    def advance(self, trial: PackedTrial, seconds: float) -> Evaluation | None:
        """Trains until the trial was evaluated, and with it all that wait here too; None if it
        wasn't after so many seconds. Then it goes on as long as others drive."""
        until = time.monotonic() + seconds
        with self._turn:
            if trial not in self._running and trial not in self._answers:
                trial.resume()
                self._running.append(trial)
            self._waiting.add(trial)
            try:
                while trial not in self._answers:
                    self._drive_or_wait(until)
                    if time.monotonic() >= until:
                        break
            except BaseException:
                with suppress(ValueError):  # it had just been answered
                    self._running.remove(trial)
                raise
            finally:
                self._waiting.discard(trial)
            answer = self._answers.pop(trial, None)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _between_steps(self, act: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def asked() -> None:
            try:
                done.set_result(act())
            except BaseException as error:  # it belongs to whoever asked
                done.set_exception(error)

        with self._turn:
            self._asked.append(asked)
            self._turn.notify_all()
            while not done.done():
                self._drive_or_wait()
        return done.result()

    def _drive_or_wait(self, until: float = math.inf) -> None:
        if self._is_driven:
            self._turn.wait(None if until == math.inf else max(0.0, until - time.monotonic()))
            return
        self._is_driven = True
        try:
            asked, self._asked = self._asked, []
            for act in asked:
                act()
            if not asked:
                self._train()
        finally:
            self._is_driven = False
            self._turn.notify_all()

    def _train(self) -> None:
        """One step of all, and the evaluation of those that are due. The lock is open meanwhile.

        An error is told to all of them: it may have left any with half of a step's gradient.
        """
        running = list(self._running)
        self._turn.release()
        try:
            self.engine.step(running)
            due = [trial for trial in running if trial.is_due]
            began = time.monotonic()
            values = self.engine.evaluate(due) if due else []
            seconds = time.monotonic() - began
        except BaseException as error:
            self._turn.acquire()
            self._answers.update(dict.fromkeys(running, error))
            self._running = [trial for trial in self._running if trial not in running]
            return
        self._turn.acquire()
        for trial, each in zip(due, values, strict=True):
            try:
                self._answers[trial] = trial.report(each, seconds)
            except Diverged as error:
                self._answers[trial] = error
            self._running.remove(trial)
