"""Any preference dataset becomes rows of messages: read, check, filter, split.

Knows no tokenizer and no model; what only a tokenizer can tell is checked in reference.py.
"""

import csv
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_train import sample
from dpo_train.config import DataConfig
from dpo_train.errors import InputError, one_line

Message = dict[str, str]
SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Row:
    """One preference pair; each part is a list of {role, content} messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]

    @property
    def prompt_key(self) -> str:
        """The same for rows that ask the same, whatever the system prompt."""
        said = [m for m in self.prompt if m["role"] != "system"]
        return json.dumps(said, ensure_ascii=False)


@dataclass(frozen=True)
class Pairs:
    """The rows of each split, and how many rows each reason took."""

    splits: dict[str, list[Row]]
    dropped: dict[str, int]

    def summary(self) -> str:
        sizes = ", ".join(f"{len(rows)} {name}" for name, rows in self.splits.items())
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return f"{sizes} pairs" + (f"; left out: {left_out}" if left_out else "")


def load_pairs(config: DataConfig) -> Pairs:
    """Reads, filters and splits. Raises InputError that names file and row, or the filter."""
    dropped: Counter[str] = Counter()
    if config.eval_split and config.test_split:
        own = (config.split, config.eval_split, config.test_split)
        read = [_rows(config, split, dropped) for split in own]
        splits = _without_overlap(dict(zip(SPLITS, read, strict=True)), dropped)
    else:
        splits = _cut(_rows(config, config.split, dropped), config)
    for name, rows in splits.items():
        if not rows:
            took = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
            total = sum(dropped.values()) + sum(len(rows) for rows in splits.values())
            raise InputError(
                f"data: no pair is left for {name}; of {total} rows the filters took: {took}; "
                "widen data.chars, raise data.limit or give more rows"
            )
    return Pairs(splits, dict(dropped))


# --- reading -------------------------------------------------------------------------------


def _records(config: DataConfig, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for an error message, record) of every row."""
    path = sample.PAIRS if config.id == "sample" else Path(os.path.expanduser(config.id))
    if path.is_dir():
        found = sorted(path.glob(f"{split}.*"))
        if not found:
            raise InputError(f"data.id: {path} holds no file {split}.jsonl, .json, .csv, .parquet")
        path = found[0]
    if path.is_file():
        yield from _file_records(path)
    elif path.suffix in (".jsonl", ".json", ".csv", ".parquet") or config.id.startswith((".", "/")):
        raise InputError(f"data.id: no file {path}; give a path that exists or a Hub id")
    else:
        yield from _hub_records(config, split)


def _file_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = list(_numbered_rows(path))
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"data.id: {path} line {error.lineno}: not JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise InputError(f"data.id: {path} can't be read ({one_line(error)})") from None
    unit = "line" if path.suffix == ".jsonl" else "row"
    for number, row in rows:
        place = f"{path} {unit} {number}"
        if not isinstance(row, dict):
            raise InputError(f"data.id: {place}: a row must be a mapping, not {row!r:.60}")
        yield place, row


def _numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file, counted from 1; empty lines of a .jsonl file are counted too."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    error.lineno = number  # of the file, not of the row
                    raise
    elif path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise InputError(f"data.id: {path} must hold a list of rows, like [{{...}}, ...]")
        yield from enumerate(content, 1)
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            yield from enumerate(csv.DictReader(file), 1)
    elif path.suffix == ".parquet":
        import pyarrow.parquet  # slow to import

        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
    else:
        raise InputError(f"data.id: {path} is not .jsonl, .json, .csv or .parquet")


def _hub_records(config: DataConfig, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # slow to import

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            config.id, config.config, split=split, revision=config.revision
        )
    except Exception as error:  # the library raises a dozen kinds; each is about what was named
        raise InputError(
            f"data.id: {config.id!r} (split {split!r}) can't be loaded: {one_line(error, 300)}; "
            "give a Hub id you may read (`hf auth login`), a file, or `sample`"
        ) from None
    for number, record in enumerate(rows, 1):
        yield f"{config.id} {split} row {number}", record


# --- one record → one row -----------------------------------------------------------------


def _to_row(record: dict[str, Any], place: str) -> Row:
    """TRL's standard, conversational and implicit-prompt forms, with or without `system`."""
    for column in ("chosen", "rejected"):
        if record.get(column) is None:
            raise InputError(
                f"data.id: {place}: no column {column!r}; a row has prompt (optional), chosen, "
                f"rejected, system (optional); this one has {', '.join(map(str, record))}"
            )
    chosen, rejected = record["chosen"], record["rejected"]
    if record.get("prompt") is None:
        prompt, chosen, rejected = _split_prompt(chosen, rejected, place)
    else:
        prompt = record["prompt"]
    system = record.get("system")
    messages = _messages(prompt, "user", place)
    if system and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": str(system)}, *messages]
    return Row(
        messages, _messages(chosen, "assistant", place), _messages(rejected, "assistant", place)
    )


def _split_prompt(chosen: Any, rejected: Any, place: str) -> tuple[Any, Any, Any]:
    """The common beginning of two whole conversations, or of two texts, is their prompt."""
    if not (isinstance(chosen, str | list) and type(chosen) is type(rejected)):
        raise InputError(
            f"data.id: {place}: without a prompt, chosen and rejected are both texts or both lists "
            "of messages"
        )
    shared = shared_length(chosen, rejected)
    if isinstance(chosen, str):
        # A prompt ends between two words, as in TRL's extract_prompt.
        shared = max(chosen.rfind(" ", 0, shared + 1), 0)
    if not shared:
        raise InputError(f"data.id: {place}: no prompt: chosen and rejected begin differently")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def shared_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many elements stand at the beginning of both."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _messages(value: Any, role: str, place: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    well_formed = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    if not well_formed:
        raise InputError(
            f"data.id: {place}: {value!r:.60} is neither a text nor a list of "
            "{role, content} messages"
        )
    return [{"role": m["role"], "content": m["content"]} for m in value]


# --- filters and splits --------------------------------------------------------------------


def _rows(config: DataConfig, split: str, dropped: Counter[str]) -> list[Row]:
    """The rows of a split that pass the filters; the others are counted in `dropped`."""
    kept: list[Row] = []
    seen: set[str] = set()
    for place, record in _records(config, split):
        row = _to_row(record, place)
        if reason := _fault(row, config, seen):
            dropped[reason] += 1
        else:
            kept.append(row)
    return kept[: config.limit]


def _fault(row: Row, config: DataConfig, seen: set[str]) -> str | None:
    prompt = "".join(m["content"] for m in row.prompt if m["role"] != "system")
    chosen = "".join(m["content"] for m in row.chosen)
    rejected = "".join(m["content"] for m in row.rejected)
    if not prompt.strip() or not chosen.strip() or not rejected.strip():
        return "with an empty part"
    if chosen == rejected:
        return "with chosen equal to rejected"
    if config.chars:
        low, high = config.chars
        for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
            if not low <= len(text) <= high:
                return f"whose {name} has not {low} to {high} characters"
    digest = hashlib.sha256(json.dumps(vars(row)).encode()).hexdigest()
    if digest in seen:
        return "that stood there before"
    seen.add(digest)
    return None


def _cut(rows: list[Row], config: DataConfig) -> dict[str, list[Row]]:
    """Whole prompts are dealt out in a random order: to test, to eval, the rest to train."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt_key, []).append(row)
    keys = sorted(groups)
    random.Random(config.split_seed).shuffle(keys)
    wanted = {
        "test": max(1, round(len(rows) * config.test_fraction)),
        "eval": max(1, round(len(rows) * config.eval_fraction)),
    }
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for key in keys:
        name = next((n for n, count in wanted.items() if len(splits[n]) < count), "train")
        splits[name].extend(groups[key])
    return splits


def _without_overlap(splits: dict[str, list[Row]], dropped: Counter[str]) -> dict[str, list[Row]]:
    """A prompt of test is taken out of eval and train, one of eval out of train."""
    taken: set[str] = set()
    clean: dict[str, list[Row]] = {}
    for name in reversed(SPLITS):
        clean[name] = [row for row in splits[name] if row.prompt_key not in taken]
        if lost := len(splits[name]) - len(clean[name]):
            dropped[f"of {name} whose prompt is also held out"] += lost
        taken |= {row.prompt_key for row in splits[name]}
    return {name: clean[name] for name in SPLITS}
