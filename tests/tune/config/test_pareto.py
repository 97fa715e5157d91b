"""The Pareto front of pairs of values, and a few of them that cover it."""

import math
import random

import numpy as np

from tests.helpers.pareto import beats
from tune.config.objective import Objective
from tune.config.pareto import front_numbers, on_front, spread


def test_fronts_are_those_of_the_definition() -> None:
    draw = random.Random(0)
    for size in (1, 2, 7, 60):
        pairs = [(float(draw.randint(0, 9)), float(draw.randint(0, 9))) for _ in range(size)]
        left, number = set(range(size)), 0
        wanted = [0] * size
        while left:
            free = {i for i in left if not any(beats(pairs[j], pairs[i]) for j in left)}
            for index in free:
                wanted[index] = number
            left, number = left - free, number + 1
        assert front_numbers(pairs) == wanted


def test_the_first_front_of_many_is_that_of_all_fronts() -> None:
    draw = random.Random(0)
    for size in (1, 2, 7, 60, 500):
        highest = draw.choice([2, 9, 99])
        pairs = [(float(draw.randint(0, highest)), float(draw.randint(0, 9))) for _ in range(size)]
        wanted = [number == 0 for number in front_numbers(pairs)]
        assert on_front(*np.array(pairs).T).tolist() == wanted
    nothing = np.full(3, -math.inf)
    assert on_front(nothing, nothing).tolist() == [True] * 3


def test_a_front_is_covered_from_its_best_to_its_far_end_to_its_middle() -> None:
    # The second value has a range a hundred times as wide, which must not decide.
    pairs = [(0.6, -10.0), (0.9, -40.0), (0.5, 0.0), (0.75, -20.0), (0.88, -39.0)]
    assert spread(pairs) == [1, 2, 3, 0, 4]
    assert sorted(spread([(0.5, 0.1)] * 3)) == [0, 1, 2]


def test_nan_is_on_no_front() -> None:
    nothing = {"eval/accuracy": float("nan"), "eval/drift": 0.0}
    some = {"eval/accuracy": 0.6, "eval/drift": 0.3}
    goal = Objective.of(("eval/accuracy", "eval/drift"))
    assert goal.by_value([nothing, some]) == [1, 0]
    assert goal.front_numbers([nothing, some]) == [1, 0]
