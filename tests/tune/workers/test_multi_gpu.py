"""The members of a trial are real Ray processes with logical GPUs that train on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpo_train.config import OptimConfig, TrainConfig
from tests.conftest import ROOT
from tune.cluster.capacity import bundles
from tune.config.schema import ResourcesConfig
from tune.workers.multi_gpu import Group

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
RESOURCES = ResourcesConfig(cpus=1, gpus=2)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a function as in a trial's own process, on the trial's placement group."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        group = bundles(RESOURCES).to_placement_group()
        ray.get(group.ready())
        strategy = PlacementGroupSchedulingStrategy(group, 0)
        yield lambda function, *arguments: ray.get(
            ray.remote(function)
            .options(num_cpus=0.001, scheduling_strategy=strategy)
            .remote(*arguments)
        )
    finally:
        ray.shutdown()


def _two_trials(config: TrainConfig, prepared: Path, out: Path) -> dict[str, Any]:
    group = Group(RESOURCES)
    found: dict[str, Any] = {"gpus": [each.gpu for each in group.devices], "reports": []}
    for name in ("first", "second"):
        session = group.open(config, prepared, "cpu")
        found["pairs"] = session.pairs_total
        found["reports"].append([session.advance().report for _ in range(2)])
        session.save(out / name / "state")
        session.export(out / name / "export")
        session.close()
    found["of the first member"] = group.first(len, [1, 2, 3])
    return found


def _one_dies(config: TrainConfig, prepared: Path) -> tuple[bool, bool]:
    group = Group(RESOURCES)
    session = group.open(config, prepared, "cpu")
    session.advance()
    ray.kill(group._members[1])
    try:
        session.advance()
    except RayActorError:
        return True, group.is_ended
    return False, group.is_ended


def test_members_train_one_trial_after_the_other_and_a_dead_one_ends_them(
    placed: Any, small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    optim = OptimConfig(batch_size=8, learning_rate=1e-3)
    config = small_config.model_copy(update={"optim": optim})
    found = placed(_two_trials, config, small_prepared, tmp_path)
    assert sorted(found["gpus"]) == ["0", "1"]
    assert found["pairs"] == 40
    assert found["of the first member"] == 3
    first, second = found["reports"]
    assert [report["pairs_seen"] for report in first] == [16, 32]
    assert [report["eval/nll"] for report in first] == [report["eval/nll"] for report in second]
    assert {path.name for path in (tmp_path / "first" / "state").glob("rng_state*")} == {
        "rng_state_0.pth", "rng_state_1.pth",
    }  # fmt: skip
    assert (tmp_path / "second" / "export" / "model.safetensors").exists()
    assert placed(_one_dies, config, small_prepared) == (True, True)
