"""`dpo-tune list` and `dpo-tune clean`: list what lies in the runs folder, and remove it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.run_folder.driver_lease import is_driven, only_driver, refresh
from tune.run_folder.folder import open_run, remove_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import RunInfo
from tune.run_folder.trial_record import ENDED

PREPARED = ".prepared"


@dataclass(frozen=True)
class Stored:
    """A run, or a prepared dataset, under the runs folder."""

    name: str
    kind: str
    state: str
    gigabytes: float
    folder: Path
    trials: str = ""
    """For a run: ended trials and all trials, like `7/24`."""
    best: float | None = None
    """For a run: the objective's value at the best report."""
    objective: str = ""
    at: float | None = None
    """For a run: the Unix time at which a driver was last at work."""


def stored(runs_dir: Path) -> list[Stored]:
    """Return every run and every prepared dataset, sorted by name. Raises StoreError."""
    sizes = mirror.sizes(runs_dir)
    occupied: Counter[str] = Counter()
    for path, size in sizes.items():
        first, _, rest = path.partition("/")
        name = f"{PREPARED}/{rest.partition('/')[0]}" if first == PREPARED else first
        occupied[name] += size
    found, prepared = [], []
    for name, size in sorted(occupied.items()):
        folder, gigabytes = runs_dir / name, size / 1e9
        if name.startswith(f"{PREPARED}/"):
            state = "complete" if f"{name}/manifest.json" in sizes else "incomplete"
            prepared.append(Stored(name, "prepared data", state, gigabytes, folder))
        elif not name.startswith(".") and f"{name}/run.json" in sizes:
            refresh(RunFolder.at(folder))
            # It stays `unreadable` if this version can't read its records.
            found.append(_with_records(Stored(name, "run", "unreadable", gigabytes, folder)))
    return found + prepared


def _with_records(found: Stored) -> Stored:
    """Add what the run's records say, or nothing if this version can't read them."""
    folder = RunFolder.at(found.folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the search printed them when it began
            run = open_run(folder)
    except InputError:
        return found
    records = run.records
    has_ended = folder.results_json.is_file() and not records.open_trials()
    state = "running" if is_driven(folder) else "finished" if has_ended else "interrupted"
    objective, best, sessions = records.objective, records.best(), records.run.driver_sessions
    return replace(
        found,
        state=state,
        trials=f"{records.count(*ENDED)}/{run.config.total_runs + records.standings.clones}",
        best=best.metrics[objective.metric] if best else None,
        objective=objective.metric,
        at=sessions[-1][1] if sessions else None,
    )


def print_stored(runs_dir: Path) -> None:
    """Print what `stored` returns, as a table."""
    items = stored(runs_dir)
    width = max([len("name"), *(len(item.name) for item in items)])
    head = f"{'name':{width}} {'last at work':16} {'state':13} {'trials':>9} {'best':>7}"
    print(f"{head}  {'objective':14} {'GB':>7}")
    for item in items:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.at)) if item.at else ""
        state = item.state if item.kind == "run" else item.kind
        best = f"{item.best:.3f}" if item.best is not None else ""
        row = f"{item.name:{width}} {at:16} {state:13} {item.trials:>9} {best:>7}"
        print(f"{row}  {item.objective:14} {item.gigabytes:7.3f}")


def remove(runs_dir: Path, names: list[str]) -> list[Stored]:
    """Remove everything that is named, or nothing at all. Raises StoreError, and InputError for an
    unknown name."""
    existing = {item.name: item for item in stored(runs_dir)}
    chosen: list[Stored] = []
    for name in dict.fromkeys(names):
        if name not in existing:
            known = ", ".join(existing) or "nothing"
            raise InputError(
                f"clean: there is no {name!r} under {mirror.name(runs_dir)}; it holds: {known}"
            )
        _refuse_foreign(existing[name])
        chosen.append(existing[name])
    # No driver may work on a run that is removed, or on one whose prepared data are removed.
    runs = {item.name: item for item in chosen if item.kind == "run"}
    for item in chosen:
        if item.kind != "run":
            runs |= {run.name: run for run in existing.values() if _uses(run, item.folder)}
    with contextlib.ExitStack() as stack:
        for item in runs.values():
            stack.enter_context(only_driver(RunFolder.at(item.folder)))
        for item in chosen:
            remove_run(RunFolder.at(item.folder))
    return chosen


def _refuse_foreign(item: Stored) -> None:
    """Raise InputError for a folder that no search has made."""
    folder = RunFolder.at(item.folder)
    if folder.url is None and item.folder.is_symlink():
        raise InputError(f"clean: {item.folder} is a link; remove it with `rm`")
    expected = folder.search_yaml.name
    if item.kind == "run" and expected not in mirror.sizes(item.folder):
        raise InputError(
            f"clean: {folder} has no {expected}, so no search made it; remove it with `rm -r`"
        )


def _uses(item: Stored, prepared: Path) -> bool:
    """Return whether an item is a run that uses this prepared data."""
    if item.kind != "run":
        return False
    try:
        used = RunInfo.read(RunFolder.at(item.folder)).prepared_folder
    except InputError:  # the run is damaged, so no driver works on it
        return False
    return used.resolve() == prepared.resolve()
