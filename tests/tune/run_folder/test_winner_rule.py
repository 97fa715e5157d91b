"""The rule that chooses the best trial, and the estimate of how much of it is luck."""

from pathlib import Path

import numpy as np
import pytest

from dpo_train.scoring.metrics import share_right
from tests.helpers.driver import held_out
from tune.config.objective import Objective
from tune.run_folder import luck
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.run_folder.winner_rule import Candidates, best_first, is_near, most_behind, soft_shares

PAIRS = 200


def margins(right: int, of_right: float = 1.0, of_wrong: float = -1.0) -> np.ndarray:
    return np.where(np.arange(PAIRS) < right, of_right, of_wrong)


def candidates(*rows: np.ndarray, pairs_seen: list[float] | None = None) -> Candidates:
    stacked = np.stack(rows)
    later = np.array(pairs_seen or [64.0] * len(rows))
    return Candidates.of_margins(
        (stacked > 0).mean(axis=1), later, stacked, np.arange(stacked.shape[1])
    )


def test_the_largest_soft_share_within_the_range_of_luck_is_best() -> None:
    # The second is one pair behind, and its wrong pairs are nearly right. The third is far behind.
    three = candidates(margins(180), margins(179, 5.0), margins(150, 9.0))
    assert is_near(three).tolist() == [True, True, False]
    assert best_first(three).tolist() == [1, 0, 2]
    # Reports that are not near the best are ordered by value, whatever their soft share is.
    far = candidates(margins(180), margins(150, 9.0), margins(160))
    assert best_first(far).tolist() == [0, 2, 1]


def test_soft_shares_use_the_reports_own_scale() -> None:
    values = soft_shares(np.stack([margins(180), 40 * margins(180), margins(180, 5.0)]))
    assert values[0] == pytest.approx(values[1])
    # 180 pairs at Φ(2), 20 at Φ(-2), by hand.
    assert values[0] == pytest.approx(0.9 * 0.97725 + 0.1 * 0.02275, abs=1e-4)
    assert values[2] > values[0]
    assert soft_shares(np.zeros((1, PAIRS))).tolist() == [0.5]


def test_of_equal_reports_the_later_one_wins() -> None:
    same = candidates(margins(180), margins(180), pairs_seen=[64, 128])
    assert best_first(same).tolist() == [1, 0]
    plain = Candidates(np.array([0.5, 0.7, 0.7]), np.array([9.0, 1.0, 2.0]))
    assert best_first(plain).tolist() == [2, 1, 0]


def test_pairs_of_one_prompt_count_as_one() -> None:
    """Each prompt has ten rows, so one prompt that differs makes ten pairs that differ."""
    rows = np.stack([margins(180), margins(170)])
    values, later = (rows > 0).mean(axis=1), np.zeros(2)
    alone = Candidates.of_margins(values, later, rows, np.arange(PAIRS))
    together = Candidates.of_margins(values, later, rows, np.arange(PAIRS) // 10)
    assert is_near(alone).tolist() == [True, False]
    assert is_near(together).tolist() == [True, True]


def test_a_trial_beyond_the_range_of_luck_is_never_near() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        pairs = int(draw.integers(1, 30))
        clusters = np.unique(draw.integers(draw.integers(1, 31), size=pairs), return_inverse=True)[
            1
        ]
        rows = draw.choice([-1.0, 0.0, 1.0], (20, pairs), p=draw.dirichlet([1, 0.2, 1]))
        values = share_right(rows).mean(axis=1)
        near = is_near(Candidates.of_margins(values, np.zeros(20), rows, clusters))
        assert (values.max() - values[near] <= most_behind(clusters)).all()
    # The bound is reached with two pairs of which each report has a different one right.
    two = np.array([[1.0, -1.0], [-1.0, 1.0]])
    apart = is_near(Candidates.of_margins(np.array([1.0, 0.0]), np.zeros(2), two, np.arange(2)))
    assert apart.tolist() == [True, True]
    assert most_behind(np.arange(2)) == pytest.approx(1.0)


def test_where_all_pairs_are_right_the_other_share_tells_them_apart() -> None:
    """The least trained report has the most even margins, and so the largest soft share."""
    untrained = margins(PAIRS, 0.1)
    trained = np.linspace(1.0, 30.0, PAIRS)
    values, later = np.array([1.0, 1.0]), np.array([64.0, 64.0])
    rows, numbers = np.stack([untrained, trained]), np.arange(PAIRS)
    assert best_first(Candidates.of_margins(values, later, rows, numbers)).tolist() == [0, 1]
    others = np.stack([margins(116), margins(PAIRS)])
    both = Candidates.of_margins(values, later, rows, numbers, others)
    assert best_first(both).tolist() == [1, 0]


def test_nothing_that_may_not_win_comes_first() -> None:
    rows = np.stack([margins(180), margins(150)])
    allowed = Candidates.of_margins(np.array([-np.inf, 0.75]), np.zeros(2), rows, np.arange(PAIRS))
    assert best_first(allowed)[0] == 1


def test_the_expectation_of_the_best_of_equals_lies_below_the_largest_number() -> None:
    """All of forty trials are truly right in 80 of 100 pairs, and the best of them seems better."""
    draw = np.random.default_rng(0)
    errors, covered = [], 0
    for _ in range(40):
        rows = draw.normal(0.8416, 1.0, (40, 150))
        found = luck.expected(
            luck.Reports((rows > 0).astype(float), rows, None, np.arange(40), np.full(40, 64.0),
                         np.arange(150)))  # fmt: skip
        assert found.largest > 0.82
        errors.append(found.expected - 0.8)
        covered += found.interval[0] <= 0.8 <= found.interval[1]
    assert abs(np.mean(errors)) < 0.03
    assert covered >= 36


def test_with_very_many_trials_luck_is_estimated_from_the_best(tmp_path: Path) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    for number in range(60):
        accuracy = 0.9 if number % 2 else 0.5 + number / 1000
        report = {"pairs_seen": 64, "eval/accuracy": accuracy, "eval/drift": 1.0}
        records.add(f"a-{number:03d}", {})
        records.report(f"a-{number:03d}", Step(report, 1.0, 1.0, held_out(accuracy, 1 + number)))
        records.end(f"a-{number:03d}", "finished")
    reports = luck._reports(records)
    assert reports is not None
    assert set(reports.trials) == {*range(1, 60, 2), *range(20, 60, 2)}
    assert luck.estimate(records) == luck.Luck.model_validate(luck.expected(reports))
