"""A trial that runs out of memory goes on with fewer pairs at once, to the same numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError, OutOfMemory
from dpo_train.trainers.open import open_session
from dpo_train.trainers.session import with_less_at_once
from tests.conftest import ROOT, Run
from tests.helpers.run_records import records_of


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_trial_without_memory_goes_on_with_less_at_once_or_fails_and_the_search_goes_on(
    tmp_path: Path, yaml: Path, dpo_tune: Run
) -> None:
    space = "{optim.batch_size: {choice: [2, 5, 16]}, dpo.loss: {choice: [sigmoid, aot]}}"
    points = ", ".join(
        f"{{optim.batch_size: {batch}, dpo.loss: {loss}}}"
        for batch, loss in ((16, "sigmoid"), (2, "sigmoid"), (5, "sigmoid"), (16, "aot"))
    )
    done = dpo_tune(
        "run", yaml, "--set", f"space={space}", "--set", f"points=[{points}]", "--set", "trials=4",
        "--set", "stopping.name=none", "--set", "simulated.memory_pairs=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *records, coupled = records_of(tmp_path / "runs" / "sim")
    assert [record.state for record in records] == ["finished"] * 3
    assert [record.micro_batch for record in records] == [4, None, 1]
    assert "-000: out of memory: it goes on with 4 pairs at once" in done.stdout
    for record in records:
        pairs = [report["pairs_seen"] for report in record.curve]
        assert len(pairs) == 8
        assert pairs == sorted(set(pairs))
    assert coupled.state == "failed"
    assert coupled.error == (
        "out of memory with a batch of 16 pairs, which the loss aot does not allow to be split; "
        "lower optim.batch_size"
    )


def test_half_at_once_is_half_the_batch_that_divides_it() -> None:
    def parts(batch: int) -> list[int]:
        trial, seen = override(TrainConfig(), {"optim.batch_size": batch}), []
        while trial.optim.pairs_at_once > 1:
            trial = with_less_at_once(trial)
            assert trial.optim.batch_size == batch
            seen.append(trial.optim.pairs_at_once)
        trial = with_less_at_once(trial)
        assert trial.optim.activation_checkpointing is True
        with pytest.raises(OutOfMemory, match="out of memory with one pair at once"):
            with_less_at_once(trial)
        return seen

    assert parts(16) == [8, 4, 2, 1]
    assert parts(6) == [3, 1]
    assert parts(5) == [1]
    four = override(TrainConfig(), {"optim.batch_size": 12, "optim.micro_batch_size": 6})
    assert with_less_at_once(four, members=3).optim.pairs_at_once == 3
    never = override(four, {"optim.activation_checkpointing": False})
    with pytest.raises(OutOfMemory, match="take optim.activation_checkpointing: false out"):
        with_less_at_once(never, members=4)  # each member has only one pair already
    with pytest.raises(InputError, match="sft needs all pairs of a batch"):
        override(TrainConfig(), {"dpo.loss": ["sigmoid", "sft"], "optim.micro_batch_size": 4})


@pytest.mark.parametrize(("batch", "at_once"), [(16, 4), (12, 5)])
def test_a_batch_in_micro_batches_trains_as_the_whole_batch_does(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path, batch: int, at_once: int
) -> None:
    """With 40 pairs the last batch is smaller, and its micro-batches are unequal."""
    basics = {"optim.batch_size": batch, "optim.epochs": 2, "optim.learning_rate": 1e-3,
              "optim.warmup_pairs": 16}  # fmt: skip
    whole = override(small_config, basics)
    parts = override(whole, {"optim.micro_batch_size": at_once})
    curves = []
    for trial in (whole, parts):
        session = open_session(trial, small_prepared, "cpu")
        curve = [session.advance().report]
        while curve[-1]["pairs_seen"] < session.pairs_total:
            curve.append(session.advance().report)
            if trial is parts and len(curve) == 2:  # this one also restarts once
                session.save(tmp_path / "state")
                session.close()
                session = open_session(trial, small_prepared, "cpu")
                session.restore(tmp_path / "state")
        session.close()
        curves.append(curve)
    assert len(curves[0]) == len(curves[1]) > 3
    for one, other in zip(*curves, strict=True):
        assert one["pairs_seen"] == other["pairs_seen"]
        for name in ("train/loss", "eval/margin", "eval/drift", "eval/nll"):
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name


LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from dpo_train.config import TrainConfig
from dpo_train.trainers.open import open_session
from dpo_train.errors import OutOfMemory
from dpo_train.trainers.session import with_less_at_once
trial = TrainConfig.model_validate(json.loads(sys.argv[1]))
session = open_session(trial, Path(sys.argv[2]), "cpu")
session.advance()  # what is allocated once is there now
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), -1))
try:
    session.advance()
    print("enough")
except OutOfMemory as error:
    print(error)
    session.close()
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    session = open_session(with_less_at_once(trial), Path(sys.argv[2]), "cpu")
    print(session.advance().report["pairs_seen"])
"""


def test_an_exhausted_allocator_is_reported_as_lack_of_memory(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = override(small_config, {"optim.batch_size": 16})
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, trial.model_dump_json(), str(small_prepared), "0"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    message, pairs = done.stdout.strip().splitlines()[-2:]
    assert "allocate memory" in message or "MemoryError" in message, done.stdout
    assert float(pairs) == 16
