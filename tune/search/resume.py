"""Decides how a driver continues a run folder: whether anything is left to do, whether it is the
same search, and whether it may grow. Then it takes open trials back to their saved states.
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
from tune.run_folder.records import Records
from tune.run_folder.results import load_results
from tune.run_folder.run_info import RunInfo
from tune.run_folder.trial_record import ENDED
from tune.run_folder.yaml_file import flat, write_yaml
from tune.search import choose_winner

# These fields don't affect trials, so they may differ between driver sessions.
_MAY_CHANGE = ("storage", *OUTPUTS, "confirm", "constraints", "repeat_points")
_CHOOSES = ("confirm", "constraints")
"""Fields that decide which trial wins."""
_CHANGED_DEFAULTS = ((1 / 6, 0.1667),)
"""Defaults (of eval_fraction) that an earlier version wrote into run folders, and today's."""

_MORE = 8
"""How many more trials a finished search is offered at least; a large one is offered a third."""

EXHAUSTED = (
    "every point of the space has been tried; widen an axis and give the search a new name, or "
    f"type `{dpo_tune('run', 'YAML', '--set', 'repeat_points=true')}` to train points again"
)
"""The message that the space has no point left, and what to type."""


def is_finished(run: Run) -> bool:
    """Return whether nothing is left to do in a run folder."""
    folder, config, records = run.folder, run.config, run.records
    proposed_all = records.proposed >= config.total_trials or is_exhausted(run)
    complete = proposed_all and not records.open_trials()
    if not complete or not folder.results_json.exists() or Inbox(folder).next_clone():
        return False
    if choose_winner.next_run(config, records):
        return False
    # If the search grew, or if its winner is now chosen in another way, the results are old until
    # its new winner is evaluated.
    results, now = load_results(folder), config.model_dump(mode="json", by_alias=True)
    if any(results.search.get(name, now[name]) != now[name] for name in _CHOOSES):
        return False
    return len(results.runs) == len(records.trials)


def is_exhausted(run: Run) -> bool:
    """Return whether the space has no point left that the search may try."""
    config, records = run.config, run.records
    if config.repeat_points or records.proposed < len(config.given_points):
        return False
    return config.untried_point(records.standings.points.keys()) is None


def how_to_grow(run: Run) -> str:
    """Return the command that gives a search more trials; empty if its space has no point left."""
    if is_exhausted(run):
        return ""
    more = max(_MORE, len(run.records.searched) // 3)
    return dpo_tune("resume", run.folder.argument, "--trials", f"+{more}")


def finished_message(run: Run) -> str:
    """Return a line that says when a finished search ended, and how to give it more trials."""
    _, last_seen = run.records.run.driver_sessions[-1]
    ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_seen))
    command = how_to_grow(run)
    grow = f"for more trials: {command}" if command else EXHAUSTED
    return f"{run.config.name} already ended on {ended}; nothing was run now; {grow}"


def refuse_taken(folder: RunFolder, config: SearchConfig) -> None:
    """Raise InputError if a search can neither begin nor go on in this folder."""
    if folder.exists:
        refuse_other_search(folder, config)
    else:
        refuse_other_files(folder)


def refuse_other_search(folder: RunFolder, config: SearchConfig) -> None:
    """Raise InputError if the folder holds a search of another configuration."""
    existing, given = map(_comparable, (load_search(folder.search_yaml), config))
    times = RunInfo.read(folder).times
    for path in sorted(existing.keys() | given.keys()):
        if path in ("name", "runs_dir") or path.partition(".")[0] in _MAY_CHANGE:
            continue

        # --- differences that the program itself has made ---
        old, new = existing.get(path), given.get(path)
        pinned = path.endswith("revision") and new is None
        pinned = pinned or (old, new) in _CHANGED_DEFAULTS
        grown = (  # by `resume --trials`
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
                f"{folder} holds another search ({path} is {old!r} there, {new!r} here); give "
                f"`--name NEW`, or remove it with `{under}{dpo_tune('clean', folder.name)}`"
            )


def _comparable(config: SearchConfig) -> dict[str, JsonValue]:
    """Return every value by its path. A model's folder is absolute, as in the run folder."""
    model = from_anywhere(config.model)
    return flat(config.model_copy(update={"model": model}).model_dump(mode="json"))


def refuse_warm_clones(records: Records) -> None:
    """Raise InputError for a search with trials that only earlier versions can train."""
    for record in records.trials.values():
        if record.warm:
            raise InputError(
                f"{records.folder}: {record.id} is a warm clone: an earlier version started it "
                f"from the weights of {record.cloned_from}. This version can neither train it nor "
                "compare it with others; start another search with `--name NEW` and "
                f"`points: {{from: {records.folder}}}`"
            )


def grow(run: Run, trials: int) -> Run:
    """Give a search `trials` trials in all. Raises InputError if it has more, or can't go on."""
    config, records = run.config, run.records
    if trials < config.total_trials:
        raise InputError(
            f"--trials {trials}: this search already has {config.total_trials}; give a larger "
            "number, or `+16` for 16 more"
        )
    refuse_warm_clones(records)
    grown = check(config.model_copy(update={"trials": trials}))
    if is_exhausted(run):
        raise InputError(f"--trials {trials}: {EXHAUSTED}")
    write_yaml(run.folder.search_yaml, grown)
    return run.with_config(grown)


def reopen_trials(records: Records) -> None:
    """Take every open trial back to its last saved state, from which it goes on."""
    folder = records.folder
    ended = {record.id for record in records.trials.values() if record.state in ENDED}
    trial_state.drop_ended_states(folder, ended)
    for record in records.open_trials():
        saved, warning = trial_state.last_state(folder, record.id, record.pairs_seen)
        if warning:
            print(f"warning: {record.id}: {warning}", flush=True)
        records.reopen(record.id, saved)


def adopt(run: Run, config: SearchConfig) -> Run:
    """Take over the fields of the configuration that may change between driver sessions.

    Raises InputError, before anything is changed, if the winner must be chosen again but this
    version can't train the trials, or no stored weights keep the new bounds.
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
            f"constraints: no weights with {goal.bounds_text} are left, since this search kept "
            f"only those of its best {len(found)} trials; start another search with `--name NEW` "
            f"and `points: {{from: {records.folder}, best: 5}}`"
        )


def _evaluate(config: SearchConfig) -> str | None:
    return config.confirm.evaluate if config.confirm else None


def refuse_other_files(folder: RunFolder) -> None:
    """Raise InputError if a new run's folder already holds files."""
    if folder.url is not None:
        found = set(mirror.sizes(folder.path))
    else:
        found = {path.name for path in folder.path.glob("*")}
    if found - {folder.driver_lock.name, folder.heartbeat.name}:
        raise InputError(
            f"{folder} already holds other files; give `--name NEW`, or move them away"
        )
