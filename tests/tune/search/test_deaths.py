"""Trials whose process died, as Tune reports them to the scheduler, without Ray's processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.driver import Driver, result_of
from tune.run_folder.step import Step

ENGINE_LOST = "tune.errors.EngineOutOfMemory"


def with_tokens(tokens: int) -> dict[str, Any]:
    """Return the result of a step whose largest pass had so many tokens."""
    report = {"pairs_seen": 64, "eval/accuracy": 0.9, "eval/nll": 0.5, "eval/drift": 1.0}
    return result_of(Step(report, began=1.0, seconds=1.0, tokens_at_once=tokens))


class Died:
    """A Tune trial whose process died, as Tune shows it to the scheduler."""

    def __init__(self, folder: Path, trial: Any, failures: int, error: str) -> None:
        self.trial_id, self.config, self.status = trial.trial_id, trial.config, "ERROR"
        self.run_metadata = SimpleNamespace(num_failures=failures)
        self.error_file = folder / "error.txt"
        self.error_file.write_text(f"Failure # {failures} (occurred at noon)\n{error}\n")


def test_a_death_for_lack_of_memory_halves_the_passes_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    assert trial.config["task"].most_tokens is None
    driver.scheduler.on_trial_result(None, trial, with_tokens(1000))
    died = Died(tmp_path, trial, 1, f"{ENGINE_LOST}: the kernel ended it")
    driver.scheduler.on_trial_error(None, died)
    assert died.run_metadata.num_failures == 0
    assert died.config["task"].most_tokens == 500
    assert (
        "its engine ran out of memory and was ended; it goes on in another; passes have at most 500"
        in (capsys.readouterr().out)
    )
    assert driver.start().config["task"].most_tokens == 500  # the next trial gets this bound too
    assert Driver(tmp_path).records.run.most_tokens == 500  # and so does the next driver session
    # If the passes can't be made smaller, the death counts, so that no trial is tried for ever.
    counted = []
    for _ in range(4):
        again = Died(tmp_path, trial, 1, "ray.exceptions.OutOfMemoryError: Task was killed")
        driver.scheduler.on_trial_error(None, again)
        counted.append((again.config["task"].most_tokens, again.run_metadata.num_failures))
    assert counted == [(250, 0), (125, 0), (125, 1), (125, 1)]


def test_the_trials_of_one_engine_halve_the_passes_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    trials = [driver.start() for _ in range(3)]
    for trial in trials:
        result = with_tokens(1000)
        driver.scheduler.on_trial_result(None, trial, result)
    for trial in trials:
        died = Died(tmp_path, trial, 1, f"{ENGINE_LOST}: the kernel ended it")
        driver.scheduler.on_trial_error(None, died)
        assert (died.config["task"].most_tokens, died.run_metadata.num_failures) == (500, 0)


def test_another_death_counts_and_the_second_in_a_row_halves_the_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another node the kernel may have ended the process, and nothing is left that saw it."""
    driver = Driver(tmp_path)
    trial = driver.start()
    driver.scheduler.on_trial_result(None, trial, with_tokens(1000))
    first = Died(tmp_path, trial, 1, "ray.exceptions.ActorDiedError: The actor died unexpectedly")
    driver.scheduler.on_trial_error(None, first)
    assert (first.run_metadata.num_failures, first.config["task"].most_tokens) == (1, None)
    second = Died(tmp_path, trial, 2, "ray.exceptions.ActorDiedError: The actor died unexpectedly")
    driver.scheduler.on_trial_error(None, second)
    assert (second.run_metadata.num_failures, second.config["task"].most_tokens) == (2, 500)
    assert "its process died again" in capsys.readouterr().out
