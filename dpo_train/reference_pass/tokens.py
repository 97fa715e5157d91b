"""The tokens.arrow of a planned folder: the token ids of all its rows, written once by one process.

tokens.json says why rows are bad. The configuration decides whether bad rows are refused.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_train import model
from dpo_train.config import ModelConfig
from dpo_train.data import Row
from dpo_train.data.bad_rows import BadRows, listed, refusal
from dpo_train.data.special_tokens import SpecialTokens
from dpo_train.errors import BadRow, InputError
from dpo_train.reference_pass.chat_template import ChatTemplate, Rendered
from dpo_train.reference_pass.model_checks import ModelChecks
from dpo_train.reference_pass.plan import Plan, read_plan
from dpo_train.reference_pass.rows import ROWS, read_rows, refuse_damaged
from dpo_train.reference_pass.tokenise import TokenIds, Tokeniser
from dpo_train.storage import mirror
from dpo_train.storage.files import checksum, write_here

if TYPE_CHECKING:
    import pyarrow

TOKENS, SUMMARY = "tokens.arrow", "tokens.json"
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_BATCH_ROWS = 1000
_CHECKED_ROWS = 5000
"""The first rows of the file: enough to find what the chat template can't write."""
_FEWEST_SHARDS = 64
_FEWEST_PAIRS = 64
"""Fewest pairs of a shard. With fewer, batches would not be full."""
_MOST_PAIRS = 1024
"""Most pairs of a shard. With more, too much work would be lost when a process dies."""

Progress = Callable[[int, int], None]
"""A function of the number of rows tokenised so far, and the number of all rows."""


@dataclass(frozen=True)
class Summary:
    """The results of tokenising the rows of a folder, beside the tokens."""

    pad_token_id: int
    rows: int
    dropped: dict[str, int]
    """How many rows are left out by reason, including bad rows."""
    bad: int
    first_bad: list[str]
    """The first ten bad rows, each with its location and what is wrong."""
    notes: list[str]
    """Notes for the user on how the rows are written."""
    sha256: str
    """The checksum of tokens.arrow."""

    def refuse_bad(self, on_bad_row: str) -> None:
        """Raise InputError for bad rows that the configuration does not skip."""
        if self.bad and on_bad_row == "refuse":
            raise InputError(refusal(self.first_bad, self.bad, self.rows))


def read_summary(folder: Path) -> Summary | None:
    """Return the summary of a folder that was tokenised here or at its URL; None if it was not."""
    try:
        return Summary(**json.loads(mirror.fetch_once(folder / SUMMARY).read_text()))
    except FileNotFoundError:
        return None


def tokenised(folder: Path, progress: Progress | None = None) -> Summary:
    """Tokenise the rows of a planned folder, unless that is done already.

    Raises InputError for a model without a chat template, for rows that its template can't write
    or the model can't train on, and for bad rows if the plan refuses them.
    """
    mirror.fetch_once(folder / ROWS)
    plan = read_plan(folder)
    with (folder / "tokens.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it is held until the file is closed
        summary = _whole(folder)
        if summary is None:
            refuse_damaged(folder, plan.rows_sha256)
            summary = _write(folder, plan, progress)
            for name in (TOKENS, SUMMARY):
                mirror.put(folder / name)
    summary.refuse_bad(plan.on_bad_row)
    return summary


def check_rows(base: ModelConfig, rows: Sequence[Row], on_bad_row: str) -> list[str]:
    """Return notes for the user on how the chat template writes these rows, a line each.

    It refuses nearly all that `tokenised` would refuse, without tokenising. Raises InputError.
    """
    tokenizer = model.load_tokenizer(base, fetched=False)
    checks = ModelChecks(base, tokenizer)
    template = ChatTemplate(tokenizer, repr(base.id))
    special = SpecialTokens(special_tokens(tokenizer))
    bad = BadRows()
    _render(list(enumerate(rows[:_CHECKED_ROWS])), template, special, bad)
    for row in rows[_CHECKED_ROWS:]:
        try:
            special.refuse(row)
        except BadRow as error:
            bad.add(row.location, error)
    notes = checks.notes() + template.check(rows[:_CHECKED_ROWS])
    if on_bad_row == "refuse":
        bad.refuse(len(rows))
    elif bad.counts:
        notes.append(f"left out: {listed(bad.counts)}")
    return notes


def _whole(folder: Path) -> Summary | None:
    """Return the summary of a folder whose tokens are complete; None for any other."""
    summary = read_summary(folder)
    if summary is None:
        return None
    try:
        tokens = mirror.fetch_once(folder / TOKENS)
        return summary if checksum(tokens) == summary.sha256 else None
    except FileNotFoundError:
        return None


def _write(folder: Path, plan: Plan, progress: Progress | None) -> Summary:
    import pyarrow  # slow to import

    # Check the model, and prepare for its rows.
    tokenizer = model.load_tokenizer(plan.base, fetched=False)
    checks = ModelChecks(plan.base, tokenizer)
    template = ChatTemplate(tokenizer, repr(plan.base.id))
    special = SpecialTokens(special_tokens(tokenizer))
    tokeniser = Tokeniser(tokenizer, plan.max_length_tokens)
    bad = BadRows()
    dropped: Counter[str] = Counter()
    notes = checks.notes()
    done = 0

    # Write the tokens in batches of rows.
    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("row", pyarrow.int32()), *((name, ids) for name in IDS)])
    partial = folder / f"{TOKENS}.part"
    rows = enumerate(row for _, row in read_rows(folder))
    with pyarrow.OSFile(str(partial), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            if done < _CHECKED_ROWS:
                notes += template.check([row for _, row in batch])
            numbers, texts = _render(batch, template, special, bad)
            columns = _columns(numbers, tokeniser.encode(texts), dropped)
            writer.write_batch(pyarrow.record_batch(columns, schema))
            done += len(batch)
            if progress is not None:
                progress(done, plan.rows)
    partial.replace(folder / TOKENS)

    # Check the rows against the model, and write the summary.
    pad_token_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    checks.refuse_rows(*TokenFile(folder, pad_token_id).extremes())
    summary = Summary(
        pad_token_id=pad_token_id,
        rows=plan.rows,
        dropped=dict(dropped + bad.counts),
        bad=bad.counts.total(),
        first_bad=bad.first,
        notes=list(dict.fromkeys(notes)),
        sha256=checksum(folder / TOKENS),
    )
    write_here(folder / SUMMARY, json.dumps(asdict(summary), indent=1))
    return summary


def _columns(
    numbers: Sequence[int], encoded: Sequence[TokenIds | str], dropped: Counter[str]
) -> dict[str, list[Any]]:
    """Return the columns of the rows that have tokens; `dropped` counts the others by reason."""
    columns: dict[str, list[Any]] = {name: [] for name in ("row", *IDS)}
    for number, ids in zip(numbers, encoded, strict=True):
        if isinstance(ids, str):
            dropped[ids] += 1
            continue
        columns["row"].append(number)
        for name in IDS:
            columns[name].append(getattr(ids, name))
    return columns


def _render(
    batch: Sequence[tuple[int, Row]], template: ChatTemplate, special: SpecialTokens, bad: BadRows
) -> tuple[list[int], list[Rendered]]:
    numbers: list[int] = []
    texts: list[Rendered] = []
    for number, row in batch:
        try:
            special.refuse(row)
            texts.append(template.render(row))
            numbers.append(number)
        except BadRow as error:
            bad.add(row.location, error)
    return numbers, texts


def special_tokens(tokenizer: Any) -> list[str]:
    """Return the tokens that no text may hold, because they would end or begin a turn."""
    added = tokenizer.added_tokens_decoder.values()
    named = [token for token in tokenizer.all_special_tokens if token]
    return sorted({*named, *(token.content for token in added if token.special)})


class TokenFile:
    """The tokens of a folder, memory-mapped, with the rows of each shard of the pass."""

    def __init__(self, folder: Path, pad_token_id: int) -> None:
        import pyarrow  # slow to import

        self.pad_token_id = pad_token_id
        file = pyarrow.memory_map(str(folder / TOKENS))
        self._table: pyarrow.Table = pyarrow.ipc.open_file(file).read_all()
        self.rows: list[int] = self._table["row"].to_pylist()
        """The numbers of the rows that have tokens, in order."""
        prompt, chosen, rejected = (self._lengths(name) for name in IDS)
        lengths = prompt + np.maximum(chosen, rejected)
        self._longest = int(lengths.max(initial=0))
        order = np.lexsort((np.arange(len(lengths)), -lengths)).tolist()
        # Rows of similar length share a shard, so that passes have little padding.
        size = min(max(len(order) // _FEWEST_SHARDS, _FEWEST_PAIRS), _MOST_PAIRS)
        self.shards: list[list[int]] = [
            order[first : first + size] for first in range(0, len(order), size)
        ]
        """Indices into `rows`, the longest rows first."""

    def columns(self, indices: Sequence[int]) -> dict[str, list[list[int]]]:
        """Return prompt_ids, chosen_ids and rejected_ids of the rows with these indices."""
        columns: dict[str, list[list[int]]] = self.table(indices).to_pydict()
        return columns

    def table(self, indices: Sequence[int]) -> pyarrow.Table:
        """Return the columns of the rows with these indices as an Arrow table."""
        return self._table.select(list(IDS)).take(list(indices))

    def extremes(self) -> tuple[int, int]:
        """Return the length of the longest row, and the largest token id.

        A row's length is that of its prompt with its longer completion, in tokens.
        """
        import pyarrow.compute  # slow to import

        largest = (
            pyarrow.compute.max(pyarrow.compute.list_flatten(self._table[name])).as_py()
            for name in IDS
        )
        return self._longest, max((each for each in largest if each is not None), default=0)

    def _lengths(self, name: str) -> np.ndarray[Any, Any]:
        import pyarrow.compute  # slow to import

        return np.asarray(pyarrow.compute.list_value_length(self._table[name]))
