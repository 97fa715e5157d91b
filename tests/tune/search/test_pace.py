"""The estimate of how long a search still takes, from the pairs that its trials trained on."""

import pytest

from tune.search.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def begun(clock: Clock, trials: int, pairs: int = 1000) -> Pace:
    pace = Pace(clock)
    for number in range(trials):
        pace.update(str(number), 0, pairs)
    return pace


def test_nothing_is_said_before_a_tenth_of_a_trial_was_trained() -> None:
    clock = Clock()
    pace = begun(clock, 2)
    assert pace.seconds_left(6) is None
    clock.seconds = 60.0
    pace.update("0", 99, 1000)
    assert pace.seconds_left(6) is None
    pace.update("0", 100, 1000)
    assert pace.seconds_left(6) is not None


def test_trials_that_are_half_done_count_half() -> None:
    clock = Clock()
    pace = begun(clock, 2)
    clock.seconds = 50.0
    for trial in ("0", "1"):
        pace.update(trial, 500, 1000)
    assert pace.seconds_left(2) == pytest.approx(50)
    assert pace.seconds_left(4) == pytest.approx(150)
    assert pace.share_done("0") == 0.5
    assert pace.pairs_per_second("0") == pytest.approx(10)


def test_the_slowest_trial_decides_the_end() -> None:
    clock = Clock()
    pace = begun(clock, 2)
    clock.seconds = 100.0
    pace.update("0", 900, 1000)
    pace.update("1", 100, 1000)
    assert pace.seconds_left(2) == pytest.approx(900)


def test_trials_are_taken_to_end_where_others_were_stopped() -> None:
    clock = Clock()
    pace = begun(clock, 4)
    clock.seconds = 10.0
    for trial in "0123":
        pace.update(trial, 100, 1000)
    pace.end("0", 200)
    pace.end("1", 200)
    # 500 pairs took 10 s. Two trials have 100 pairs left, and two will come with 200 each.
    assert pace.seconds_left(4) == pytest.approx(600 / 60)
    pace.update("2", 300, 1000)  # further than any stopped trial, so it will finish
    assert pace.seconds_left(2) == pytest.approx(700 / 30)  # the other trial ends long before
    assert pace.share_done("2") == pytest.approx(0.3)


def test_a_trial_that_goes_on_from_a_saved_state_counts_what_it_trains_here() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.update("a", 800, 1000)
    clock.seconds = 10.0
    pace.update("a", 900, 1000)
    assert pace.seconds_left(1) == pytest.approx(10)
    pace.update("a", 850, 1000)  # its process died
    clock.seconds = 20.0
    pace.update("a", 900, 1000)
    assert pace.pairs_per_second("a") == pytest.approx(150 / 20)


def test_a_trial_that_was_not_seen_before_its_first_report_counts() -> None:
    clock = Clock()
    clock.seconds = 100.0
    pace = Pace(clock)
    pace.start("a", 0, 1000, seconds_ago=10)
    pace.update("a", 200, 1000)
    assert pace.pairs_per_second("a") == pytest.approx(20)
    assert pace.seconds_left(2) == pytest.approx(90)
