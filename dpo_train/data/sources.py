"""Reads a dataset's records from the sample, a file, a folder or the Hub."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dpo_train import hub_errors, sample
from dpo_train.config import DataConfig
from dpo_train.data.files import Record, format_of, read_file, without_nulls
from dpo_train.data.folders import files_by_card, split_files
from dpo_train.errors import InputError, one_line
from dpo_train.hub_offline import look_for_hub

_BATCH = 1000
_MEDIA = ("Image", "Audio", "Video", "Pdf")
"""Kinds of columns that are refused, by their class names in the `datasets` library."""


def read_records(config: DataConfig, split: str, wanted: Collection[str]) -> Iterator[Record]:
    """Yield the records of a split. Raises InputError if there is no such dataset.

    If the format allows it, only the `wanted` columns are read, and the others are null.
    """
    path = sample.PAIRS if config.id == "sample" else Path(os.path.expanduser(config.id))
    try:
        path.exists()
    except OSError as error:  # for example a name that is too long
        raise InputError(f"data.id: {config.id:.60}… can't be a path ({error.strerror})") from None
    if path.is_dir():
        yield from _folder(path, config, split, wanted)
    elif path.is_file():
        yield from read_file(path, wanted)
    elif format_of(path) or config.id.startswith((".", "/", "~")):
        raise InputError(f"data.id: no file {path}; give a path that exists or a Hub id")
    else:
        yield from _hub(config, split, wanted)


def _folder(
    path: Path, config: DataConfig, split: str, wanted: Collection[str]
) -> Iterator[Record]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        yield from _saved_to_disk(path, split, wanted)
        return
    files = files_by_card(path, split, config.config) or split_files(path, split, config.config)
    for file in files:
        yield from read_file(file, wanted)


def _saved_to_disk(path: Path, split: str, wanted: Collection[str]) -> Iterator[Record]:
    import datasets  # slow to import

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds; each is about this folder
        raise InputError(f"data.id: {path} can't be read ({one_line(error)})") from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise InputError(
                f"data.split: {path} has no split {split!r}; it has {', '.join(map(str, saved))}"
            )
        saved = saved[split]
    yield from _dataset_records(saved, f"{path} {split}", wanted)


def _hub(config: DataConfig, split: str, wanted: Collection[str]) -> Iterator[Record]:
    import datasets  # slow to import

    datasets.disable_progress_bars()
    look_for_hub()
    try:
        rows = datasets.load_dataset(
            config.id, config.config, split=split, revision=config.revision
        )
    except Exception as error:  # the library raises many kinds; each is about this dataset
        advice = f"give a Hub id you may read (`{hub_errors.HF_LOGIN}`), a file, or `sample`"
        reason = hub_errors.explain(error, advice)
        raise InputError(
            f"data.id: {config.id!r} (split {split!r}) can't be loaded: {reason}"
        ) from None
    yield from _dataset_records(rows, f"{config.id} {split}", wanted)


def _dataset_records(rows: Any, name: str, wanted: Collection[str]) -> Iterator[Record]:
    for column, feature in rows.features.items():
        if type(feature).__name__ in _MEDIA:
            raise InputError(
                f"data.id: {name}: the column {column!r} holds {type(feature).__name__.lower()}s; "
                "only text is trained, so give a dataset without them"
            )
    columns = [column for column in rows.column_names if column in wanted]
    others = dict.fromkeys(set(rows.column_names) - set(columns))
    if not columns:  # one record is enough to report the columns
        yield Record(f"{name} row 1", others)
        return
    number = 0
    selected = rows.select_columns(columns).with_format("arrow")
    for table in selected.iter(batch_size=_BATCH):
        for row in table.to_pylist():
            number += 1
            yield Record(f"{name} row {number}", {**without_nulls(row), **others})
