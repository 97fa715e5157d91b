"""The run folder: laid out, compared, listed, removed."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_train import mirror, store
from dpo_train.errors import InputError
from dpo_train.files import write_atomically
from tune import confirm
from tune.claim import BEAT, only_driver, refresh
from tune.cluster import RUNS, runs_dir
from tune.config import SearchConfig, load_search
from tune.inbox import Inbox
from tune.records import ENDED, Records, Sittings, read_records
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


def write_yaml(folder: Path, config: SearchConfig) -> None:
    """Saves the resolved configuration as `search.yaml`."""
    dump_yaml(folder / "search.yaml", config.model_dump(mode="json", by_alias=True))


def dump_yaml(path: Path, content: dict[str, Any]) -> None:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    YAML(typ="rt", pure=True).dump(content, stream)
    write_atomically(path, stream.getvalue())


def refuse_other_search(folder: Path, config: SearchConfig) -> None:
    """Raises InputError if the folder holds a search of another configuration."""
    there = flat(load_search(folder / "search.yaml").model_dump(mode="json"))
    here = flat(config.model_dump(mode="json"))
    times = Sittings.model_validate_json((folder / "run.json").read_text()).times
    for path in sorted(there.keys() | here.keys()):
        if path in ("name", "runs_dir") or path.partition(".")[0] in _MAY_CHANGE:
            continue
        old, new = there.get(path), here.get(path)
        pinned = path.endswith("revision") and new is None
        grown = (
            isinstance(old, int)
            and isinstance(new, int)
            and (  # by `resume`
                (path == "trials" and old > new) or (path == "optim.epochs" and old == new * times)
            )
        )
        if old != new and not pinned and not grown:
            where = mirror.shown(folder)
            under = f"{RUNS}={mirror.shown(folder.parent)} " if mirror.url(folder) else ""
            raise InputError(
                f"{where} holds another search ({path}: {old!r} there, {new!r} here); give "
                f"`--name NEW`, or remove it with `{under}dpo-tune clean {folder.name}`"
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


def refuse_other_files(folder: Path) -> None:
    """Raises InputError if a new run's folder holds something already."""
    if mirror.url(folder) is not None:
        there = set(mirror.sizes(folder))
    else:
        there = {path.name for path in folder.glob("*")}
    if there - {".lock", BEAT}:
        raise InputError(
            f"{mirror.shown(folder)} holds other files; give `--name NEW` or move them away"
        )


def root() -> Path:
    """Where runs stand if no YAML says otherwise. Raises InputError."""
    if mirror.is_url(runs_dir()):
        store.refuse_url(RUNS, runs_dir())
    return mirror.local(runs_dir())


def stored(runs_dir: Path) -> list[Stored]:
    """Every run and every prepared dataset, by name. Raises StoreFailed."""
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
            refresh(folder)
            ended = sum(record.state in ENDED for record in read_records(folder))
            state = "finished" if f"{name}/results.json" in sizes else "unfinished"
            found.append(Stored(name, "run", state, ended, gigabytes, folder))
    return found + prepared


def remove(runs_dir: Path, names: list[str]) -> list[Stored]:
    """Removes what is named, all or nothing. Raises InputError for a name that isn't there, and
    StoreFailed."""
    there = {item.name: item for item in stored(runs_dir)}
    for name in names:
        if name not in there:
            known = ", ".join(there) or "nothing"
            raise InputError(f"clean: no {name!r} under {mirror.name(runs_dir)}; there is: {known}")
    chosen = [there[name] for name in names]
    with contextlib.ExitStack() as stack:
        for item in chosen:
            if item.kind == "run":
                stack.enter_context(only_driver(item.folder))
        for item in chosen:
            if mirror.url(item.folder) is None:
                shutil.rmtree(item.folder)
            else:
                mirror.remove(item.folder, "run.json")
    return chosen


def flat(tree: object, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by their dotted paths."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
