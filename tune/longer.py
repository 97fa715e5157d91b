"""`dpo-tune resume RUN --max-pairs x2`: the survivors of a finished search train on.

The state in which they ended lies in `ends/<trial>/<pairs_seen>/`, of the `keep_best` best trials,
and only where a longer training begins as the shorter one did.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from dpo_train import mirror
from dpo_train.config import TrainConfig
from dpo_train.errors import InputError
from dpo_train.files import write_atomically
from dpo_train.mirror import SEAL
from tune import checkpoints, runs
from tune.config import SearchConfig
from tune.records import Records, TrialRecord
from tune.room import NoRoom, leaving_no_part
from tune.seals import is_whole, seal

_OPEN_ENDED = ("constant", "constant_with_warmup")
"""Schedules that do not look at the planned end."""


def keep_end(
    run: Path,
    config: SearchConfig,
    trial_id: str,
    trial: TrainConfig,
    pairs_seen: int,
    save: Callable[[Path], None],
) -> None:
    """Saves the state of a trial that has trained all its pairs, if it may train on one day. A disk
    that has no room for it costs that alone."""
    wanted = trial.optim.schedule in _OPEN_ENDED and may_keep_ends(config)
    if not wanted or trial_id not in _best(run, config):
        return
    folder = _ends(run) / trial_id
    part = folder.with_name(f".{trial_id}.part")  # which the driver does not prune meanwhile
    shutil.rmtree(part, ignore_errors=True)
    made = part / str(pairs_seen)
    with contextlib.suppress(NoRoom), leaving_no_part(part):
        made.mkdir(parents=True)
        save(made / "session")
        seal(made)
        mirror.remove(folder)  # of a process that died right after
        part.replace(folder)
        with contextlib.suppress(FileNotFoundError):  # the driver has pruned it just now
            mirror.hand_over(folder / str(pairs_seen))


def may_keep_ends(config: SearchConfig) -> bool:
    """Whether any trial of a search may train on one day."""
    schedules = config.optim.schedule in _OPEN_ENDED or "optim.schedule" in config.space
    return schedules and "optim.epochs" not in config.space


def prune_ends(run: Path, config: SearchConfig) -> None:
    """Leaves the ends of the best trials; for the driver."""
    best = _best(run, config)
    there = {path.name for path in _ends(run).glob("[!.]*")}
    sealed = mirror.find(_ends(run), f"[!.]*/[0-9]*/{SEAL}")
    for trial in there.union(path.parents[1].name for path in sealed) - best:
        mirror.remove(_ends(run) / trial)


def lengthen(folder: Path, times: int) -> None:
    """Opens the survivors of a finished search again, with so many times the epochs.

    Raises InputError for a search that does not allow it, and changes nothing then.
    """
    config, records = runs.opened(folder)
    survivors = _survivors(config, records)
    epochs = config.optim.epochs * times
    try:
        longer = config.model_copy(
            update={"optim": type(config.optim)(**{**config.optim.model_dump(), "epochs": epochs})}
        )
    except ValueError:
        raise InputError(f"--max-pairs: that is {epochs} epochs; give fewer") from None
    # First, so that whatever follows a kill is no finished search: its winner is judged anew.
    mirror.remove(folder / "results.json")
    records.note_longer(times)
    runs.write_yaml(folder, longer)
    _tell_anew(folder, [record.id for record in survivors])
    # All are open before any state moves: what a death then costs is training, no survivor.
    for record in survivors:
        records.reopen(record.id, record.pairs_seen)
    for record in survivors:
        end, state = _ends(folder) / record.id, folder / "state" / record.id
        checkpoints.drop_state(folder, record.id)
        mirror.move(end / str(record.pairs_seen), state / str(record.pairs_seen))
        mirror.remove(end)


def _survivors(config: SearchConfig, records: Records) -> list[TrialRecord]:
    """The trials that can train on. Raises InputError if there are none, or should not be."""
    folder = records.folder
    schedule = config.optim.schedule
    told = ""
    if "optim.epochs" in config.space:
        told = "this search tries optim.epochs itself"
    elif schedule not in _OPEN_ENDED and "optim.schedule" not in config.space:
        told = (
            f"schedule {schedule} goes by the planned end, so a trial planned longer would have "
            "trained otherwise from the start"
        )
    elif not runs.is_finished(folder):
        raise InputError(
            f"--max-pairs: the search has not ended; type `dpo-tune resume "
            f"{mirror.shown(folder)}` first"
        )
    elif config.budget.hours and records.run.wall_seconds >= 3600 * config.budget.hours:
        told = f"budget.hours: {config.budget.hours:g} spent"
    elif records.confirmations:
        told = "its finalists were confirmed at the length that they have"
    survivors = [
        record
        for record in records.searched
        if record.state == "finished"
        and _is_kept(_ends(folder) / record.id / str(record.pairs_seen))
    ]
    if told or not survivors:
        told = told or f"no finished trial's last state is kept in {mirror.shown(_ends(folder))}"
        raise InputError(
            f"--max-pairs: {told}; give another search more optim.epochs and the best points of "
            f"this one, `points: {{from: {mirror.shown(folder)}}}`"
        )
    return survivors


def _tell_anew(folder: Path, trials: list[str]) -> None:
    """W&B was told all of them, which is true no more."""
    path = folder / "wandb.json"
    if path.exists():
        memory = json.loads(path.read_text())
        memory["told"] = {name: how for name, how in memory["told"].items() if name not in trials}
        write_atomically(path, json.dumps(memory, indent=1))


def _is_kept(end: Path) -> bool:
    """On a URL what is sealed was whole when it came there."""
    return mirror.exists(end / SEAL) if mirror.url(end) else is_whole(end)


def _best(run: Path, config: SearchConfig) -> set[str]:
    there = checkpoints.exports(run, config.goal)[: config.keep_best]
    return {checkpoints.configuration(stamp) for _, stamp in there}


def _ends(run: Path) -> Path:
    return run / "ends"
