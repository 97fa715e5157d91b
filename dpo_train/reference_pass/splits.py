"""The splits of prepared data, written from the shards of the reference pass, and their manifest.

Knows neither models nor who computed which shard.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_train.data import SPLITS
from dpo_train.errors import InputError
from dpo_train.reference_pass.rows import RowFile
from dpo_train.reference_pass.shards import ScoredShard
from dpo_train.scoring import logps, metrics
from dpo_train.scoring.bootstrap import bootstrap_interval
from dpo_train.storage.files import checksum, write_here

FORMAT = 1
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_TEXTS = ("prompt", "chosen", "prompt_key")
_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")


def write_splits(folder: Path, rows: RowFile, shards: Sequence[ScoredShard]) -> None:
    """Writes train.arrow, eval.arrow and test.arrow, and manifest.json last.

    The bytes depend on the rows and on what was computed of them, not on the order of the shards.
    Raises InputError if a split has no pair left.
    """
    from datasets import Dataset, disable_progress_bars  # slow to import

    disable_progress_bars()
    columns, dropped = _columns(rows, shards)
    _refuse_nothing_left(columns, dropped)
    sums: dict[str, str] = {}
    # Another node may do the same where its lock is not seen: neither disturbs the other.
    working = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    for name in SPLITS:
        Dataset.from_dict(columns[name]).save_to_disk(working / name, num_shards=1)
        (arrow,) = (working / name).glob("*.arrow")
        arrow.replace(folder / f"{name}.arrow")
        sums[f"{name}.arrow"] = checksum(folder / f"{name}.arrow")
    manifest = {
        "format": FORMAT,
        "pairs": {name: len(columns[name]["prompt_ids"]) for name in SPLITS},
        "dropped": dict(dropped),
        "pad_token_id": shards[0].pad_token_id,
        "base": {name: _base_numbers(columns[name]) for name in SPLITS if name != "train"},
        "sha256": sums,
    }
    write_here(working / "manifest.json", json.dumps(manifest, indent=1))
    (working / "manifest.json").replace(folder / "manifest.json")
    shutil.rmtree(working)


def _columns(
    rows: RowFile, shards: Sequence[ScoredShard]
) -> tuple[dict[str, dict[str, list[Any]]], Counter[str]]:
    """The columns of each split in the order of rows.jsonl, and how many rows each reason took."""
    places = {number: (shard, index) for shard in shards for index, number in enumerate(shard.rows)}
    reasons = dict(pair for shard in shards for pair in shard.dropped)
    columns: dict[str, dict[str, list[Any]]] = {
        name: {column: [] for column in (*IDS, *_TEXTS, *_LOGPS)} for name in SPLITS
    }
    dropped: Counter[str] = Counter()
    for number, (split, row) in enumerate(rows.read()):
        if number in reasons:
            dropped[reasons[number]] += 1
            continue
        shard, index = places[number]
        of_split = columns[split]
        for column in (*IDS, *_LOGPS):
            of_split[column].append(getattr(shard, column)[index])
        of_split["prompt"].append(json.dumps(row.prompt, ensure_ascii=False))
        of_split["chosen"].append(row.chosen[-1]["content"])
        of_split["prompt_key"].append(row.prompt_key)
    return columns, dropped


def _refuse_nothing_left(columns: dict[str, dict[str, list[Any]]], dropped: Counter[str]) -> None:
    for name, split in columns.items():
        if not split["prompt_ids"]:
            took = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise InputError(
                f"data: no pair is left for {name} after tokenising ({took}); raise "
                "data.max_length_tokens or give other rows"
            )


def _base_numbers(columns: dict[str, list[Any]]) -> dict[str, Any]:
    chosen, rejected = (np.array(columns[name]) for name in _LOGPS)
    won = metrics.ranking(logps.pair_logps(columns, chosen, rejected))
    return {
        "ranking": float(won.mean()),
        "interval": bootstrap_interval(won, columns["prompt_key"]),
        "pairs": len(won),
    }
