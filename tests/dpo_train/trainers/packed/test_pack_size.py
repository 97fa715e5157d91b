"""The pack size is found by trying sizes, here on machines with an invented speed."""

from collections.abc import Callable

import pytest

from dpo_train.trainers.packed.pack_size import PackSize


def always(_: int) -> float:
    return 1.0


def cache_of_some(k: int) -> float:
    return 1 + k + k * k / 16


def found(trials: int, seconds: Callable[[int], float], size: PackSize | None = None) -> PackSize:
    """Return the size found on a machine where a step of a pack of k takes `seconds(k)`."""
    size = size or PackSize()
    for step in range(1000):
        k = size.of(trials)
        if not size.is_trying:
            return size
        # Something else runs during every seventh step.
        size.took(trials, seconds(k) * trials / k + (step % 7 == 0))
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (always, 32),  # a pass costs the same whoever is in it
        (lambda k: k * (1 + k / 10), 1),  # nothing is shared
        (cache_of_some, 4),
        (lambda k: k * (1.04 if k > 16 else 1), 32),  # less than the noise
    ],
)
def test_it_halves_while_that_pays(seconds: Callable[[int], float], best: int) -> None:
    assert found(32, seconds).of(32) == best


def test_packs_are_of_like_size() -> None:
    size = found(32, cache_of_some)
    assert [size.of(n) for n in (1, 3, 4, 5, 17)] == [1, 3, 4, 3, 4]


def test_more_trials_are_tried_anew_and_fewer_are_not() -> None:
    size = found(8, always)
    size.of(5)
    assert not size.is_trying
    size.of(9)
    assert size.is_trying
    assert found(9, always, size).of(9) == 9
