"""Calls searcher and scheduler as Ray Tune does, in the same order, without processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler

from dpo_train.config_base import parse
from tune.cluster.capacity import bundles
from tune.config.checks import check
from tune.config.objective import Report
from tune.config.schema import SearchConfig
from tune.run_folder.exports import ExportStamp, Rivals, offer_export
from tune.run_folder.held_out import HeldOut
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.search.abort import AbortStopper
from tune.search.broken_gpus import BrokenGpus
from tune.search.early_stopping import make_stopping_rule
from tune.search.final_tasks import FinalTasks
from tune.search.progress import Progress
from tune.search.scheduler import SearchScheduler
from tune.search.searcher import StudySearcher
from tune.search.signs_of_life import SignsOfLife
from tune.workers.outcome import Ending, Outcome, to_tune

RATE = {"optim.learning_rate": {"log_uniform": [1e-5, 1e-2]}}


class Driver:
    """Plays the part of Ray Tune in a search."""

    def __init__(self, folder: Path, **content: Any) -> None:
        basics = {"name": "x", "trainer": "simulated", "trials": 4, "space": RATE}
        self.config = check(parse(SearchConfig, {**basics, **content}, {}, "x.yaml"))
        if not (folder / "run.json").exists():
            create_run(RunFolder.at(folder), Path(), "cpu")
        self.records = Records(RunFolder.at(folder), self.config.goal)
        self.records.begin_driver_session()
        progress = Progress(self.records, self.config.total_trials)
        self.final_tasks = FinalTasks(self.config, self.records)
        self.searcher = StudySearcher(
            self.config, self.records, self.final_tasks, progress, lambda: 8
        )
        rungs = make_stopping_rule(self.config, 512)
        broken_gpus = BrokenGpus(bundles(self.config.resources), SignsOfLife())
        self.stopper = AbortStopper(self.records, broken_gpus)
        self.scheduler = SearchScheduler(
            self.config, self.records, self.searcher, rungs, self.stopper
        )
        self.suggested = 0

    def start(self) -> Any:
        """Request a trial as Tune does. Return it, or what the searcher returned in its place."""
        self.suggested += 1
        config = self.searcher.suggest(f"tune{self.suggested}")
        if not isinstance(config, dict):
            return config
        trial = SimpleNamespace(trial_id=f"tune{self.suggested}", config=config, status="RUNNING",
                                run_metadata=SimpleNamespace(num_failures=0),
                                error_file=None, pickled_error_file=None)  # fmt: skip
        self.scheduler.on_trial_add(None, trial)
        return trial

    def report(
        self, trial: Any, pairs: int, accuracy: float, nll: float = 0.5, drift: float = 1
    ) -> str:
        """Report for a trial and return the scheduler's decision."""
        result = self.result(pairs, accuracy, nll, drift)
        decision = self.scheduler.on_trial_result(None, trial, result)
        if decision == TrialScheduler.STOP:
            self.complete(trial, result)
        return decision

    def finish(
        self, trial: Any, pairs: int, accuracy: float, nll: float = 0.5, drift: float = 1
    ) -> None:
        """End a trial with a last report."""
        self.complete(trial, self.result(pairs, accuracy, nll, drift, Ending.FINISHED))

    def fail(self, trial: Any, error: str = "loss is nan") -> None:
        """End a trial with an error."""
        self.end(trial, Outcome(Ending.FAILED, error))

    def end(self, trial: Any, outcome: Outcome) -> None:
        """End a trial or a task with the outcome from its worker."""
        self.complete(trial, to_tune(outcome))

    def complete(self, trial: Any, result: dict[str, Any]) -> None:
        """Tell scheduler and searcher that a trial has ended."""
        self.scheduler.on_trial_complete(None, trial, result)
        self.searcher.on_trial_complete(trial.trial_id, result)

    @staticmethod
    def result(
        pairs: int, accuracy: float, nll: float, drift: float = 1, ending: Ending = Ending.GOES_ON
    ) -> dict[str, Any]:
        """Make the result of a report."""
        report = {"pairs_seen": pairs, "eval/accuracy": accuracy, "eval/nll": nll}
        return result_of(Step({**report, "eval/drift": drift}, began=1.0, seconds=1.0), ending)

    @property
    def study(self) -> Any:
        """The Optuna study of the search."""
        return self.searcher._study

    @property
    def rungs(self) -> Any:
        """Values at each rung, by pairs."""
        (bracket,) = self.scheduler._rungs._brackets
        return {milestone: sorted(values) for milestone, values in bracket._rungs}


def result_of(step: Step, ending: Ending = Ending.GOES_ON) -> dict[str, Any]:
    """Return a step's result as Ray Tune passes it on, with the fields that Tune adds."""
    return {**to_tune(Outcome(ending, step=step)), "node_ip": "127.0.0.1", "pid": 1}


def export(driver: Driver, trial: Any, accuracy: float) -> None:
    """Export as the trial's session does, before the driver gets the report."""
    report = {"pairs_seen": 512, "eval/accuracy": accuracy, "eval/drift": 1.0}
    _offer(driver, trial, report, Rivals(driver.records.objective, 3))


def _offer(driver: Driver, trial: Any, report: Report, rivals: Rivals) -> None:
    task = trial.config["task"]
    stamp = ExportStamp(
        trial=task.name, config=task.point, report=report, configuration=task.confirms
    )
    write = lambda folder: (folder / "weights").mkdir(parents=True)  # noqa: E731
    offer_export(driver.records.folder, stamp, rivals, write)


TWO = ["eval/accuracy", "eval/drift"]


PAIRS = 200
"""Number of held-out pairs of the simulated search."""


def held_out(accuracy: float, scale: float = 1.0) -> HeldOut:
    """Return held-out values in which the first pairs are right and the others wrong. All margins
    are equal in size, but right ones are multiplied by `scale`, which raises the soft share."""
    margins = np.where(np.arange(PAIRS) < round(accuracy * PAIRS), scale, -1.0)
    return HeldOut(*(each.astype(np.float32) for each in (margins, 0 * margins, margins / 10)))


def finish(
    driver: Driver, trial: Any, accuracy: float, drift: float = 1.0, scale: float = 1.0
) -> None:
    """End a trial with one report, and export its weights as a session would."""
    report = {"pairs_seen": 512, "eval/accuracy": accuracy, "eval/nll": 0.5, "eval/drift": drift}
    _offer(driver, trial, report, Rivals(driver.records.objective, driver.config.exports_kept,
                                         PAIRS))  # fmt: skip
    step = Step(report, began=1.0, seconds=1.0, held_out=held_out(accuracy, scale))
    driver.complete(trial, result_of(step, Ending.FINISHED))
