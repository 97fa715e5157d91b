"""The prepared data of a search: planned before its first trial, found again when it is resumed.

Planning writes the rows and the key. The first trial computes the log-probs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpo_train import data, model_source, reference
from dpo_train.errors import InputError
from dpo_train.reference_pass.plan import PLAN, read_plan
from dpo_train.reference_pass.rows import ROWS
from dpo_train.storage import mirror
from tune.config.schema import SearchConfig
from tune.run_folder.records import Records

FEW_HELD_OUT_PAIRS = 10


def plan_prepared_data(
    config: SearchConfig, say: Callable[[str], None]
) -> tuple[SearchConfig, Path]:
    """Return the config with its model pinned to a commit, and the folder of its prepared data.

    `say` gets lines about the data. Raises InputError for a model or data that can't be read.
    """
    if config.trainer == "simulated":
        return config, Path()
    # Workers on an existing cluster have another working directory, so we make the path absolute.
    base = model_source.from_anywhere(model_source.resolve(config.model))
    config = config.model_copy(update={"model": base})
    pairs = data.load_pairs(config.data)
    say(f"{config.name}: read as: {pairs.read_as}")
    say(f"{config.name}: {pairs.summary()}")
    if len(pairs.splits["eval"]) < FEW_HELD_OUT_PAIRS:
        say(
            f"warning: {len(pairs.splits['eval'])} held-out pairs are too few to compare trials; "
            "the winner will be a matter of luck"
        )
    root = config.prepared_root.absolute()
    return config, reference.plan(config.base_trial(), pairs, root, config.device)


def find_prepared_data(config: SearchConfig, records: Records) -> None:
    """Plan the prepared data again if it was removed, or if the runs folder was moved.

    Raises InputError if model or data have changed since the search began.
    """
    if config.trainer == "simulated":
        return
    recorded = records.run.prepared_folder
    if mirror.exists(recorded / PLAN):
        mirror.fetch_once(recorded / ROWS)
        read_plan(recorded)  # it refuses data of another version
        return
    pairs = data.load_pairs(config.data)
    root = config.prepared_root.absolute()
    prepared = reference.plan(config.base_trial(), pairs, root, config.device)
    if prepared.name != recorded.name:
        raise InputError(
            f"{records.folder}: the model or the data have changed since this search began, so its "
            "trials can't be compared with new ones; start another search with `--name NEW`"
        )
    records.run.prepared = mirror.name(prepared)


def tokens_folder(config: SearchConfig, records: Records) -> Path | None:
    """Return the folder whose rows are tokenised before the first trial; None without data."""
    return None if config.trainer == "simulated" else records.run.prepared_folder


def most_pairs(config: SearchConfig, records: Records) -> int:
    """Return an upper bound of a trial's pairs: all rows, times the most epochs."""
    if config.trainer == "simulated":
        return config.simulated.pairs * config.most_epochs
    rows = (records.run.prepared_folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    return len(rows) * config.most_epochs
