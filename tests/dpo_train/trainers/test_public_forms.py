"""The two commonest public forms of preference data are trained as a stock DPOTrainer trains the
right messages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpo_train import data, reference, sample
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from tests.helpers.training import curve, stock_results

COUNT = 24
HISTORY = [
    {"role": "user", "content": "Do you know numbers?"},
    {"role": "assistant", "content": "I know the whole ones."},
]


def right_messages(number: int) -> dict[str, list[dict[str, str]]]:
    """Return a pair, written by hand in the form that TRL's documentation recommends."""
    texts = {"chosen": f"The answer is {number + 1}.", "rejected": f"It must be {number}, sure."}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in texts.items()}
    question = {"role": "user", "content": f"Which number follows {number}?"}
    return {"prompt": [*HISTORY, question], **answers}


def hh_rlhf(number: int) -> dict[str, Any]:
    right = right_messages(number)
    roles = {"user": "Human", "assistant": "Assistant"}
    return {
        side: "".join(
            f"\n\n{roles[message['role']]}: {message['content']}"
            for message in [*right["prompt"], *right[side]]
        )
        for side in ("chosen", "rejected")
    }


def ultrafeedback(number: int) -> dict[str, Any]:
    right = right_messages(number)
    whole = {side: [*right["prompt"], *right[side]] for side in ("chosen", "rejected")}
    prompt = right["prompt"][0]["content"]
    return {"prompt": prompt, "prompt_id": str(number), **whole, "messages": whole["chosen"]}


@pytest.mark.slow
def test_public_forms_are_trained_as_by_a_stock_trainer(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    ours: list[list[dict[str, Any]]] = []
    ids: list[dict[str, list[list[int]]]] = []
    cases = []
    for form in (hh_rlhf, ultrafeedback):
        path = tmp_path / f"{form.__name__}.jsonl"
        path.write_text("".join(json.dumps(form(number)) + "\n" for number in range(COUNT)))
        config = override(
            small_config,
            {"data": {"id": str(path)}, "optim.batch_size": 8, "optim.learning_rate": 1e-3,
             "eval_every_pairs": 8, "optim.schedule": "constant", "optim.warmup_pairs": 0},
        )  # fmt: skip
        pairs = data.load_pairs(config.data)
        prepared = reference.plan(config, pairs, tmp_path / "prepared", "cpu")
        train = reference.prepare(prepared).split("train")
        ids.append({name: train[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")})
        ours.append(curve(config, prepared))
        numbers = {
            name: [int(re.findall(r"\d+", row.prompt[-1]["content"])[0]) for row in rows]
            for name, rows in pairs.splits.items()
        }
        cases.append(
            {
                **{name: [right_messages(n) for n in those] for name, those in numbers.items()},
                "model": str(sample.MODEL),
                "lora": None,
                "arguments": {
                    "per_device_train_batch_size": 8,
                    "num_train_epochs": config.optim.epochs,
                    "learning_rate": 1e-3,
                    "lr_scheduler_type": "constant",
                    "weight_decay": config.optim.weight_decay,
                    "beta": config.dpo.beta,
                    "seed": config.seed,
                },
            }
        )
    for mine, my_ids, theirs in zip(ours, ids, stock_results(cases), strict=True):
        assert my_ids == theirs["ids"]
        losses = [report["train/loss"] for report in mine]
        assert losses == pytest.approx(theirs["losses"], rel=1e-5)
        assert losses[0] == pytest.approx(0.693147, rel=1e-5)
        assert losses[1] < 0.69  # the first step has trained the model
        assert mine[-1]["eval/loss"] == pytest.approx(theirs["eval"]["eval_loss"], rel=1e-5)
