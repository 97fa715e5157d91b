"""The tokens of a pass: how many each trial has, and where they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_train import reference
from dpo_train.trainers.packed import rows
from dpo_train.trainers.packed.rows import Pair, Split, collate, token_counts

LENGTHS = [(5, 4, 3), (2, 6, 7), (9, 3, 2), (4, 8, 5)]
"""Tokens of prompt, chosen and rejected completion."""


@pytest.fixture
def pairs() -> list[Pair]:
    return [rows.lay_out(*(list(range(1, 1 + n)) for n in lengths)) for lengths in LENGTHS]


def test_on_a_cpu_no_trial_is_padded_to_the_longest(pairs: list[Pair]) -> None:
    trials = [pairs[:1], pairs[1:3], pairs[3:]]
    own = [sum(len(pair.ids) for pair in pairs_of_trial) for pairs_of_trial in trials]
    laid_out = collate(trials, "cpu")
    assert len(set(own)) == 3
    assert laid_out.token_counts == tuple(count + 1 for count in own)
    assert laid_out.ids.shape == laid_out.positions.shape == (1, sum(own) + 3)
    assert token_counts(trials, "cpu") == laid_out.token_counts


def test_on_a_gpu_all_trials_are_padded_to_one_length(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (rows._TOKENS_MULTIPLE, rows._LENGTH_MULTIPLE, rows._IS_PADDED_TO_LONGEST):
        monkeypatch.setitem(table, "cpu", table["cuda"])
    laid_out = collate([pairs[:1], pairs[1:3], pairs[3:]], "cpu")
    assert laid_out.token_counts == (64, 64, 64)
    assert laid_out.ids.shape == (3, 64)


def test_each_trial_finds_its_own_tokens_after_those_of_the_others(pairs: list[Pair]) -> None:
    trials = [pairs[:2], pairs[2:]]
    laid_out = collate(trials, "cpu")
    ids, starts = laid_out.ids.flatten(), np.cumsum([0, *laid_out.token_counts])
    for number, own in enumerate(trials):
        alone = collate([own], "cpu")
        stretch = slice(starts[number], starts[number + 1])
        assert torch.equal(ids[stretch], alone.ids.flatten())
        inside = (laid_out.predictors >= starts[number]) & (
            laid_out.predictors < starts[number + 1]
        )
        assert torch.equal(laid_out.predictors[inside] - starts[number], alone.predictors)
        of_trial = laid_out.gather[4 * number : 4 * number + 4]
        assert ((of_trial >= starts[number]) & (of_trial < starts[number + 1])).all()


def test_rows_of_one_trial_serve_several(small_prepared: Path) -> None:
    split = Split(reference.prepare(small_prepared).split("eval")[:])
    one = collate([split.pairs[:3]], "cpu")
    three, tiled = collate([split.pairs[:3]] * 3, "cpu"), one.tile(3)
    assert tiled.token_counts == three.token_counts
    for name in (
        "ids", "positions", "gather", "output_index", "predictors", "targets", "completion"
    ):  # fmt: skip
        assert torch.equal(getattr(tiled, name), getattr(three, name)), name
