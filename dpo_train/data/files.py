"""Reads the records of one file: JSON, JSON lines, CSV, TSV or Parquet.

A record that can't be read is returned as a BadRow, so that all of them can be listed at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dpo_train.errors import BadRow, InputError, one_line

TEXT_FORMATS = (".jsonl", ".json", ".csv", ".tsv")
FORMATS = (*TEXT_FORMATS, ".parquet")
_LONGEST_FIELD = 2**31 - 1
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


Fields = Mapping[str, object]
"""A row of the dataset: its values by column, not checked yet."""


class Record(NamedTuple):
    """A row of the dataset, or why it can't be read."""

    location: str
    """File and line, or dataset and row; for messages."""
    content: Fields | BadRow


def format_of(path: Path) -> str | None:
    """Return the format of a file by its name, like `.jsonl`; None for any other kind of file."""
    name = path.name.lower().removesuffix(".gz")
    found = next((each for each in FORMATS if name.endswith(each)), None)
    return None if found == ".parquet" and path.suffix.lower() == ".gz" else found


def read_file(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    """Yield the records of a file. From Parquet only the `wanted` columns are read.

    Raises InputError for a file that can't be read at all.
    """
    kind = format_of(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path, wanted)
        elif kind in (".csv", ".tsv"):
            yield from _table(path, "," if kind == ".csv" else "\t")
        elif kind is not None:
            yield from _json(path)
        else:
            raise InputError(
                f"data.id: {path} is not a file of {', '.join(FORMATS)}; all but .parquet may also "
                "end in .gz"
            )
    except UnicodeDecodeError:
        raise InputError(
            f"data.id: {path} line {_undecodable_line(path)}: not UTF-8; save the file as UTF-8"
        ) from None
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds; each is about the file
        raise InputError(f"data.id: {path} can't be read ({one_line(error)})") from None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


# --- JSON ------------------------------------------------------------------------------------


def _json(path: Path) -> Iterator[Record]:
    """Yield the records of a list of objects, or of one object a line.

    The beginning of the file decides which it is, not the file's name.
    """
    with _open(path) as file:
        start = file.read(3)
        while start and not (start := start.removeprefix(_BYTE_ORDER_MARK).lstrip()):
            start = file.read(1)
    if start.startswith(b"["):
        yield from _json_list(path)
    else:
        yield from _json_lines(path)


def _json_lines(path: Path) -> Iterator[Record]:
    parser = _Parser()
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield Record(f"{path} line {number}", _object(line, parser))


def _json_list(path: Path) -> Iterator[Record]:
    with _open(path) as file:
        text = file.read().decode("utf-8-sig")
    parser = _Parser()
    position, number = text.index("[") + 1, 0
    try:
        while (position := _after_space(text, position)) < len(text) and text[position] != "]":
            content, position = parser.parse(text, position)
            number += 1
            yield Record(f"{path} row {number}", content)
            position = _after_space(text, position)
            if text[position : position + 1] == ",":
                position += 1
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("a comma or ] is missing", text, position)
        if position >= len(text):
            raise json.JSONDecodeError("the list does not end", text, len(text))
        if _after_space(text, position + 1) != len(text):
            raise json.JSONDecodeError("the list ends before the file does", text, position)
    except json.JSONDecodeError as error:
        raise InputError(
            f"data.id: {path} line {error.lineno} (row {number + 1}): not JSON ({error.msg}); a "
            "file that begins with [ must be one list of rows, any other must have one row per line"
        ) from None


def _after_space(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


def _object(line: bytes, parser: _Parser) -> Fields | BadRow:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        return BadRow("not UTF-8", "not UTF-8; save the file as UTF-8")
    try:
        content, end = parser.parse(text, 0)
    except json.JSONDecodeError as error:
        return BadRow("not JSON", f"not JSON ({error.msg})")
    if end != len(text):
        return BadRow("not JSON", "not JSON (there is more after the object on its line)")
    return content


class _Parser:
    """Reads one row's JSON.

    A duplicate key is an error, because JSON readers would silently keep only its last value.
    """

    def __init__(self) -> None:
        self._twice = ""
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def parse(self, text: str, position: int) -> tuple[Fields | BadRow, int]:
        """Return the row at a position of the text, and where it ends. Raises JSONDecodeError."""
        self._twice = ""
        try:
            row, end = self._decoder.raw_decode(text, position)
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, position) from None
        if self._twice:
            return BadRow("a key given twice", f"the key {self._twice!r} is given twice"), end
        if not isinstance(row, dict):
            shown = f"a row must be a mapping of columns, not {row!r:.60}"
            return BadRow("not a mapping", shown), end
        return row, end

    def _object(self, pairs: list[tuple[str, object]]) -> Fields:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            self._twice = next(key for key in keys if keys.count(key) > 1)
        return content


# --- CSV and TSV -----------------------------------------------------------------------------


def _table(path: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _open(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] = []
        number = 0
        try:
            for fields in reader:
                if not fields:
                    continue
                if not names:
                    names = _header(path, fields, delimiter)
                    continue
                number += 1
                location = f"{path} row {number} (line {reader.line_num})"
                yield Record(location, _fields(names, fields, delimiter))
        except csv.Error as error:
            raise InputError(
                f"data.id: {path} line {reader.line_num}: {one_line(error)}; put a field with "
                'commas, quotes or line breaks in quotes, and write a quote in it as ""'
            ) from None


def _header(path: Path, names: list[str], delimiter: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"data.id: {path} has two columns {twice[0]!r}; rename or remove one")
    other = next((mark for mark in (";", "\t", ",", "|") if mark in names[0]), None)
    if len(names) == 1 and other and other != delimiter:
        raise InputError(
            f"data.id: {path}: the columns are separated by {other!r}, but {delimiter!r} is "
            "expected; save it as .csv with commas or as .tsv with tabs"
        )
    return names


def _fields(names: list[str], fields: list[str], delimiter: str) -> Fields | BadRow:
    if len(fields) != len(names):
        return BadRow(
            "not as many fields as columns",
            f"{len(fields)} fields under {len(names)} columns; put a field that contains the "
            "separator in quotes",
        )
    if delimiter == "\t" and any("\t" in field and "\n" in field for field in fields):
        return BadRow(
            "a quote that spans rows",
            "a field with tabs and line breaks begins with a quote that ends rows later; write a "
            'quote as "", and put the field in quotes',
        )
    return dict(zip(names, fields, strict=True))


def _undecodable_line(path: Path) -> int:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


# --- Parquet ---------------------------------------------------------------------------------


def _parquet(path: Path, wanted: Collection[str]) -> Iterator[Record]:
    import pyarrow.parquet  # slow to import

    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise InputError(
                f"data.id: {path} is a Git LFS pointer, not the data; type `git lfs pull` in its "
                "folder"
            )
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"data.id: {path} has two columns {name!r}; rename or remove one")
        others = dict.fromkeys(set(names) - set(wanted))
        columns = [name for name in names if name in wanted]
        if not columns:  # one record is enough to report the columns
            yield Record(f"{path} row 1", others)
            return
        number = 0
        for batch in file.iter_batches(batch_size=1000, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{path} row {number}", {**without_nulls(row), **others})


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null, at any depth.

    Arrow gives each object of a column the keys of all objects, with nulls. Source: TRL's
    `remove_none_values`.
    """
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value
