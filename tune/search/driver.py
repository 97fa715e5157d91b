"""The driver of a search: runs it, resumes it and adds trials to it.

This file is the order of events. Each step is a call of the module that owns it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError
from tune.cluster.connection import connected
from tune.config.checks import check, refuse_without_axes
from tune.config.load import load_search, search_of
from tune.config.schema import SearchConfig
from tune.report.page import keep_fresh, write_or_warn
from tune.run_folder.assemble import assemble
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.driver_lease import only_driver, refresh
from tune.run_folder.folder import (
    Run,
    find_run,
    forget_empty_run,
    open_run,
    refuse_private_folder,
    refuse_unwritable,
)
from tune.run_folder.paths import RunFolder, RunLike
from tune.run_folder.results import Results, load_results, read_results, write_results
from tune.run_folder.run_info import create_run
from tune.run_folder.yaml_file import write_yaml
from tune.search import preflight
from tune.search.deploy import deploy_if_configured
from tune.search.interruption import disk_failure_as_interruption, termination_as_interruption
from tune.search.memory_plan import fit_into_memory
from tune.search.prepared_data import find_prepared_data, plan_prepared_data, tokens_folder
from tune.search.resume import (
    adopt,
    finished_message,
    grow,
    is_finished,
    refuse_other_files,
    refuse_other_search,
    refuse_warm_clones,
    reopen_trials,
)
from tune.search.signs_of_life import SignsOfLife
from tune.search.study_storage import open_storage
from tune.search.tokenising import Tokenising
from tune.search.user_code import approve
from tune.search.warm_start import with_earlier_points
from tune.tracking.child_process import TrackingProcess


def run(
    search: str | Path | Mapping[str, Any] | SearchConfig,
    overrides: Mapping[str, Any] | None = None,
) -> Results:
    """Run a search to its end and return its results, as `dpo-tune run` does.

    `search` is a YAML file, or its content as a dict. `overrides` are values by dotted path. An
    unfinished search of the same configuration is continued. Raises InputError and StoreError
    before work begins, and Interrupted after SIGINT or SIGTERM.
    """
    if isinstance(search, SearchConfig):
        config = check(search)
    elif isinstance(search, Mapping):
        config = search_of(search, overrides)
    else:
        config = load_search(Path(search), overrides)
    with SignsOfLife() as signs:
        return _run(config, signs)


def _run(config: SearchConfig, signs: SignsOfLife) -> Results:
    # --- refuse what can't work, before anything is written ---
    refuse_without_axes(config, f"{config.name}.yaml")
    signs.doing(f"{config.name}: checking model, data and outputs")
    config = with_earlier_points(config)
    preflight.refuse_impossible(config)
    preflight.refuse_impossible_end(config)

    # --- continue a search that exists ---
    folder = RunFolder.at(config.folder)
    refuse_private_folder(folder)
    refresh(folder)
    if folder.exists:
        refuse_unwritable(folder.path)
        refuse_other_search(folder, config)
        with only_driver(folder):
            return _continue(adopt(_opened(folder), config), signs)

    # --- or begin a new one: plan the data, write the run folder, train ---
    refuse_unwritable(folder.path.parent)
    open_storage(config.storage)
    refuse_other_files(folder)
    signs.doing(f"{config.name}: reading the data")
    config, prepared = plan_prepared_data(config, signs.say)
    folder.path.mkdir(parents=True, exist_ok=True)
    with only_driver(folder):
        write_yaml(folder.search_yaml, config)
        create_run(folder, prepared, config.device)
        return _continue(open_run(folder), signs)


def resume(run_folder: RunLike, trials: int | None = None) -> Results:
    """Continue the search of a run folder, with `trials` in all if given. Raises InputError."""
    folder = find_run(run_folder)
    refuse_unwritable(folder.path)
    with only_driver(folder):
        run = _opened(folder)
        if trials is not None:
            run = grow(run, trials)
        if not is_finished(run):
            preflight.refuse_impossible_end(run.config)
        with SignsOfLife() as signs:
            return _continue(run, signs)


def _opened(folder: RunFolder) -> Run:
    """Open the run. Damaged records and results are left out, and their files renamed."""
    run = open_run(folder, sets_aside=True)
    if folder.results_json.exists():
        results = read_results(folder)
        if isinstance(results, DamagedFile):
            results.warn(sets_aside=True)
    return run


def _continue(run: Run, signs: SignsOfLife) -> Results:
    """Bring a search to its end, from wherever it is."""
    try:
        return _to_its_end(run, signs)
    except InputError:
        # The user will correct the input and run again under the same name, so we remove a run
        # folder in which nothing was trained.
        forget_empty_run(run.folder)
        raise


def _to_its_end(run: Run, signs: SignsOfLife) -> Results:
    folder, config, records = run.folder, run.config, run.records
    with disk_failure_as_interruption(folder):
        # --- a finished search has only its winner to publish ---
        if is_finished(run):
            signs.say(finished_message(run))
            return _publish(load_results(folder), config)

        # --- prepare: user code, data, memory, open trials ---
        refuse_warm_clones(records)
        approve(config, records.run)
        find_prepared_data(config, records)
        tokenising = Tokenising(tokens_folder(config, records))
        try:
            config = fit_into_memory(config, records.run.prepared_folder)
            run = replace(run, config=config)
            reopen_trials(records)
            records.begin_driver_session()

            # --- search, while a child process feeds the trackers ---
            tracking = TrackingProcess(folder, config)
            try:
                return _publish(_search(run, signs, tokenising), config)
            finally:
                tracking.close()
                folder.live_json.unlink(missing_ok=True)  # nothing is running any more
        finally:
            tokenising.close()


def _search(run: Run, signs: SignsOfLife, tokenising: Tokenising) -> Results:
    """Train trials until no more start and the winner is known, then write results and report."""
    config, records = run.config, run.records

    # --- start Ray, or connect to a cluster ---
    address = os.environ.get("RAY_ADDRESS")
    signs.doing(f"connecting to the Ray cluster at {address}" if address else "starting Ray")
    with (
        connected(config, import_meanwhile="tune.search.tuner"),
        termination_as_interruption(),
        keep_fresh(records.folder),
    ):
        from tune.search.tuner import run_trials  # `connected` imports Ray, nothing before it may

        # --- wait for the tokenised rows, which were begun while Ray started ---
        tokenising.finish(config.name, signs, config.data.on_bad_row)

        # --- train all trials, choose the winner, evaluate it on the test split ---
        outcome = run_trials(config, records, signs)
        signs.doing("ending Ray")

    # --- write results.json and report.html ---
    results = assemble(config, records, outcome.end)
    results = results.model_copy(update={"environment": outcome.environment})
    write_results(records.folder.results_json, results)
    write_or_warn(records.folder, lambda: results)
    if not outcome.is_budget_spent and not is_finished(run):
        command = dpo_tune("resume", records.folder.argument)
        print(f"a clone was requested too late for this run; to try it: {command}")
    return results.at(records.folder)


def _publish(results: Results, config: SearchConfig) -> Results:
    """Push the winner and serve it, if the configuration says so."""
    if config.hub.when != "never":
        from tune.publish.push import push_if_configured  # the Hub's client takes half a second

        results = push_if_configured(results, config)
    return deploy_if_configured(results, config)
