"""Tokenised rows and reference log-probs, computed once per base model and dataset, then mapped.

The folder's name is a hash of everything that decides the numbers. Its manifest is written last.
This module knows nothing of what is searched: no learning rate, beta, loss or rank.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_train import model, model_source
from dpo_train.config import TrainConfig
from dpo_train.data import SPLITS, Pairs
from dpo_train.reference_pass.forward_checks import check_forward
from dpo_train.reference_pass.manifest import BaseNumbers, Manifest
from dpo_train.reference_pass.plan import FORMAT, PLAN, read_plan
from dpo_train.reference_pass.rows import LOCATIONS, ROWS
from dpo_train.reference_pass.shards import ALONE, Pass, ScoredShard, Turns, remove_shards
from dpo_train.reference_pass.splits import write_splits
from dpo_train.reference_pass.tokens import TOKENS, TokenFile, tokenised
from dpo_train.scoring import logps
from dpo_train.storage import mirror
from dpo_train.storage.files import checksum, write_atomically, write_here

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class PreparedData:
    """A finished folder of prepared data."""

    folder: Path
    pad_token_id: int
    base: dict[str, BaseNumbers]
    """The base model's ranking, with its interval, on the splits eval and test."""
    dropped: dict[str, int]
    """How many rows were left out, by reason."""
    computed_pairs: int
    """Pairs whose reference log-probs this call computed."""

    def split(self, name: str) -> Dataset:
        """Return the rows of train, eval or test, memory-mapped.

        Columns: prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps, ref_rejected_logps (sums
        over completion tokens, in nats), prompt (messages as JSON), chosen (text), prompt_key.
        """
        from datasets import Dataset  # slow to import

        return Dataset.from_file(str(self.folder / f"{name}.arrow"))


def plan(config: TrainConfig, pairs: Pairs, root: Path, device: str) -> Path:
    """Return the prepared folder, and write into it what `prepare` needs. Imports no torch.

    `config.model` must be resolved. A GPU computes under bfloat16 autocast, so the kind of device
    is part of the folder's key.
    """
    ordered = [(name, row) for name in SPLITS for row in pairs.splits[name]]
    contents = ({"split": name, **row.as_json()} for name, row in ordered)
    text = "".join(json.dumps(content, ensure_ascii=False) + "\n" for content in contents)
    further = {
        "quantization": config.model.quantization,
        "attention": config.model.attention,
    }
    recipe = {
        "format": FORMAT,
        "model": model_source.fingerprint(config.model),
        "dtype": config.model.dtype,
        # Unused settings are not in the key, so that data of earlier versions keep their names.
        **{name: value for name, value in further.items() if value is not None},
        "device": device,
        "max_length_tokens": config.data.max_length_tokens,
        # Two searches over the same rows may treat bad rows differently.
        "on_bad_row": config.data.on_bad_row,
        "rows": hashlib.sha256(text.encode()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    if not mirror.exists(folder / PLAN):
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two drivers may plan the same folder at once
            write_atomically(folder / ROWS, text)
            # The locations are not part of the key: the same rows may come from another file.
            write_here(folder / LOCATIONS, "\n".join(row.location for _, row in ordered))
            base = config.model.model_dump(mode="json")
            content = {**recipe, "count": len(ordered), "base": base}
            write_atomically(folder / PLAN, json.dumps(content, indent=1))
    return folder


def prepare(folder: Path, turns: Turns = ALONE) -> PreparedData:
    """Return the prepared data of a planned folder. Compute it if it is not finished yet.

    All processes of a machine, and all machines with the folder's URL, that call this at the same
    time share the work in shards. `turns` may decide which shards this process takes. A pass that
    was killed goes on with the shards that are missing.

    Raises InputError for what `tokenised` and `check_forward` refuse and if no pair is left,
    and OutOfMemory if there is no memory for one pair.
    """
    if finished := _finished(folder, computed=0):
        return finished
    folder.mkdir(parents=True, exist_ok=True)  # a mirror of a URL may not have it yet
    task: _Task | None = None
    while True:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # it is held until the file is closed
            computed = task.shards.computed_pairs if task else 0
            finished = _finished(folder, computed) or _fetch_finished(folder, computed)
            if finished is None and task is not None:
                finished = _merge(folder, task)
            if finished is not None:
                if task is not None:
                    remove_shards(folder)
                    mirror.remove(folder / TOKENS)
                return finished
        # The pass runs without the folder's lock. Each shard has its own lock.
        if task is None:
            try:
                task = _Task(folder, turns)
            except FileNotFoundError:
                if not mirror.exists(folder / "manifest.json"):
                    raise
                continue  # another process has just merged it and removed its tokens
        task.shards.run()


def _finished(folder: Path, computed: int) -> PreparedData | None:
    """Return the data of a finished and undamaged folder; None for any other."""
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    except FileNotFoundError:
        return None
    for name, wanted in manifest.sha256.items():
        if not _is_intact(folder / name, wanted):
            (folder / "manifest.json").unlink(missing_ok=True)
            return None
    return PreparedData(folder, manifest.pad_token_id, manifest.base, manifest.dropped, computed)


def _fetch_finished(folder: Path, computed: int) -> PreparedData | None:
    """Download the data that another node has finished at the folder's URL; None if it has not."""
    try:
        manifest = Manifest.model_validate_json(mirror.read_text(folder / "manifest.json"))
    except FileNotFoundError:
        return None
    for name in manifest.sha256:
        mirror.fetch(folder / name)
    mirror.fetch(folder / "manifest.json")
    if finished := _finished(folder, computed):
        return finished
    # The files are mixed, because two nodes uploaded theirs at once. So the data is computed again.
    mirror.remove(folder / "manifest.json")
    return None


def _is_intact(file: Path, wanted: str) -> bool:
    """Return whether a file has the wanted checksum. A process reads each file only once."""
    if not file.is_file():
        return False
    stat = file.stat()
    seen = (str(file), stat.st_mtime_ns, stat.st_size, wanted)
    if seen not in _verified:
        if checksum(file) != wanted:
            return False
        _verified.add(seen)
    return True


_verified: set[tuple[str, int, int, str]] = set()


class _Task:
    """This process's share of the reference pass over a folder. Raises what `tokenised` raises."""

    def __init__(self, folder: Path, turns: Turns) -> None:
        self.summary = tokenised(folder)
        self.tokens = TokenFile(folder, self.summary.pad_token_id)
        self._plan = read_plan(folder)
        self._folder = folder
        self.shards = Pass(folder, self.tokens.shards, self._score, turns)

    def _score(self, indices: Sequence[int]) -> ScoredShard:
        columns = self.tokens.columns(indices)
        with model.errors_of_the_model_refused("the reference pass"):
            chosen, rejected = logps.score_with(
                self._forward, columns, self.tokens.pad_token_id, self._plan.device
            )
        return ScoredShard(chosen.tolist(), rejected.tolist())

    @cached_property
    def _forward(self) -> logps.Forward:
        """The reference's forward pass. A process loads the model when it computes its first shard.

        Raises what `check_forward` raises.
        """
        plan = self._plan
        warm_base = model.load_base(plan.base, plan.device, self._folder)
        base = warm_base.fresh(trained_in_full=False)
        forward = logps.forward_pass(base, plan.device)
        check_forward(base, self._row_of_middle_length())
        return forward

    def _row_of_middle_length(self) -> list[int]:
        shard = self.tokens.shards[len(self.tokens.shards) // 2]
        columns = self.tokens.columns([shard[len(shard) // 2]])
        return columns["prompt_ids"][0] + columns["chosen_ids"][0]


def _merge(folder: Path, task: _Task) -> PreparedData | None:
    """Merge the shards into the finished data, upload it to the folder's URL, and return it.

    Returns None if not all shards are complete. Raises InputError if no pair is left.
    """
    shards = task.shards.results() if task.shards.is_complete else None
    if shards is None:
        return None
    write_splits(folder, task.tokens, task.summary, shards)
    computed = task.shards.computed_pairs
    if theirs := _fetch_finished(folder, computed):
        return theirs
    for name in (*(f"{split}.arrow" for split in SPLITS), "manifest.json"):
        mirror.put(folder / name)  # the manifest goes last
    return _finished(folder, computed)


def prompt_keys(folder: Path, split: str) -> list[str]:
    """Return a key of the prompt of each row of a split, in order, without importing torch.

    Rows with the same prompt have the same key.
    """
    import pyarrow  # slow to import

    with pyarrow.memory_map(str(folder / f"{split}.arrow")) as file:
        table = pyarrow.ipc.open_stream(file).read_all()
        keys: list[str] = table["prompt_key"].to_pylist()
    return keys
