"""The run folder: laid out, guarded against a second driver, listed, removed."""

from __future__ import annotations

import contextlib
import fcntl
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_train.errors import InputError
from dpo_train.files import write_atomically
from tune import confirm
from tune.config import SearchConfig, load_search
from tune.inbox import Inbox
from tune.records import ENDED, Records, read_records
from tune.results import load_results

PREPARED = ".prepared"
# Nothing of the trials themselves.
_MAY_CHANGE = ("storage", "wandb", "hub", "serve", "confirm", "select")
_CHOOSES = ("confirm", "select")


@dataclass(frozen=True)
class Stored:
    """One thing that occupies disk under the runs folder."""

    name: str
    kind: str
    state: str
    trials: int
    gigabytes: float
    folder: Path


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def opened(folder: Path) -> tuple[SearchConfig, Records]:
    """The resolved configuration of a run folder, and its records."""
    config = load_search(folder / "search.yaml")
    return config, Records(folder, config.goal)


def is_finished(folder: Path) -> bool:
    """Whether nothing is left to do in a run folder."""
    config, records = opened(folder)
    complete = records.proposed >= config.total_trials and not records.open_trials()
    if not complete or not (folder / "results.json").exists() or Inbox(folder).next_clone():
        return False
    if confirm.next_run(config, records):
        return False
    # A search that grew, or whose winner is chosen otherwise now, has the results of before until
    # its winner is judged.
    results, now = load_results(folder), config.model_dump(mode="json", by_alias=True)
    if any(results.search.get(name, now[name]) != now[name] for name in _CHOOSES):
        return False
    return len(results.runs) == len(records.trials)


def write_yaml(folder: Path, config: SearchConfig, only_set: bool = False) -> None:
    """Saves the resolved configuration as `search.yaml`, or only what was given in it."""
    content = config.model_dump(mode="json", by_alias=True, exclude_unset=only_set)
    dump_yaml(folder / "search.yaml", content)


def dump_yaml(path: Path, content: dict[str, Any]) -> None:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    YAML(typ="rt", pure=True).dump(content, stream)
    write_atomically(path, stream.getvalue())


def refuse_other_search(folder: Path, config: SearchConfig) -> None:
    """Raises InputError if the folder holds a search of another configuration."""
    there = flat(load_search(folder / "search.yaml").model_dump(mode="json"))
    here = flat(config.model_dump(mode="json"))
    for path in sorted(there.keys() | here.keys()):
        if path in ("name", "runs_dir") or path.partition(".")[0] in _MAY_CHANGE:
            continue
        old, new = there.get(path), here.get(path)
        pinned = path.endswith("revision") and new is None
        grows = path in ("trials", "optim.epochs")  # by `resume`
        grown = grows and isinstance(old, int) and isinstance(new, int) and old > new
        if old != new and not pinned and not grown:
            raise InputError(
                f"{folder} holds another search ({path}: {old!r} there, {new!r} here); give "
                f"`--name NEW`, or remove it with `dpo-tune clean {folder.name}`"
            )


def adopt(folder: Path, config: SearchConfig) -> None:
    """Takes over from the configuration what may differ from sitting to sitting."""
    there = load_search(folder / "search.yaml")
    changes = {name: getattr(config, name) for name in _MAY_CHANGE}
    if _evaluate(there) != _evaluate(config):
        confirm.forget_evaluations(folder)
    if any(getattr(there, name) != value for name, value in changes.items()):
        write_yaml(folder, there.model_copy(update=changes))


def _evaluate(config: SearchConfig) -> str | None:
    return config.confirm.evaluate if config.confirm else None


@contextlib.contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock dies with it. Raises InputError if held."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process runs this search now; watch it with "
                f"`dpo-tune show {folder.name}`, or give `--name NEW`"
            ) from None
        yield


def stored(runs_dir: Path) -> list[Stored]:
    """Every run and every prepared dataset, by name."""
    found = []
    for folder in sorted(runs_dir.glob("[!.]*/")):
        if is_run(folder):
            records = list(read_records(folder))
            ended = sum(record.state in ENDED for record in records)
            state = "finished" if (folder / "results.json").exists() else "unfinished"
            found.append(Stored(folder.name, "run", state, ended, _gigabytes(folder), folder))
    for folder in sorted((runs_dir / PREPARED).glob("*/")):
        state = "complete" if (folder / "manifest.json").exists() else "incomplete"
        name = f"{PREPARED}/{folder.name}"
        found.append(Stored(name, "prepared data", state, 0, _gigabytes(folder), folder))
    return found


def remove(runs_dir: Path, names: list[str]) -> list[Stored]:
    """Removes what is named, all or nothing. Raises InputError for a name that isn't there."""
    there = {item.name: item for item in stored(runs_dir)}
    for name in names:
        if name not in there:
            known = ", ".join(there) or "nothing"
            raise InputError(f"clean: no {name!r} under {runs_dir}; there is: {known}")
    chosen = [there[name] for name in names]
    with contextlib.ExitStack() as stack:
        for item in chosen:
            if item.kind == "run":
                stack.enter_context(only_driver(item.folder))
        for item in chosen:
            shutil.rmtree(item.folder)
    return chosen


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def flat(tree: object, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by their dotted paths."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
