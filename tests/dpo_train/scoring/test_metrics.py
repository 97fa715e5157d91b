"""Metrics of held-out pairs, from their log-probs."""

import math

import numpy as np
import pytest

from dpo_train.config import TrainConfig
from dpo_train.scoring.intervals import mean_interval
from dpo_train.scoring.metrics import METRICS, PairLogps, means, pair_values
from dpo_train.trainers.simulated import SimulatedSession
from tune.run_folder.held_out import HeldOut


def measure(scores: PairLogps) -> dict[str, float]:
    return means(pair_values(scores))


def pairs(chosen: list[float], rejected: list[float]) -> PairLogps:
    """Return pairs with reference log-probs of -10; chosen has two tokens, rejected four."""
    count = len(chosen)
    return PairLogps(
        chosen=np.array(chosen),
        rejected=np.array(rejected),
        ref_chosen=np.full(count, -10.0),
        ref_rejected=np.full(count, -10.0),
        chosen_tokens=np.full(count, 2.0),
        rejected_tokens=np.full(count, 4.0),
    )


def test_the_base_has_accuracy_one_half_and_no_drift() -> None:
    measured = measure(pairs([-10, -10], [-10, -10]))
    assert measured["accuracy"] == 0.5
    assert measured["drift"] == 0
    assert measured["nll"] == pytest.approx(math.log(2))


def test_the_numbers_of_a_worked_example() -> None:
    measured = measure(pairs([-8, -13], [-14, -11]))
    assert measured["accuracy"] == 0.5  # margins of +6 and -2
    assert measured["margin"] == 2.0
    assert measured["chosen_shift"] == -0.5
    assert measured["rejected_shift"] == -2.5
    # |2| + |-4| and |-3| + |-1|, each over six tokens
    assert measured["drift"] == pytest.approx((6 / 6 + 4 / 6) / 2)
    # per token: -4 against -3.5, and -6.5 against -2.75
    assert measured["ranking"] == 0.0
    expected = (math.log1p(math.exp(-0.6)) + math.log1p(math.exp(0.2))) / 2
    assert measured["nll"] == pytest.approx(expected)


def test_huge_margins_do_not_overflow() -> None:
    assert measure(pairs([-1e6], [-10]))["nll"] == pytest.approx(1e5, rel=1e-3)


def test_the_interval_holds_the_mean_and_widens_when_prompts_repeat() -> None:
    values = np.array([1.0, 0.0] * 50)
    low, high = mean_interval(values, [str(i) for i in range(100)])
    assert low < 0.5 < high
    assert high - low == pytest.approx(0.2, abs=0.04)
    clustered = np.repeat([1.0, 0.0], 50)
    low, high = mean_interval(clustered, [str(i // 10) for i in range(100)])
    assert high - low > 0.4


def test_the_base_has_what_the_catalogue_says() -> None:
    measured = measure(pairs([-10, -10], [-10, -10]))
    known = {each.short_name: each.base for each in METRICS if each.base is not None}
    assert known == {name: pytest.approx(measured[name], abs=1e-6) for name in known}
    assert set(measured) - set(known) == {"ranking"}  # this one needs no reference


def test_what_is_kept_of_each_pair_gives_the_metrics_that_pairs_are_compared_in() -> None:
    """Shares need their margins too, because the winner rule compares trials by them."""
    scores = pairs([-8, -13, -9.5], [-14, -11, -12])
    values = pair_values(scores)
    kept = HeldOut(*(values[name].astype(np.float32) for name in
                     ("chosen_shift", "rejected_shift", "token_margin")))  # fmt: skip
    given = {each.short_name: kept.values(each.name) for each in METRICS}
    known = {name: value for name, value in given.items() if value is not None}
    assert {each.short_name for each in METRICS if each.is_share} <= set(known)
    for name, value in known.items():
        np.testing.assert_allclose(value, values[name], rtol=1e-5)


def test_a_simulated_trial_reports_what_the_catalogue_has() -> None:
    found = SimulatedSession(TrainConfig.model_validate({"trainer": "simulated"})).advance()
    reported = {name for name in found.report if name.startswith("eval/")}
    assert reported == {each.name for each in METRICS}
