"""What a driver asks of a run folder before it goes on there: is anything left to do, is it the
same search, may it grow. Then it brings the open trials back to their saved states.
"""

from __future__ import annotations

import shlex
import time

from pydantic import JsonValue

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError
from dpo_train.model_source import from_anywhere
from dpo_train.storage import mirror
from tune.config.checks import check
from tune.config.load import load_search
from tune.config.places import RUNS, runs_dir
from tune.config.schema import OUTPUTS, SearchConfig
from tune.run_folder import confirmation, exports, trial_state
from tune.run_folder.folder import Run
from tune.run_folder.inbox import Inbox
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import ENDED, Records
from tune.run_folder.results import load_results
from tune.run_folder.run_info import RunInfo
from tune.run_folder.yaml_file import flat, write_yaml
from tune.search import choose_winner

# Nothing of the trials themselves.
_MAY_CHANGE = ("storage", *OUTPUTS, "confirm", "constraints", "repeat_points")
_CHOOSES = ("confirm", "constraints")
_CHANGED_DEFAULTS = ((1 / 6, 0.1667),)
"""Values that an earlier version took and wrote where this one takes another: eval_fraction."""

_MORE = 8
"""Trials that a search which ended is offered; of a large one a third."""

EXHAUSTED = (
    "every point of the space has been tried; widen an axis and give the search a new name, or "
    f"type `{dpo_tune('run', 'YAML', '--set', 'repeat_points=true')}` to train points again"
)
"""Why no trial starts any more, and what to type."""


def is_finished(run: Run) -> bool:
    """Whether nothing is left to do in a run folder."""
    folder, config, records = run.folder, run.config, run.records
    proposed_all = records.proposed >= config.total_trials or is_exhausted(run)
    complete = proposed_all and not records.open_trials()
    if not complete or not folder.results_json.exists() or Inbox(folder).next_clone():
        return False
    if choose_winner.next_run(config, records):
        return False
    # A search that grew, or whose winner is chosen otherwise now, has the results of before until
    # its winner is evaluated.
    results, now = load_results(folder), config.model_dump(mode="json", by_alias=True)
    if any(results.search.get(name, now[name]) != now[name] for name in _CHOOSES):
        return False
    return len(results.runs) == len(records.trials)


def is_exhausted(run: Run) -> bool:
    """Whether the space has no point left that the search may still try."""
    config, records = run.config, run.records
    if config.repeat_points or records.proposed < len(config.given_points):
        return False
    return config.untried_point(records.standings.points.keys()) is None


def how_to_grow(run: Run) -> str:
    """The command that gives a search more trials; empty if its space has no point left."""
    if is_exhausted(run):
        return ""
    more = max(_MORE, len(run.records.searched) // 3)
    return dpo_tune("resume", run.folder.argument, "--trials", f"+{more}")


def what_ended(run: Run) -> str:
    """Says of a search that was finished before when it ended, that nothing is run, and how to let
    it grow."""
    _, last_seen = run.records.run.driver_sessions[-1]
    ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_seen))
    command = how_to_grow(run)
    grow = f"for more trials: {command}" if command else EXHAUSTED
    return f"{run.config.name} ended on {ended}; nothing was run now; {grow}"


def refuse_taken(folder: RunFolder, config: SearchConfig) -> None:
    """Raises InputError if a search can neither begin nor go on in this folder."""
    if folder.exists:
        refuse_other_search(folder, config)
    else:
        refuse_other_files(folder)


def refuse_other_search(folder: RunFolder, config: SearchConfig) -> None:
    """Raises InputError if the folder holds a search of another configuration."""
    there, here = map(_comparable, (load_search(folder.search_yaml), config))
    times = RunInfo.read(folder).times
    for path in sorted(there.keys() | here.keys()):
        if path in ("name", "runs_dir") or path.partition(".")[0] in _MAY_CHANGE:
            continue
        old, new = there.get(path), here.get(path)
        pinned = path.endswith("revision") and new is None
        pinned = pinned or (old, new) in _CHANGED_DEFAULTS
        grown = (  # by `resume`
            isinstance(old, int)
            and isinstance(new, int)
            and (
                (path == "trials" and old > new) or (path == "optim.epochs" and old == new * times)
            )
        )
        if old != new and not pinned and not grown:
            parent, usual = folder.path.parent, mirror.local(runs_dir())
            is_usual = parent.absolute() == usual.absolute()
            under = "" if is_usual else f"{RUNS}={shlex.quote(mirror.name(parent))} "
            raise InputError(
                f"{folder} holds another search ({path}: {old!r} there, {new!r} here); give "
                f"`--name NEW`, or remove it with `{under}{dpo_tune('clean', folder.name)}`"
            )


def _comparable(config: SearchConfig) -> dict[str, JsonValue]:
    """Every value by its path; of a model's folder its absolute path, as the run folder has it."""
    model = from_anywhere(config.model)
    return flat(config.model_copy(update={"model": model}).model_dump(mode="json"))


def refuse_warm_clones(records: Records) -> None:
    """Raises InputError for a search that holds trials which only earlier versions can train."""
    for record in records.trials.values():
        if record.warm:
            raise InputError(
                f"{records.folder}: {record.id} is a warm clone, which an earlier "
                f"version started from the weights of {record.cloned_from}; this version can't "
                "train it or compare others with it; start another search with `--name NEW` and "
                f"`points: {{from: {records.folder}}}`"
            )


def grow(run: Run, trials: int) -> Run:
    """Lets a search grow to so many trials. Raises InputError if it has more, or can't go on."""
    config, records = run.config, run.records
    if trials < config.total_trials:
        raise InputError(
            f"--trials {trials}: this search has {config.total_trials}; give more, or "
            "`+16` for 16 more"
        )
    refuse_warm_clones(records)
    grown = check(config.model_copy(update={"trials": trials}))
    if is_exhausted(run):
        raise InputError(f"--trials {trials}: {EXHAUSTED}")
    write_yaml(run.folder.search_yaml, grown)
    return run.with_config(grown)


def reopen_trials(records: Records) -> None:
    """Brings every open trial back to its last saved state, from which it goes on."""
    folder = records.folder
    ended = {record.id for record in records.trials.values() if record.state in ENDED}
    trial_state.drop_ended_states(folder, ended)
    for record in records.open_trials():
        saved, warning = trial_state.last_state(folder, record.id, record.pairs_seen)
        if warning:
            print(f"warning: {record.id}: {warning}", flush=True)
        records.reopen(record.id, saved)


def adopt(run: Run, config: SearchConfig) -> Run:
    """Takes over from the configuration what may differ from driver session to driver session.

    Raises InputError, before anything is changed, where the winner would have to be chosen anew
    among trials that this version can't train, or of which no weights keep the new bounds.
    """
    folder, existing, records = run.folder, run.config, run.records
    changes = {name: getattr(config, name) for name in _MAY_CHANGE}
    if any(getattr(existing, name) != changes[name] for name in _CHOOSES):
        refuse_warm_clones(records)
    if existing.constraints != config.constraints and records.proposed >= config.total_trials:
        _refuse_bounds_without_weights(records, config)
    if _evaluate(existing) != _evaluate(config):
        confirmation.forget_evaluations(folder)
    if all(getattr(existing, name) == value for name, value in changes.items()):
        return run
    changed = existing.model_copy(update=changes)
    write_yaml(folder.search_yaml, changed)
    return run.with_config(changed)


def _refuse_bounds_without_weights(records: Records, config: SearchConfig) -> None:
    goal, found = config.goal, exports.exports(records)
    if found and not any(goal.allows(each.stamp.report) for each in found):
        raise InputError(
            f"constraints: of this search no weights with {goal.bounds_text} are left, for it kept "
            f"those of the best {len(found)} trials; search again with another name and "
            f"`points: {{from: {records.folder}, best: 5}}`"
        )


def _evaluate(config: SearchConfig) -> str | None:
    return config.confirm.evaluate if config.confirm else None


def refuse_other_files(folder: RunFolder) -> None:
    """Raises InputError if a new run's folder holds something already."""
    if folder.url is not None:
        found = set(mirror.sizes(folder.path))
    else:
        found = {path.name for path in folder.path.glob("*")}
    if found - {folder.driver_lock.name, folder.heartbeat.name}:
        raise InputError(f"{folder} holds other files; give `--name NEW` or move them away")
