"""`dpo-tune list` and `dpo-tune clean`: what occupies the runs folder, and its removal."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.driver_lease import only_driver, refresh
from tune.run_folder.folder import remove_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import ENDED, read_records
from tune.run_folder.run_info import RunInfo

PREPARED = ".prepared"


@dataclass(frozen=True)
class Stored:
    """One thing that occupies disk under the runs folder."""

    name: str
    kind: str
    state: str
    trials: int
    gigabytes: float
    folder: Path


def stored(runs_dir: Path) -> list[Stored]:
    """Every run and every prepared dataset, by name. Raises StoreError."""
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
            prepared.append(Stored(name, "prepared data", state, 0, gigabytes, folder))
        elif not name.startswith(".") and f"{name}/run.json" in sizes:
            run = RunFolder.at(folder)
            refresh(run)
            damaged: list[DamagedFile] = []
            ended = sum(record.state in ENDED for record in read_records(run, damaged.append))
            for each in damaged:
                each.warn(sets_aside=False)
            state = "finished" if f"{name}/results.json" in sizes else "unfinished"
            found.append(Stored(name, "run", state, ended, gigabytes, folder))
    return found + prepared


def print_stored(runs_dir: Path) -> None:
    """The same as a table."""
    print(f"{'name':32} {'what':14} {'state':11} {'trials':>6} {'GB':>7}")
    for item in stored(runs_dir):
        trials = str(item.trials) if item.kind == "run" else ""
        print(f"{item.name:32} {item.kind:14} {item.state:11} {trials:>6} {item.gigabytes:7.3f}")


def remove(runs_dir: Path, names: list[str]) -> list[Stored]:
    """Removes what is named, all or nothing. Raises InputError for a name that isn't there, and
    StoreError."""
    there = {item.name: item for item in stored(runs_dir)}
    chosen: list[Stored] = []
    for name in dict.fromkeys(names):
        if name not in there:
            known = ", ".join(there) or "nothing"
            raise InputError(f"clean: no {name!r} under {mirror.name(runs_dir)}; there is: {known}")
        _refuse_foreign(there[name])
        chosen.append(there[name])
    runs = {item.name: item for item in chosen if item.kind == "run"}
    for item in chosen:
        if item.kind != "run":
            runs |= {run.name: run for run in there.values() if _uses(run, item.folder)}
    with contextlib.ExitStack() as stack:
        for item in runs.values():
            stack.enter_context(only_driver(RunFolder.at(item.folder)))
        for item in chosen:
            remove_run(RunFolder.at(item.folder))
    return chosen


def _refuse_foreign(item: Stored) -> None:
    """Raises InputError for what no search has made."""
    folder = RunFolder.at(item.folder)
    if folder.url is None and item.folder.is_symlink():
        raise InputError(f"clean: {item.folder} is a link; remove it with `rm`")
    expected = folder.search_yaml.name
    if item.kind == "run" and expected not in mirror.sizes(item.folder):
        raise InputError(
            f"clean: {folder} has no {expected}, so no search has made it; remove it with `rm -r`"
        )


def _uses(item: Stored, prepared: Path) -> bool:
    """Whether an item is a run over that prepared data."""
    if item.kind != "run":
        return False
    try:
        used = RunInfo.read(RunFolder.at(item.folder)).prepared_folder
    except InputError:  # damaged: no driver works there
        return False
    return used.absolute() == prepared.absolute()
