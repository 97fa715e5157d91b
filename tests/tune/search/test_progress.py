"""The line of progress, made from the records of a search and what its workers do."""

from pathlib import Path

import pytest

from tests.helpers.driver import Driver
from tune.workers.live_state import Doing, Snapshot


def test_a_trial_that_waits_for_a_worker_does_not_count_as_running(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    first, second = driver.start(), driver.start()
    progress = driver.searcher.progress
    progress.look(Snapshot({first.config["task"].name: Doing("training", 16, 64, pairs_total=512)}))
    view = progress.view()
    assert view.counts == "1 running · 1 waiting"
    (trial,) = view.running
    assert trial.how_far == "16 of 512 pairs"
    assert trial.last == ""
    driver.report(first, 64, 0.75)
    assert progress.view().running[0].last == "eval/accuracy 0.750"
    driver.finish(second, 512, 0.8)
    assert progress.view().counts == "1 running · 1 finished"
    assert (progress.view().ended, progress.view().total) == (1, 4)


def test_a_trial_that_failed_after_a_report_says_why_in_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    driver.report(trial, 64, 0.75)
    driver.fail(trial, "loss is nan at step 9")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert "64 pairs  eval/accuracy 0.750  learning_rate=" in line
    assert line.endswith("  loss is nan at step 9")
