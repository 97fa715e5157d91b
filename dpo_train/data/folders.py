"""Finds the files of a split in a dataset's folder."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dpo_train.data.files import FORMATS, format_of
from dpo_train.errors import InputError

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]{16})?$")


def split_files(folder: Path, split: str, subset: str | None) -> list[Path]:
    """Return the split's one file, or all its shards, in order.

    They are in the folder, in its `data/` or in the folder of the `subset`. Raises InputError if
    there is none, if several files are for the split, or if a shard is missing.
    """
    # Find the files whose name is that of the split.
    folders = [folder / subset] if subset else [folder, folder / "data"]
    files = [
        path
        for each in folders
        if each.is_dir()
        for path in sorted(each.iterdir())
        if path.is_file() and format_of(path) is not None
    ]
    found = [path for path in files if _split_of(path) == split]
    if not found:
        names = ", ".join(str(path.relative_to(folder)) for path in files[:10]) or "no data file"
        raise InputError(
            f"data.id: {folder} holds no file of the split {split!r} ({split}.jsonl or another of "
            f"{', '.join(FORMATS)}, or shards {split}-00000-of-00002.parquet); it holds {names}; "
            "type `--set data.split=NAME`, or give one file as data.id"
        )
    # They must be one file, or all shards of one format and one count.
    shards = [match for path in found if (match := _SHARD.search(_stem(path)))]
    kinds = {(path.parent, format_of(path)) for path in found}
    counts = {match[2] for match in shards}
    numbers = [int(match[1]) for match in shards]
    if len(kinds) > 1 or len(counts) > 1 or 0 < len(shards) < len(found):
        raise _several(folder, split, found)
    if not shards and len(found) > 1:
        raise _several(folder, split, found)
    if shards and numbers != list(range(int(counts.pop()))):
        raise InputError(
            f"data.id: {folder}: the split {split!r} has the shards "
            f"{', '.join(path.name for path in found)}; some are missing or duplicates, so copy "
            "the folder again"
        )
    return found


def files_by_card(folder: Path, split: str, subset: str | None) -> list[Path]:
    """Return the files of a split that the card of a Hub dataset names; none if it names no files.

    Raises InputError if the card has no such split or subset.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    _, *parts = text.split("---\n", 2)
    if len(parts) != 2 or "data_files:" not in parts[0]:
        return []
    try:
        configs = YAML(typ="safe", pure=True).load(parts[0])["configs"]
        named = {str(each["config_name"]): each["data_files"] for each in configs}
    except (YAMLError, KeyError, TypeError) as error:
        raise InputError(f"data.id: {card}: its `configs` can't be read ({error!r:.100})") from None
    chosen = subset or ("default" if "default" in named else next(iter(named)))
    if chosen not in named:
        raise InputError(f"data.config: {card} has no {chosen!r}; it has {', '.join(named)}")
    splits = named[chosen]
    if not (isinstance(splits, list) and splits and isinstance(splits[0], dict)):
        splits = [{"split": "train", "path": splits}]  # files without a split belong to train
    patterns = {str(each["split"]): each["path"] for each in splits}
    if split not in patterns:
        raise InputError(f"data.split: {card} has no {split!r}; it has {', '.join(patterns)}")
    wanted = patterns[split]
    wanted = wanted if isinstance(wanted, list) else [wanted]
    try:
        files = sorted({path for pattern in wanted for path in folder.glob(str(pattern))})
    except (ValueError, NotImplementedError):  # an absolute or empty pattern
        files = []
    if not files:
        raise InputError(f"data.id: {folder} has none of the files {wanted} that its card names")
    return files


def _several(folder: Path, split: str, found: list[Path]) -> InputError:
    names = ", ".join(str(path.relative_to(folder)) for path in found[:4])
    return InputError(
        f"data.id: {folder} holds several files of the split {split!r} ({names}); remove the "
        "others, or give one of them as data.id"
    )


def _split_of(path: Path) -> str:
    return _SHARD.sub("", _stem(path))


def _stem(path: Path) -> str:
    name = path.name
    if name.lower().endswith(".gz"):
        name = name[:-3]
    kind = format_of(path)
    return name[: -len(kind)] if kind else name
