"""Confidence intervals of shares and of differences."""

import numpy as np
import pytest
from scipy.stats import binom

from dpo_train.scoring.intervals import (
    difference_interval,
    effective_prompts,
    jeffreys,
    share_interval,
)


@pytest.mark.parametrize("count", [20, 40, 160])
def test_the_interval_of_a_share_covers_it_near_one_too(count: int) -> None:
    """The coverage is computed exactly, summed over all possible outcomes."""
    ends = np.array([jeffreys(right / count, count) for right in range(count + 1)])
    covers = [
        binom.pmf(np.arange(count + 1), count, share)[(ends[:, 0] <= share) & (share <= ends[:, 1])]
        .sum()
        for share in (0.5, 0.8, 0.95, 0.98)
    ]  # fmt: skip
    assert min(covers) >= 0.91
    assert 0.94 <= np.mean(covers) <= 0.97


def test_all_pairs_right_still_has_an_interval() -> None:
    low, high = share_interval(np.ones(20), [str(pair) for pair in range(20)])
    assert (round(low, 2), high) == (0.88, 1.0)
    assert share_interval(np.zeros(20), range(20))[0] == 0.0


def test_rows_of_one_prompt_are_not_counted_as_prompts() -> None:
    right = np.repeat(np.arange(20) < 15, 3).astype(float)
    assert effective_prompts(right, np.repeat(np.arange(20), 3)) == pytest.approx(20, abs=1.1)
    draw = np.random.default_rng(0).random(60) < 0.75
    assert effective_prompts(draw.astype(float), np.repeat(np.arange(20), 3)) > 30


def test_no_difference_among_few_pairs_is_bounded() -> None:
    low, high = difference_interval(np.zeros(26), range(26))
    assert high == pytest.approx(1 - 0.025 ** (1 / 26))
    assert low == -high
    wider, _ = difference_interval(np.zeros(260), np.repeat(np.arange(26), 10))
    assert wider == low
