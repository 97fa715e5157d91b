"""Which trials go on at the rungs with two objectives. Ray itself tests Ray's own rules."""

from pathlib import Path

from ray.tune.schedulers import TrialScheduler

from tests.helpers.driver import TWO, Driver


def test_at_a_rung_the_dominated_stop_and_a_front_is_thinned(tmp_path: Path) -> None:
    driver = Driver(tmp_path, objective=TWO, trials=8, stopping={"reduction": 2})
    seen = []
    # Each trial has (nll, drift). The first always goes on. The second beats it in nothing. The
    # third is the best in nll, the fourth is the front's other end, the fifth is near the third.
    for nll, drift in [(0.50, 0.20), (0.55, 0.30), (0.30, 0.60), (0.60, 0.05), (0.31, 0.59)]:
        seen.append(driver.report(driver.start(), 64, 0.7, nll, drift) == TrialScheduler.CONTINUE)
    assert seen == [True, False, True, True, False]
    (rung,) = driver.scheduler._rungs.rungs.values()
    assert len(rung) == 5


def test_a_trial_is_compared_once_at_each_rung(tmp_path: Path) -> None:
    driver = Driver(tmp_path, objective=TWO)
    trial = driver.start()
    for pairs in (64, 128, 192, 256):
        assert driver.report(trial, pairs, 0.7) == TrialScheduler.CONTINUE
    assert sorted(driver.scheduler._rungs.rungs) == [(0, 64), (0, 192)]
