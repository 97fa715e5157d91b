"""Writes the splits of prepared data, and their manifest, from the shards of the reference pass.

This module knows neither models nor which process computed which shard.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_train.data import SPLITS
from dpo_train.data.bad_rows import refuse_nothing_left
from dpo_train.reference_pass.manifest import BaseNumbers, Manifest
from dpo_train.reference_pass.plan import FORMAT
from dpo_train.reference_pass.rows import read_rows
from dpo_train.reference_pass.shards import ScoredShard
from dpo_train.reference_pass.tokens import Summary, TokenFile
from dpo_train.scoring import logps, metrics
from dpo_train.scoring.intervals import share_interval
from dpo_train.storage.files import checksum, write_here

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 1000
_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")


def write_splits(
    folder: Path, tokens: TokenFile, summary: Summary, shards: Sequence[ScoredShard]
) -> None:
    """Write train.arrow, eval.arrow and test.arrow, and manifest.json last.

    The bytes depend on the rows and their log-probs, and not on the order of the shards. Raises
    InputError if a split has no pair left.
    """
    # Put log-probs and texts into the order of the rows.
    scores = _in_order(tokens, shards)
    texts = _texts(folder, set(tokens.rows))
    refuse_nothing_left(
        {name: len(split.prompt_key) for name, split in texts.items()}, summary.dropped
    )

    # Write each split. Another node, whose lock is not visible here, may do the same at the same
    # time. So each writes into a folder of its own.
    working = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    sums: dict[str, str] = {}
    base: dict[str, BaseNumbers] = {}
    first = 0  # the rows of a split follow one another
    for name in SPLITS:
        indices = range(first, first + len(texts[name].prompt_key))
        first = indices.stop
        split_scores = [column[indices.start : indices.stop] for column in scores]
        table = _table(tokens, indices, texts[name], split_scores)
        _write_stream(table, working / f"{name}.arrow")
        (working / f"{name}.arrow").replace(folder / f"{name}.arrow")
        sums[f"{name}.arrow"] = checksum(folder / f"{name}.arrow")
        if name != "train":
            base[name] = _base_numbers(table.to_pydict())

    # The manifest comes last.
    manifest = Manifest(
        format=FORMAT,
        pairs={name: len(texts[name].prompt_key) for name in SPLITS},
        dropped=summary.dropped,
        pad_token_id=tokens.pad_token_id,
        base=base,
        sha256=sums,
    )
    write_here(working / "manifest.json", manifest.as_text())
    (working / "manifest.json").replace(folder / "manifest.json")
    shutil.rmtree(working)


@dataclass
class _Texts:
    """The texts of a split's rows that are kept."""

    prompt: list[str] = field(default_factory=list)
    """The row without its answers, as JSON: the prompt for a model."""
    chosen: list[str] = field(default_factory=list)
    prompt_key: list[str] = field(default_factory=list)


def _in_order(tokens: TokenFile, shards: Sequence[ScoredShard]) -> list[np.ndarray[Any, Any]]:
    """Return the reference log-probs of chosen and of rejected, in the order of the rows."""
    columns = []
    for name in _LOGPS:
        values = np.zeros(len(tokens.rows))
        for indices, shard in zip(tokens.shards, shards, strict=True):
            values[indices] = getattr(shard, name)
        columns.append(values)
    return columns


def _texts(folder: Path, kept: set[int]) -> dict[str, _Texts]:
    texts = {name: _Texts() for name in SPLITS}
    for number, (split, row) in enumerate(read_rows(folder)):
        if number in kept:
            prompt = replace(row, chosen=[], rejected=[]).as_json()
            texts[split].prompt.append(json.dumps(prompt, ensure_ascii=False))
            texts[split].chosen.append(row.chosen[-1].get("content") or "")
            texts[split].prompt_key.append(row.prompt_key)
    return texts


def _table(
    tokens: TokenFile, indices: Sequence[int], texts: _Texts, scores: Sequence[Any]
) -> pyarrow.Table:
    table = tokens.table(indices)
    for name, values in (*vars(texts).items(), *zip(_LOGPS, scores, strict=True)):
        table = table.append_column(name, [values])
    return table


def _write_stream(table: pyarrow.Table, path: Path) -> None:
    import pyarrow  # slow to import

    with (
        pyarrow.OSFile(str(path), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks(), max_chunksize=_BATCH_ROWS)


def _base_numbers(columns: dict[str, list[Any]]) -> BaseNumbers:
    chosen, rejected = (np.array(columns[name]) for name in _LOGPS)
    won = metrics.ranking(logps.pair_logps(columns, chosen, rejected))
    low, high = share_interval(won, columns["prompt_key"])
    return BaseNumbers(ranking=float(won.mean()), interval=(low, high), pairs=len(won))
