"""TODO"""

from __future__ import annotations

from dpo_train import data, reference
from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.config.schema import SearchConfig
from tune.run_folder.records import Records


def find_prepared(config: SearchConfig, records: Records) -> None:
    """Plans the prepared data anew where it was removed, or where the runs folder was moved."""
    there = records.run.prepared_folder
    if mirror.exists(there / "plan.json"):
        for name in ("plan.json", "rows.jsonl"):
            mirror.fetch_once(there / name)
        return
    pairs = data.load_pairs(config.data)
    root = config.prepared_root.absolute()
    prepared = reference.plan(config.base_trial(), pairs, root, config.device)
    if prepared.name != there.name:
        raise InputError(
            f"{mirror.shown(records.folder)}: its model or data have changed since it began, so "
            "its trials can't be compared with new ones; start another search with `--name NEW`"
        )
    records.run.prepared = mirror.name(prepared)
