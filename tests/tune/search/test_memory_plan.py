"""How many trials run at once if memory is short, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpo_train import data, memory
from dpo_train.config import TrainConfig
from dpo_train.data import Row
from dpo_train.errors import InputError
from dpo_train.footprint import Footprint
from dpo_train.model_source import parameter_count
from dpo_train.row_lengths import RowLengths
from tune.config.schema import SearchConfig
from tune.search import memory_estimate, memory_plan, preflight
from tune.search.largest_trial import largest_trial
from tune.search.preflight import StatedShape

GIGABYTE = 10**9


def search(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate(
        {"name": "x", "trials": 8, "data": {"limit": 60}, "resources": {"cpus": 1}} | changes
    )


@pytest.fixture
def rows() -> list[Row]:
    pairs = data.load_pairs(search().data)
    return [row for split in pairs.splits.values() for row in split]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the free memory, on a machine of four CPUs."""
    monkeypatch.setattr(memory_estimate, "cpus", lambda: 4)

    def may_take(gigabytes: float) -> None:
        monkeypatch.setattr(memory_plan, "_available", lambda: int(gigabytes * GIGABYTE))

    return may_take


def test_what_fits_stays_as_it_is_and_is_not_counted(machine: Any, rows: list[Row]) -> None:
    machine(100)
    plan = memory_plan.plan_memory(search(), rows)
    assert plan.config == search()
    assert plan.message == ""
    assert plan.need is None


def test_fewer_run_at_once_where_not_all_fit(machine: Any, rows: list[Row]) -> None:
    machine(2.2)
    plan = memory_plan.plan_memory(search(), rows)
    assert plan.config.resources.at_once == 2
    assert plan.config.resources.cpus == 1
    assert plan.message.startswith("resources.at_once is lowered from 4 to 2: more trials don't")
    estimate = memory_plan._estimate(search(), rows)
    assert estimate.need(2, 0).total <= 2.2 * GIGABYTE < estimate.need(3, 0).total


def test_packed_trials_share_engines(machine: Any, rows: list[Row]) -> None:
    packed = search(trainer="packed", lora={}, resources={"cpus": 0.5})
    machine(100)
    estimate = memory_plan._estimate(packed, rows)
    eight = estimate.need(8, 100 * GIGABYTE)
    assert (eight.processes, eight.trials_each) == (4, 2)
    assert estimate.need(2, 100 * GIGABYTE).processes == 2
    # With less memory the passes get smaller, down to the longest pair.
    less = estimate.need(8, estimate.need(8, 0).total + 4 * 10**7)
    assert estimate.least_tokens <= less.tokens < eight.tokens
    assert less.total < eight.total
    assert estimate.need(8, 0).tokens == estimate.least_tokens


def test_a_trial_that_does_not_fit_alone_is_refused(machine: Any, rows: list[Row]) -> None:
    machine(1.0)
    with pytest.raises(
        InputError,
        match=r"memory: one trial with one pair at once and activation checkpointing takes about "
        r"1\.\d GB with Ray, but the search may use 1\.0 GB \(.*\); type `--set lora=\{\}` "
        r"to train an adapter",
    ):
        memory_plan.plan_memory(search(), rows)
    with pytest.raises(InputError, match="--set data.max_length_tokens=512"):
        memory_plan.plan_memory(search(lora={}), rows)


def test_checkpointing_is_switched_on_where_nothing_fits_without_it(
    machine: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = memory_plan._footprint

    def of_a_large_model(
        config: SearchConfig, trial: TrainConfig, lengths: RowLengths
    ) -> Footprint:
        """Return an estimate with larger passes: the sample's are small beside the rest."""
        bytes_a_token = 1e5 if trial.optim.activation_checkpointing else 1e7
        return replace(counted(config, trial, lengths), pass_a_token=bytes_a_token)

    monkeypatch.setattr(memory_plan, "_footprint", of_a_large_model)
    adapter = search(lora={"r": 4}, trainer="packed")
    plain = memory_plan._estimate(adapter, rows)
    again = memory_plan._with_checkpointing_if_needed(plain, 10**6)
    assert again.need(1, 0).total < plain.need(1, 0).total
    between = (again.need(1, 0).total + plain.need(1, 0).total) / 2 / GIGABYTE
    machine(between)
    assert memory_plan.plan_memory(adapter, rows).message.startswith(
        "optim.activation_checkpointing is switched on: without it one pair at once "
    )
    never = search(lora={"r": 4}, trainer="packed", optim={"activation_checkpointing": False})
    with pytest.raises(InputError, match="memory: one trial with one pair at once takes"):
        memory_plan.plan_memory(never, rows)
    machine(0.1)
    with pytest.raises(InputError, match="with one pair at once and activation checkpointing"):
        memory_plan.plan_memory(adapter, rows)


def test_a_model_whose_layers_can_not_be_computed_again_is_planned_without_that(
    machine: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = memory_plan._footprint

    def refusing(config: SearchConfig, trial: TrainConfig, lengths: RowLengths) -> Footprint:
        if trial.optim.activation_checkpointing:
            raise InputError("optim.activation_checkpointing: transformers can't")
        return counted(config, trial, lengths)

    monkeypatch.setattr(memory_plan, "_footprint", refusing)
    machine(0.1)
    with pytest.raises(InputError, match="memory: one trial with one pair at once takes"):
        memory_plan.plan_memory(search(lora={"r": 4}), rows)


def test_the_largest_values_of_the_space_count() -> None:
    wide = search(
        lora={"r": 4},
        space={
            "lora.r": {"choice": [4, 64]},
            "optim.batch_size": {"choice": [2, 16]},
            "optim.name": {"choice": ["adamw_8bit", "adamw"]},
            "optim.activation_checkpointing": {"choice": [True, False]},
        },
        optim={"name": "adamw_8bit", "activation_checkpointing": True},
    )
    largest = largest_trial(wide)
    assert largest.lora is not None
    assert (largest.lora.r, largest.optim.batch_size) == (64, 16)
    assert (largest.optim.name, largest.optim.activation_checkpointing) == ("adamw", False)


def test_the_driver_reports_what_it_reduces(
    machine: Any, rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    lines = [json.dumps({"split": "train", **row.as_json()}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    machine(2.2)
    assert memory_plan.fit_into_memory(search(), tmp_path).resources.at_once == 2
    assert capsys.readouterr().out.startswith("x: resources.at_once is lowered from 4 to 2")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    assert memory_plan.fit_into_memory(search(), tmp_path) == search()


def test_doctor_says_what_one_and_all_take(
    machine: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine(100)
    one, together = memory_plan.lines(search(), rows)
    assert one.startswith("one trial    about 0.")
    for phrase in ("process", "weights of its own", "optimizer of a trial", "for a pass of"):
        assert phrase in one
    assert together.startswith("all at once  about ")
    assert "4 trials and Ray; the search may use 100.0 GB" in together
    machine(1.0)
    with pytest.raises(InputError, match="one trial with one pair at once"):
        list(memory_plan.lines(search(), rows))


def test_of_a_gpu_that_is_elsewhere_only_one_trial_is_told(rows: list[Row]) -> None:
    (line,) = memory_plan.lines(search(lora={}, trainer="trl", resources={"gpus": 1}), rows)
    assert line.startswith("one trial    about 0.")
    assert "of GPU memory" in line


@pytest.mark.parametrize(("gpus", "said"), [(1, "of a trial"), (0.25, "of 4 trials")])
def test_an_engine_of_a_gpu_holds_the_trials_that_share_it(
    rows: list[Row], gpus: float, said: str
) -> None:
    (line,) = memory_plan.lines(search(lora={}, resources={"gpus": gpus}), rows)
    assert line.startswith("one engine   about 0.")
    assert f"adapter and optimizer {said}" in line


def test_converted_weights_need_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    before = preflight.disk_bytes(search())
    monkeypatch.setattr(preflight, "stated_shape", lambda _: StatedShape(dtype="bfloat16"))
    assert preflight.disk_bytes(search()) == before + 4 * parameter_count(search().model)
    quantised = search().model.model_copy(update={"quantization": "nf4"})
    assert preflight.disk_bytes(search().model_copy(update={"model": quantised})) == before


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/job\n", {"job/memory.max": "4000000000", "job/memory.current": "1000"}, 4 * GIGABYTE),
        ("0::/job\n", {"job/memory.max": "max", "job/memory.current": "1000"}, 8 * GIGABYTE),
        (
            "3:cpu,memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "3000000000",
                "memory/job/memory.usage_in_bytes": "1000",
            },
            3 * GIGABYTE,
        ),
    ],
)
def test_the_limit_is_the_machines_or_that_of_a_control_group(
    group: str, files: dict[str, str], limit: int, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 7812500 kB\nMemAvailable: 5000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "memory.stat").write_text("inactive_file 10\nactive_file 20\n")
    assert memory.memory_limit_bytes(tmp_path) == limit
