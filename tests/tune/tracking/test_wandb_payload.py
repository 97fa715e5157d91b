"""The content for W&B, as functions of a search's configuration and records."""

from pathlib import Path

from dpo_train.config_base import parse
from tune.config.checks import check
from tune.config.schema import SearchConfig
from tune.run_folder.trial_record import TrialRecord
from tune.tracking import wandb_payload


def test_a_sweep_has_an_axis_as_the_service_spells_it() -> None:
    content = {
        "name": "x",
        "trainer": "simulated",
        "trials": 2,
        "space": {
            "optim.learning_rate": {"log_uniform": [1e-5, 1e-2]},
            "dpo.beta": {"uniform": [0.1, 0.5]},
            "optim.epochs": {"int": [1, 3]},
            "optim.batch_size": {"log_int": [2, 32]},
            "lora": {"choice": [None, {"r": 8}]},
        },
        "objective": "eval/nll",
    }
    config = check(parse(SearchConfig, content, {}, "x.yaml"))
    made = wandb_payload.definition(config)
    assert made["metric"] == {"name": "eval/nll", "goal": "minimize"}
    assert made["parameters"] == {
        "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "dpo.beta": {"distribution": "uniform", "min": 0.1, "max": 0.5},
        "optim.epochs": {"distribution": "int_uniform", "min": 1, "max": 3},
        "optim.batch_size": {
            "distribution": "q_log_uniform_values",
            "min": 2,
            "max": 32,
            "q": 1,
        },
        "lora": {"values": [None, '{"r": 8}']},
    }
    record = TrialRecord(id="a-000", config={"lora": {"r": 8}, "dpo.beta": 0.2})
    sent = wandb_payload.run_config(config, record)
    assert (sent["lora"], sent["lora.r"], sent["dpo.beta"]) == ('{"r": 8}', 8, 0.2)
    assert sent["optim.learning_rate"] == config.optim.learning_rate


def test_no_folder_of_this_machine_is_published(tmp_path: Path) -> None:
    content = {
        "name": "x",
        "trainer": "simulated",
        "trials": 2,
        "data": {"id": f"{tmp_path}/a.csv"},
    }
    config = check(parse(SearchConfig, content, {}, "x.yaml"))
    record = TrialRecord(
        id="a-000", config={}, state="failed", error="OSError: no '/home/jo/x.bin' at https://a/b/c"
    )
    assert wandb_payload.run_config(config, record)["data.id"] == "a.csv"
    assert wandb_payload.summary(config, record)["error"] == "OSError: no 'x.bin' at https://a/b/c"


def test_the_last_rung_is_the_one_that_was_reached() -> None:
    content = {"name": "x", "trainer": "simulated", "trials": 2}
    config = check(parse(SearchConfig, content, {}, "x.yaml"))  # 64, then three times as many
    reached = []
    for pairs in (0, 63, 64, 191, 192, 600):
        record = TrialRecord(id="a-0", config={}, curve=[{"pairs_seen": pairs}])
        reached.append(wandb_payload.summary(config, record)["rung"])
    assert reached == [0, 0, 64, 64, 192, 576]


def test_with_two_objectives_the_sweep_carries_both() -> None:
    content = {"name": "x", "trainer": "simulated", "trials": 2,
               "objective": ["eval/accuracy", "eval/drift"]}  # fmt: skip
    made = wandb_payload.definition(check(parse(SearchConfig, content, {}, "x.yaml")))
    assert "metric" not in made
    assert made["metrics"] == [
        {"name": "eval/accuracy", "goal": "maximize"},
        {"name": "eval/drift", "goal": "minimize"},
    ]
