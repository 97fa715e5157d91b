"""Runs, resumes and grows a search: the one effectful shell of the package."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dpo_train import data, model_source, reference
from dpo_train.errors import InputError, one_line
from dpo_train.storage import mirror
from dpo_train.storage.disk import NoRoom
from dpo_train.storage.object_store import StoreFailed
from tune.cluster.connection import connected
from tune.cluster.environment import describe
from tune.config.checks import check
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.report.page import keep_fresh, write_or_warn
from tune.run_folder import trial_state, yaml_file
from tune.run_folder.driver_lease import only_driver, refresh
from tune.run_folder.folder import find_run, is_run, open_run, refuse_private_folder
from tune.run_folder.records import ENDED, Records, create_run
from tune.run_folder.results import Results, assemble, load_results, write_results
from tune.search import deploy, preflight, resume_checks
from tune.search.prepared_data import find_prepared
from tune.search.study_storage import open_storage
from tune.search.warm_start import with_earlier_points
from tune.tracking.child_process import Tracker

# A disk that is full, or gone; what was written is whole.
_DISK_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


class Interrupted(Exception):
    """The search was interrupted; the message says why and how it goes on."""

    def __init__(self, folder: Path, reason: str = "interrupted") -> None:
        super().__init__(f"{reason}; to go on: dpo-tune resume {mirror.shown(folder)}")
        self.folder = folder


def run(search: str | Path | SearchConfig, overrides: Mapping[str, Any] | None = None) -> Results:
    """Runs a search to its end and returns its results; the same as `dpo-tune run`.

    Goes on where an unfinished search of the same configuration stands. Raises InputError,
    StoreFailed before work, and Interrupted after SIGINT or SIGTERM.
    """
    if isinstance(search, SearchConfig):
        config = check(search)
    else:
        config = load_search(Path(search), overrides)
    config = with_earlier_points(config)
    preflight.refuse_impossible(config)
    preflight.refuse_impossible_end(config)
    folder = config.folder
    refuse_private_folder(folder)
    refresh(folder)
    if is_run(folder):
        resume_checks.refuse_other_search(folder, config)
        with only_driver(folder):
            resume_checks.adopt(folder, config)
            return _go_on(folder)
    open_storage(config.storage)
    resume_checks.refuse_other_files(folder)
    if config.trainer == "simulated":
        prepared = Path()
    else:
        config = config.model_copy(update={"model": model_source.resolve(config.model)})
        pairs = data.load_pairs(config.data)
        print(f"{config.name}: {pairs.summary()}", flush=True)
        if len(pairs.splits["eval"]) < 10:
            print(
                f"warning: {len(pairs.splits['eval'])} held-out pair(s) cannot tell trials apart; "
                "the winner will be a matter of luck",
                flush=True,
            )
        prepared = reference.plan(
            config.base_trial(), pairs, config.prepared_root.absolute(), config.device
        )
    folder.mkdir(parents=True, exist_ok=True)
    with only_driver(folder):
        yaml_file.write_yaml(folder, config)
        create_run(folder, prepared, config.device)
        return _go_on(folder)


def resume(run_folder: str | Path, trials: int | None = None) -> Results:
    """Goes on with a run folder; with `trials`, the search grows to so many. Raises InputError."""
    folder = find_run(run_folder)
    with only_driver(folder):
        config = load_search(folder / "search.yaml")
        if trials is not None:
            if trials < config.total_trials:
                raise InputError(
                    f"--trials {trials}: this search has {config.total_trials}; give more, or "
                    "`+16` for 16 more"
                )
            resume_checks.refuse_warm_clones(open_run(folder)[1])
            yaml_file.write_yaml(folder, config.model_copy(update={"trials": trials}))
        if not resume_checks.is_finished(folder):
            preflight.refuse_impossible_end(config)
        return _go_on(folder)


def _go_on(folder: Path) -> Results:
    try:
        return _to_the_end(folder)
    except OSError as error:
        if not isinstance(error, NoRoom | StoreFailed) and error.errno not in _DISK_FAILED:
            raise
        raise Interrupted(folder, one_line(error)) from error


def _to_the_end(folder: Path) -> Results:
    config, records = open_run(folder)
    if resume_checks.is_finished(folder):
        return _publish(load_results(folder), config)
    resume_checks.refuse_warm_clones(records)
    if config.trainer != "simulated":
        find_prepared(config, records)
    ended = {record.id for record in records.trials.values() if record.state in ENDED}
    trial_state.drop_ended_states(folder, ended)
    for record in records.open_trials():
        saved, told = trial_state.last_state(folder, record.id, record.pairs_seen)
        if told:
            print(f"warning: {record.id}: {told}", flush=True)
        records.reopen(record.id, saved)
    records.begin_sitting()
    tracker = Tracker(folder, config.wandb)
    try:
        return _publish(_search(config, records), config)
    finally:
        tracker.close()


def _publish(results: Results, config: SearchConfig) -> Results:
    if config.hub.when != "never":
        from tune.publish.push import push_if_asked

        results = push_if_asked(results, config)
    return deploy.deploy_if_asked(results, config)


def _search(config: SearchConfig, records: Records) -> Results:
    with (
        connected(config),
        _scratch_folder() as scratch,
        _termination_as_interrupt(),
        _broker(config, records),
    ):
        import ray
        from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
        from ray.tune import with_resources as on

        from tune.cluster.capacity import bundles, keep_secrets_out_of_ray, trial_capacity
        from tune.search.abort import Halt, Halted, store_failure
        from tune.search.final_tasks import Judging
        from tune.search.progress import Progress
        from tune.search.scheduler import SearchScheduler
        from tune.search.searcher import StudySearcher
        from tune.workers.trainable import DpoTrial

        # Of a process that died Tune would print a traceback; the scheduler says it in a line.
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
        keep_secrets_out_of_ray()
        progress = Progress(records, config.total_runs)
        judging = Judging(config, records)
        searcher = StudySearcher(
            config, records, judging, progress, partial(trial_capacity, config)
        )
        most_pairs = _most_pairs(config, records)
        halt = Halt(records)
        scheduler = SearchScheduler(config, records, searcher, judging, progress, most_pairs, halt)
        tuner = Tuner(
            # Members write one state together: of a URL into one node's folder, to be brought.
            on(DpoTrial, bundles(config.resources, mirror.is_url(config.runs_dir))),
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=RunConfig(
                name=records.folder.name,
                storage_path=scratch,
                verbose=0,
                failure_config=FailureConfig(max_failures=3),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                stop=halt,
            ),
        )
        with keep_fresh(records.folder, lambda: assemble(config, records, None, {}, "")):
            try:
                tuner.fit()
            except Exception as error:
                failed = records.unwritten or store_failure(error)
                if not (isinstance(error, Halted) or failed):
                    raise
                reason = str(error) if isinstance(error, Halted) else one_line(failed)
                raise Interrupted(records.folder, reason) from error
            finally:
                progress.close()
        records.touch()
        if scheduler.input_error:
            raise InputError(scheduler.input_error)
        if not judging.is_done:
            raise Interrupted(records.folder)
        environment = describe(ray.cluster_resources())
    results = assemble(
        config,
        records,
        judging.stamp,
        judging.verdict,
        searcher.stop_reason,
        judging.confirmation,
    )
    results = results.model_copy(update={"environment": environment})
    write_results(records.folder, results)
    write_or_warn(records.folder, lambda: results)
    where = mirror.shown(records.folder)
    if not resume_checks.is_finished(records.folder) and not searcher.budget_spent:
        print(f"a clone was asked for at the very end; dpo-tune resume {where} tries it")
    return results.at(records.folder)


def _most_pairs(config: SearchConfig, records: Records) -> int:
    """No trial trains on more: the rows before tokenising, times the most epochs."""
    if config.trainer == "simulated":
        return config.simulated.pairs * config.most_epochs
    rows = (records.run.prepared_folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    return len(rows) * config.most_epochs


@contextlib.contextmanager
def _broker(config: SearchConfig, records: Records) -> Iterator[None]:
    """Where packed trials find the engine of their device."""
    from tune.workers.engine_broker import brokered

    with brokered(config, records.run.prepared):
        yield


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    """Ray Tune insists on writing somewhere; nothing is read from there again."""
    folder = tempfile.mkdtemp(prefix="dpo-tune-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, which clusters send, ends the search as Ctrl-C does: Tune knows only SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
