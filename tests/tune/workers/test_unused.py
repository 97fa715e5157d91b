"""The processes of trials don't import libraries that they don't need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ASKED = ("wandb", "pandas", "ray.tune", "torch")


def loaded(code: str, folder: Path = ROOT) -> list[str]:
    """Return which of these libraries a new process has imported after the code."""
    says = f"\nimport sys\nprint(*[name for name in {ASKED} if sys.modules.get(name)])"
    done = subprocess.run(
        [sys.executable, "-c", code + says],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["coordinator", "devices", "engine_actor", "multi_gpu_member"])
def test_processes_beside_ray_tunes_own_import_no_ray_tune(module: str) -> None:
    assert loaded(f"import tune.workers.{module}") == []


def test_a_trials_own_process_imports_ray_tune_and_what_that_imports() -> None:
    assert loaded("import tune.workers.trainable") == ["pandas", "ray.tune"]


@pytest.mark.parametrize(
    "begin",
    [
        "from tune.workers.trainable import DpoTrial\n"
        "from tune.workers.tasks import TestTask, to_tune\n"
        "object.__new__(DpoTrial).setup(to_tune(TestTask('x')))",
        "from tune.workers.engine_actor import EngineActor\nEngineActor(None, 1, 1)",
        "from tune.workers.multi_gpu_member import Member\nMember()",
    ],
    ids=["trial", "engine", "member"],
)
def test_wandb_is_not_installed_for_a_trial(begin: str) -> None:
    look = "\nfrom importlib.util import find_spec\nassert find_spec('wandb') is None"
    assert "wandb" not in loaded(begin + look)


@pytest.mark.slow
def test_trl_does_without_wandb() -> None:
    begin = "from tune.workers.unused import leave_out_unused\nleave_out_unused()"
    have = loaded(f"{begin}\nimport trl.trainer.dpo_trainer")
    assert "torch" in have
    assert "wandb" not in have


def test_the_users_own_evaluation_may_import_wandb(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import wandb\ndef judge(folder): return {'score': 1}\n")
    code = (
        "from pathlib import Path\n"
        "from tune.workers.unused import leave_out_unused\n"
        "from tune.workers.user_evaluation import evaluate_folder\n"
        "leave_out_unused()\n"
        "assert evaluate_folder('mine:judge', Path(), '.') == {'score': 1.0}"
    )
    assert "wandb" in loaded(code, tmp_path)
