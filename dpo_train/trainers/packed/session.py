"""A packed trial as a session. The sessions of one process share an engine and train together.

The engine has no thread of its own: one of the threads that wait in a session drives it for all.
A single session is a plain loop.
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
    """A Session whose trial trains with all others of the same base and data in this process."""

    def __init__(
        self,
        config: TrainConfig,
        prepared: Path,
        device: str,
        memory: MemoryBounds = NO_BOUNDS,
    ) -> None:
        self._config = config
        self._shared = _Shared.opened(config.model, prepared, device, memory)
        self.reference_pairs = self._shared.take_reference_pairs()
        self._trial = self._shared.join(config)
        self.pairs_total = self._trial.pairs_total
        self.pairs_at_once = config.optim.pairs_at_once

    @property
    def pairs_done(self) -> int:
        """Pairs whose gradients have been computed, also those of an incomplete step."""
        return self._trial.pairs_seen + self._trial.computed

    @property
    def tokens_at_once(self) -> int:
        """The most tokens of the engine's last pass, with padding."""
        return self._shared.engine.tokens_at_once

    def advance(self) -> Evaluation:
        """Trains to the next evaluation and returns it."""
        evaluation = self.advance_for(math.inf)
        assert evaluation is not None
        return evaluation

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Trains to the next evaluation, or returns None if that takes longer than `seconds`."""
        return self._shared.advance(self._trial, seconds)

    def save(self, folder: Path) -> int:
        """Writes the state after the last complete step and returns its pairs_seen."""
        return self._shared.save(self._trial, folder)

    def restore(self, folder: Path) -> None:
        """Continues from a saved state; only before the first `advance`."""
        self._trial.restore(folder)

    def export(self, folder: Path) -> None:
        """Writes the adapter as a folder that can be served."""
        base, lora = from_anywhere(self._config.model), self._config.lora
        assert lora is not None
        layout, weights = self._trial.own_layout, self._trial.own_weights

        def save(new_folder: Path) -> None:
            adapters.save(layout, weights, base, lora, new_folder)

        export.write_around(save, self._shared.engine.tokenizer, self._config, folder)

    def close(self) -> None:
        """Takes the trial out of the engine, which stays open for the next one."""
        self._shared.leave(self._trial)


class _Shared:
    """The engine of this process and the trials that train on it.

    One thread at a time drives: it runs the steps, and between two steps what other threads
    request, like joining or leaving.
    """

    _now: _Shared | None = None
    _opening = threading.Lock()

    def __init__(self, key: tuple[str, Path, str], engine: PackedEngine) -> None:
        self._key = key
        self.engine = engine
        self._turn = threading.Condition()
        """Held by whoever reads or changes what follows; notified when a driver has finished."""
        self._is_driven = False
        self._requests: list[Callable[[], None]] = []
        """What waits to be run between two steps."""
        self._running: list[PackedTrial] = []
        """The trials that take part in the next step."""
        self._answers: dict[PackedTrial, Evaluation | BaseException] = {}
        """What the next `advance` of each trial returns or raises."""
        self._waiting: set[PackedTrial] = set()
        """The trials in whose `advance` a thread waits."""
        self._uncounted = engine.reference_pairs

    @classmethod
    def opened(
        cls, base: ModelConfig, prepared: Path, device: str, memory: MemoryBounds
    ) -> _Shared:
        """Returns the engine over this base and data; opens it if there is none or another one."""
        key = (base.model_dump_json(), prepared, device)
        with cls._opening:
            now = cls._now
            if now is None or now._key != key or now.engine.is_closed:
                if now is not None:
                    now.engine.close()
                cls._now = now = cls(key, PackedEngine(base, prepared, device, memory))
            return now

    def take_reference_pairs(self) -> int:
        """Returns the pairs whose reference log-probs the opening computed; 0 at later calls."""
        count, self._uncounted = self._uncounted, 0
        return count

    def join(self, config: TrainConfig) -> PackedTrial:
        """Makes a trial between two steps."""
        return self._between_steps(lambda: self.engine.join(config))

    def leave(self, trial: PackedTrial) -> None:
        """Takes the trial out of the steps. A thread that waits in its `advance` gets an error."""

        def remove() -> None:
            self._answers.pop(trial, None)
            if trial in self._running:
                self._running.remove(trial)
            if trial in self._waiting:  # for a process that has died
                self._answers[trial] = RuntimeError("the session was closed")

        self._between_steps(remove)

    def save(self, trial: PackedTrial, folder: Path) -> int:
        """Writes the state after the trial's last complete step and returns its pairs_seen.

        What was computed of the next step will be computed again. Returns 0 and writes nothing if
        an evaluation comes first.
        """

        def write() -> int:
            if trial.is_due or trial in self._answers:
                return 0
            trial.save(folder)
            return trial.pairs_seen

        return self._between_steps(write)

    def advance(self, trial: PackedTrial, seconds: float) -> Evaluation | None:
        """Trains until the trial has been evaluated, and with it all other running trials.

        Returns None if that takes longer than `seconds`; the trial then goes on as long as other
        threads drive. Raises what the trial's step or evaluation raised.
        """
        until = time.monotonic() + seconds
        with self._turn:
            # The trial takes part in the steps, unless it already has its answer.
            if trial not in self._running and trial not in self._answers:
                trial.resume()
                self._running.append(trial)

            # Drive or wait until it has its answer or the time is over.
            self._waiting.add(trial)
            try:
                while trial not in self._answers:
                    self._drive_or_wait(until)
                    if time.monotonic() >= until:
                        break
            except BaseException:
                with suppress(ValueError):  # the trial has just got its answer
                    self._running.remove(trial)
                raise
            finally:
                self._waiting.discard(trial)
            answer = self._answers.pop(trial, None)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _between_steps(self, act: Callable[[], T]) -> T:
        """Runs `act` between two steps, in whichever thread drives, and returns its result."""
        done: Future[T] = Future()

        def request() -> None:
            try:
                done.set_result(act())
            except BaseException as error:  # it is raised in the thread that made the request
                done.set_exception(error)

        with self._turn:
            self._requests.append(request)
            self._turn.notify_all()
            while not done.done():
                self._drive_or_wait()
        return done.result()

    def _drive_or_wait(self, until: float = math.inf) -> None:
        """Runs the requests, or one step if there are none; waits if another thread drives.

        The caller holds the lock and calls again until it has what it waits for.
        """
        if self._is_driven:
            self._turn.wait(None if until == math.inf else max(0.0, until - time.monotonic()))
            return
        self._is_driven = True
        try:
            requests, self._requests = self._requests, []
            for request in requests:
                request()
            if not requests:
                self._train()
        finally:
            self._is_driven = False
            self._turn.notify_all()

    def _train(self) -> None:
        """Runs a step of all running trials and evaluates those that are due.

        The lock is released meanwhile. An error may leave any of the trials with an incomplete
        gradient, so all of them get it as their answer.
        """
        # The step and the evaluation, without the lock.
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

        # The answers, with the lock.
        for trial, of_trial in zip(due, values, strict=True):
            try:
                self._answers[trial] = trial.report(of_trial, seconds)
            except Diverged as error:
                self._answers[trial] = error
            self._running.remove(trial)
