"""Base and winner compared on the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpo_train import reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.evaluation import test_split
from dpo_train.trainers.open import open_session


def test_base_and_two_winners_are_judged_pair_by_pair_on_test(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    for name, rate in (("winner", 2e-3), ("searched", 1e-12)):
        trial = override(small_config, {"optim.learning_rate": rate, "optim.warmup_pairs": 8})
        session = open_session(trial, small_prepared, "cpu")
        report = session.advance()
        reported = [metric for metric in session.held_out if metric in report]
        assert len(reported) >= 7
        for metric, values in ((metric, session.held_out[metric]) for metric in reported):
            assert np.mean(values) == pytest.approx(report[metric])
        session.export(tmp_path / name)
        session.close()
    told = test_split.evaluate_on_test(
        tmp_path / "winner", small_config.model, small_prepared, "cpu", tmp_path / "searched"
    )
    base = reference.prepare(small_prepared).base["test"]
    # A model that was hardly trained is the base.
    assert told["searched"]["ranking"] == base.ranking
    assert told["searched"]["interval"] == list(base.interval)
    assert told["searched"]["over_base"]["ranking"]["difference"] == 0
    assert told["searched"]["answer_tokens"] == told["base"]["answer_tokens"] > 1
    over = told["test"]["over_base"]["ranking"]
    assert over["difference"] == pytest.approx(told["test"]["ranking"] - base.ranking)
    assert over["interval"][0] <= over["difference"] <= over["interval"][1]
    assert set(told["test"]["over_searched"]) == {"ranking", "accuracy"}
    keys = reference.prepare(small_prepared).split("eval")["prompt_key"]
    assert reference.prompt_keys(small_prepared, "eval") == list(keys)
