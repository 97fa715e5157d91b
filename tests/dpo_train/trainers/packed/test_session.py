"""The packed sessions of one process train together, and each can end without the others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dpo_train.config import TrainConfig
from dpo_train.errors import OutOfMemory
from dpo_train.trainers.open import open_session
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.trial import PackedTrial
from tests.helpers.packed_trial import config
from tests.helpers.training import curve, numbers


def test_sessions_of_one_process_train_together_with_the_numbers_of_each_alone(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    configs = [
        config(small_config, seed=n, optim__batch_size=2 * n + 2, optim__epochs=3) for n in range(4)
    ]
    alone = [curve(trial, small_prepared) for trial in configs]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda trial: curve(trial, small_prepared), configs))
    for one, other in zip(alone, together, strict=True):
        assert [r["pairs_seen"] for r in one] == [r["pairs_seen"] for r in other]
        assert one[-1]["eval/nll"] == pytest.approx(other[-1]["eval/nll"], abs=1e-5)
        assert one[-1]["train/loss"] == pytest.approx(other[-1]["train/loss"], abs=1e-5)


def test_an_error_in_a_step_ends_all_that_it_may_have_left_half_done(
    small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = config(small_config, optim__epochs=1000, eval_every_pairs=40_000)
    step = PackedEngine.step

    def scarce(pack: PackedEngine, trials: list[PackedTrial]) -> None:
        if len(trials) == 2:
            raise OutOfMemory("out of memory with one pair at once")
        step(pack, trials)

    monkeypatch.setattr(PackedEngine, "step", scarce)
    sessions = [open_session(endless, small_prepared, "cpu") for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for waiting in [threads.submit(session.advance) for session in sessions]:
            assert isinstance(waiting.exception(timeout=30), OutOfMemory)
    for session in sessions:
        session.close()
    assert curve(config(small_config), small_prepared)[-1]["pairs_seen"] == 40


def test_closing_a_session_ends_the_advance_that_waits_in_it(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    """This happens when a trial's process died and its next process uses the same engine."""
    endless = config(small_config, optim__epochs=1000, eval_every_pairs=40_000)
    session = open_session(endless, small_prepared, "cpu")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(session.advance)
        beside = curve(config(small_config), small_prepared)
        session.close()
        with pytest.raises(RuntimeError, match="the session was closed"):
            waiting.result(timeout=30)
    assert beside[-1]["pairs_seen"] == 40


def test_a_session_gives_the_base_back(small_config: TrainConfig, small_prepared: Path) -> None:
    lora = config(small_config)
    by_trl = lora.model_copy(update={"trainer": "trl"})
    before = numbers(curve(by_trl, small_prepared)[-1])
    packed = numbers(curve(lora, small_prepared)[-1])
    assert numbers(curve(by_trl, small_prepared)[-1]) == before
    assert numbers(curve(lora, small_prepared)[-1]) == packed
    assert np.isfinite(list(packed.values())).all()
