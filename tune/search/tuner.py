"""Runs a search's trials with Ray Tune: one Tuner with our searcher, scheduler and stopper, which
share one `Records`. Ray Tune places the processes; our plug-ins decide everything else.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace

import ray
from ray.tune import (
    CheckpointConfig,
    CLIReporter,
    FailureConfig,
    RunConfig,
    TuneConfig,
    Tuner,
    with_resources,
)

from dpo_train.errors import DpoError, InputError, one_line
from tune.cluster.capacity import bundles, keep_secrets_out_of_ray, trial_capacity
from tune.cluster.environment import Environment, describe
from tune.config.schema import SearchConfig
from tune.errors import Interrupted, SearchAborted
from tune.run_folder.assemble import SearchEnd
from tune.run_folder.records import Records
from tune.search.abort import AbortStopper, store_failure
from tune.search.broken_gpus import BrokenGpus
from tune.search.deaths import is_memory_monitors
from tune.search.early_stopping import make_stopping_rule
from tune.search.final_tasks import FinalTasks
from tune.search.prepared_data import most_pairs
from tune.search.progress import Progress
from tune.search.resume import reopen_trials
from tune.search.scheduler import SearchScheduler
from tune.search.searcher import StudySearcher
from tune.search.signs_of_life import SignsOfLife
from tune.search.watch import Watch
from tune.workers.coordinator import coordinated
from tune.workers.tasks import task_of
from tune.workers.trainable import DpoTrial

_FAILURES_WITHOUT_PROGRESS = 3
"""How many deaths of a trial's process without a report in between let Ray Tune give it up."""


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a driver session that came to its end."""

    end: SearchEnd
    is_budget_spent: bool
    environment: Environment


def run_trials(config: SearchConfig, records: Records, signs: SignsOfLife) -> SearchOutcome:
    """Train trials until the searcher has no more and the final tasks are done.

    Raises Interrupted if the search can go on later, and InputError if a trial found an error in
    the user's input.
    """
    # Ray Tune would print a traceback for each process that dies. The scheduler already prints a
    # line, so we silence it.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    keep_secrets_out_of_ray()
    # The members of a trial write one state together. If the run is at a URL, the folder of only
    # one node is uploaded, so all members must be on the same node.
    trial = bundles(config.resources, records.folder.url is not None)
    with closing(BrokenGpus(trial, signs)) as broken_gpus:
        while True:
            try:
                return _run_tuner(config, records, signs, broken_gpus)
            except _MemoryMonitorKill as kill:
                # Ray Tune itself ends when Ray's memory monitor ends a trial's process. So all
                # trials go on from their saved states in a new Tuner, with smaller passes.
                _go_on_with_less(records, signs, kill)


def _go_on_with_less(records: Records, signs: SignsOfLife, kill: _MemoryMonitorKill) -> None:
    """Halve the passes and reopen all trials. Raises Interrupted if that has not helped before."""
    lowered = records.halve_tokens(kill.tokens)
    records.memory_kills += 1
    if not lowered and records.memory_kills > _FAILURES_WITHOUT_PROGRESS:
        raise Interrupted(
            records.folder.path, "Ray's memory monitor ended processes again and again"
        ) from kill
    most = records.run.most_tokens
    bound = f"; passes have at most {most} tokens now" if most else ""
    signs.say(f"Ray's memory monitor ended a trial's process; all trials go on{bound}")
    reopen_trials(records)


class _MemoryMonitorKill(DpoError):
    """Ray's memory monitor ended a trial's process, and with it Ray Tune."""

    def __init__(self, tokens: int) -> None:
        """`tokens` is the size of the largest pass."""
        super().__init__(tokens)
        self.tokens = tokens


def _run_tuner(
    config: SearchConfig, records: Records, signs: SignsOfLife, broken_gpus: BrokenGpus
) -> SearchOutcome:
    # --- our plug-ins ---
    signs.doing("starting the trials' processes")
    progress = Progress(records, config.total_runs, signs)
    final_tasks = FinalTasks(config, records)
    searcher = StudySearcher(
        config,
        records,
        final_tasks,
        progress,
        capacity=lambda: trial_capacity(config, broken_gpus.count),
    )
    stopper = AbortStopper(records, broken_gpus)
    rungs = make_stopping_rule(config, most_pairs(config, records))
    scheduler = SearchScheduler(config, records, searcher, rungs, stopper)

    # --- the coordinator, and a scratch folder for Ray Tune, from which we read nothing ---
    with (
        coordinated(config, records.run.prepared) as coordinator,
        tempfile.TemporaryDirectory(prefix="dpo-tune-", ignore_cleanup_errors=True) as scratch,
    ):
        stopper.at_each_turn = Watch(coordinator, records, searcher, progress).look
        signs.follow(progress.view)

        # --- Ray Tune ---
        tuner = Tuner(
            with_resources(DpoTrial, broken_gpus.trial),
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: task_of(trial.config).name,
                trial_dirname_creator=lambda trial: task_of(trial.config).name,
            ),
            run_config=RunConfig(
                name=records.folder.name,
                storage_path=scratch,
                verbose=0,
                progress_reporter=CLIReporter(),  # the one for notebooks clears the cell's output
                failure_config=FailureConfig(max_failures=_FAILURES_WITHOUT_PROGRESS),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                stop=stopper,
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            failed = records.unwritten or store_failure(error)
            if is_memory_monitors(error) and not failed:
                tokens = [doing.tokens_at_once for doing in progress.live.trials.values()]
                raise _MemoryMonitorKill(max(tokens, default=0)) from error
            if not (isinstance(error, SearchAborted) or failed):
                raise
            reason = str(error) if isinstance(error, SearchAborted) else one_line(failed)
            raise Interrupted(records.folder.path, reason) from error
        records.touch()

    # --- the result, or why there is none ---
    if scheduler.input_error:
        raise InputError(scheduler.input_error)
    if not final_tasks.is_done:
        raise Interrupted(records.folder.path)
    return SearchOutcome(
        replace(final_tasks.end, stop_reason=searcher.stop_reason),
        bool(searcher.budget_spent),
        describe(ray.cluster_resources()),
    )
