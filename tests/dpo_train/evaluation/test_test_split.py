"""Base and winner compared on the test split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpo_train import data, reference
from dpo_train.config import DataConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.data.row import Row
from dpo_train.evaluation import test_split
from dpo_train.evaluation.test_report import Numbers, TestFolders
from dpo_train.trainers.open import open_session


def test_base_and_two_winners_are_compared_pair_by_pair_on_test(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    for name, rate in (("winner", 2e-3), ("searched", 1e-12)):
        trial = override(small_config, {"optim.learning_rate": rate, "optim.warmup_pairs": 8})
        session = open_session(trial, small_prepared, "cpu")
        found = session.advance()
        reported = [metric for metric in found.held_out if metric in found.report]
        assert len(reported) >= 7
        for metric in reported:
            assert np.mean(found.held_out[metric]) == pytest.approx(found.report[metric])
        session.export(tmp_path / name)
        session.close()
    folders = TestFolders(tmp_path / "winner", small_prepared, "cpu", tmp_path / "searched")
    found_on_test = test_split.evaluate_on_test(folders, small_config.model)
    test, searched = found_on_test.test, found_on_test.searched
    assert searched is not None
    base = reference.prepare(small_prepared).base["test"]
    # A model that was hardly trained is almost the base.
    assert searched.metrics["ranking"] == base.ranking
    assert searched.interval == list(base.interval)
    assert searched.over_base["ranking"].difference == 0
    assert searched.answer_tokens == found_on_test.base.answer_tokens
    assert (searched.answer_tokens or 0) > 1
    over = test.over_base["ranking"]
    assert over.difference == pytest.approx(test.metrics["ranking"] - base.ranking)
    assert over.interval[0] <= over.difference <= over.interval[1]
    assert set(test.over_searched) == {"ranking", "accuracy"}
    # In JSON the metrics are on the same level as the other fields, as in `results.json`.
    written = test.model_dump(mode="json")
    assert written["ranking"] == test.metrics["ranking"]
    assert Numbers.model_validate(written) == test
    keys = reference.prepare(small_prepared).split("eval")["prompt_key"]
    assert reference.prompt_keys(small_prepared, "eval") == list(keys)


def test_a_prompt_with_several_pairs_is_answered_once(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    pairs = [
        {"prompt": prompt, "chosen": f"It is {chosen}.", "rejected": "Nobody knows."}
        for prompt, chosen in (("Red?", "red"), ("Red?", "pale red"), ("Blue?", "blue"))
    ]
    for split in ("train", "eval", "test"):
        rows = (json.dumps({**pair, "prompt": f"{split}: {pair['prompt']}"}) for pair in pairs)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    splits = {"id": str(tmp_path), "eval_split": "eval", "test_split": "test"}
    trial = small_config.model_copy(update={"data": DataConfig(**splits)})
    prepared = reference.plan(trial, data.load_pairs(trial.data), tmp_path / "prepared", "cpu")
    reference.prepare(prepared)
    session = open_session(trial, prepared, "cpu")
    session.advance()
    session.export(tmp_path / "winner")
    session.close()
    report = test_split.evaluate_on_test(
        TestFolders(tmp_path / "winner", prepared, "cpu"), small_config.model
    )
    assert [(answer.prompt, answer.chosen) for answer in report.answers] == [
        ("test: Red?", "It is red."),
        ("test: Blue?", "It is blue."),
    ]


def test_an_answer_that_reached_the_limit_is_marked_as_cut(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(small_config, small_prepared, "cpu")
    session.export(tmp_path / "winner")
    session.close()
    folders = TestFolders(tmp_path / "winner", small_prepared, "cpu")
    whole = test_split.evaluate_on_test(folders, small_config.model).answers
    assert not any(answer.base_is_cut or answer.winner_is_cut for answer in whole)
    monkeypatch.setattr(test_split, "MOST_TOKENS", 3)
    cut = test_split.evaluate_on_test(folders, small_config.model).answers
    assert all(answer.base_is_cut and answer.winner_is_cut for answer in cut)
    for one, other in zip(cut, whole, strict=True):
        assert other.base.startswith(one.base)


def test_only_one_of_prompts_with_the_same_end_is_shown() -> None:
    def row(system: str, text: str) -> Row:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return Row.from_json({"prompt": messages, "chosen": [], "rejected": []})  # type: ignore[typeddict-item]

    rows = [row("Be short.", "Why?"), row("Be kind.", "Why?"), row("", "How?")]
    assert test_split.shown_prompts(rows) == {"Why?": 0, "How?": 2}
    many = [row("", f"{number}?") for number in range(9)]
    assert list(test_split.shown_prompts(many)) == [f"{number}?" for number in range(5)]
