"""What a trial's process gives back to Tune to try again, and what it reports as it is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.trainers.session import OutOfMemory
from tune.config.schema import SearchConfig
from tune.workers.tasks import EVALUATE_TASK, TEST_TASK
from tune.workers.trainable import DpoTrial


class Process(DpoTrial):
    """A trial's process without Ray, whose GPU's owner died."""

    def __init__(self, run: Path, trial: str) -> None:
        self._run = run
        self._asked = {
            "trial": trial,
            "run": str(run),
            "searched": "",
            "sampled": {},
            "exported": "",
            "cwd": ".",
        }
        confirm = {"evaluate": "my:function"}
        self._search = SearchConfig.model_validate({"name": "x", "confirm": confirm})

    def _find_run(self) -> Any:
        return SimpleNamespace(prepared_folder=Path(), device="cpu")

    def _on_device(self, function: Any, *arguments: Any) -> Any:
        raise RayActorError


@pytest.mark.parametrize("task", [TEST_TASK, EVALUATE_TASK + "a"])
def test_a_member_that_dies_while_it_judges_costs_no_number(tmp_path: Path, task: str) -> None:
    with pytest.raises(RayActorError):
        Process(tmp_path, task).step()


class Full:
    """A session for which there is no memory."""

    def advance_for(self, seconds: float) -> Any:
        raise OutOfMemory("out of memory with one pair at once")


def test_a_packed_trial_without_memory_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, "a")
    process._session = Full()  # type: ignore[assignment]
    process._trial = override(TrainConfig(), {"trainer": "packed", "lora": {}})
    monkeypatch.setattr(process, "_save_if_due", lambda: None)
    monkeypatch.setattr(process, "_open", lambda: pytest.fail("it was begun again"))
    with pytest.raises(OutOfMemory, match="with one pair at once"):
        process._advance()
