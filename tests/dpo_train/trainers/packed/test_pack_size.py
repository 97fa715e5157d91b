"""The pack size is found by trying, here on simulated machines."""

from collections.abc import Callable

import pytest

from dpo_train.trainers.packed.pack_size import PackSize


def constant(_: int) -> float:
    return 1.0


def small_cache(k: int) -> float:
    return 1 + k + k * k / 16


def found(trials: int, seconds: Callable[[int], float], size: PackSize | None = None) -> PackSize:
    """Returns a size after trying, on a machine where a pack of k takes seconds(k) for k tokens."""
    size = size or PackSize()
    for step in range(1000):
        k = size.trials_per_pass(trials)
        if not size.is_trying:
            return size
        # At every seventh step the machine does something else too.
        size.record_step(trials, seconds(k) * trials / k + (step % 7 == 0))
    raise AssertionError("it never stops trying")


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (constant, 32),  # a pass costs the same for any number of trials
        (lambda k: k * (1 + k / 10), 1),  # trials share nothing
        (small_cache, 4),
        (lambda k: k * (1.04 if k > 16 else 1), 32),  # the gain is less than the noise
    ],
)
def test_it_halves_while_that_is_faster(seconds: Callable[[int], float], best: int) -> None:
    assert found(32, seconds).trials_per_pass(32) == best


def test_packs_have_similar_sizes() -> None:
    size = found(32, small_cache)
    assert [size.trials_per_pass(n) for n in (1, 3, 4, 5, 17)] == [1, 3, 4, 3, 4]


def test_it_tries_again_for_more_trials_and_not_for_fewer() -> None:
    size = found(8, constant)
    size.trials_per_pass(5)
    assert not size.is_trying
    size.trials_per_pass(9)
    assert size.is_trying
    assert found(9, constant, size).trials_per_pass(9) == 9
