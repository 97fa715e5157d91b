"""A search that consists of its records alone: the test writes them, without Ray."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_train.config_base import parse
from tune.config.checks import check
from tune.config.objective import Objective
from tune.config.schema import SearchConfig
from tune.run_folder import yaml_file
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.results import Cost, Results, write_results
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.tracking.child_process import TrackingProcess


class Search:
    """A run folder whose records the test writes. It begins with one trial."""

    def __init__(self, folder: Path, tensorboard: bool = False, **wandb: Any) -> None:
        space = {"optim.learning_rate": {"log_uniform": [1e-5, 1e-2]}}
        content = {"name": "x", "trainer": "simulated", "trials": 2, "space": space}
        content["wandb"] = {"mode": "online", **wandb}
        content["tensorboard"] = tensorboard
        self.config = check(parse(SearchConfig, content, {}, "x.yaml"))
        self.folder = folder / "x"
        self.run = RunFolder.at(self.folder)
        create_run(self.run, Path(), "cpu")
        yaml_file.write_yaml(self.run.search_yaml, self.config)
        objective = Objective(metric="eval/accuracy", mode="max")
        self.records = Records(self.run, objective)
        self.records.begin_driver_session()
        self.ids: list[str] = []
        self.begin(1e-3)

    def begin(self, rate: float) -> None:
        """Begin a trial."""
        self.ids.append(self.records.next_id())
        self.records.add(self.ids[-1], {"optim.learning_rate": rate})
        self.records.begin(self.ids[-1])

    def report(self, times: int) -> None:
        """Report for all trials, so many times."""
        for trial_id in self.ids:
            for _ in range(times):
                pairs = self.records.trials[trial_id].pairs_seen + 64
                report = {"pairs_seen": pairs, "eval/accuracy": 0.5, "eval/drift": 0.1}
                self.records.report(trial_id, Step(report, time.time(), 1.0))

    def end(self) -> None:
        """End all trials and write the results."""
        for trial_id in self.ids:
            self.records.end(trial_id, "finished")
        self.write_results()

    def write_results(self) -> None:
        """Write results without a winner."""
        trials = list(self.records.trials.values())
        objective = self.records.objective
        results = Results(
            name="x", objective=objective, base={}, winner=None, trials=trials, cost=Cost()
        )
        write_results(self.run.results_json, results)

    def close(self, tracking: TrackingProcess) -> float:
        """End the child as a driver does, and return how many seconds that took."""
        began = time.monotonic()
        tracking.close()
        return time.monotonic() - began


def wait_until(holds: Callable[[], object]) -> None:
    """Wait up to 20 seconds until `holds` is true."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
