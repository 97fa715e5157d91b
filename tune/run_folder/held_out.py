"""What each held-out pair had at each report of a trial: `trials/<id>.npz`, beside its record.

By it trials are compared pair by pair, and the luck of the best is estimated.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_train.scoring import metrics
from dpo_train.scoring.intervals import cluster_numbers
from dpo_train.storage import mirror
from dpo_train.storage.files import sync, write_atomically
from tune.run_folder.paths import RunFolder

_NPY_VERSION_1 = b"\x93NUMPY\x01\x00"
_COLUMNS = {"chosen": "eval/chosen_shift", "rejected": "eval/rejected_shift",
            "token_margin": "eval/token_margin"}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """One report: float32 arrays of shape (N,), in the order of the held-out pairs."""

    chosen: NDArray[np.float32]
    """Δ of the chosen completion, in nats."""
    rejected: NDArray[np.float32]
    """Δ of the rejected one."""
    token_margin: NDArray[np.float32]
    """Mean log-prob per token of the chosen completion less that of the rejected one."""

    @classmethod
    def of(cls, held_out: Mapping[str, metrics.Floats]) -> HeldOut | None:
        """What a session measured; None if it measured no pairs."""
        if not set(_COLUMNS.values()) <= held_out.keys():
            return None
        return cls(**{
            name: np.asarray(held_out[column], np.float32) for name, column in _COLUMNS.items()
        })  # fmt: skip

    def values(self, metric: str) -> metrics.Floats | None:
        """Of a metric for each pair, of shape (N,); None for one that these don't give."""
        margin = self.margins(metric)
        if metric in metrics.SHARES:
            return metrics.share_right(margin)
        return {"eval/margin": margin, "eval/nll": metrics.nll(margin)}.get(metric)

    def margins(self, metric: str) -> metrics.Floats:
        """What the metric is made of, of shape (N,): per token for ranking, else in nats."""
        if metric == "eval/ranking":
            return self.token_margin.astype(np.float64)
        return self.chosen.astype(np.float64) - self.rejected.astype(np.float64)


class HeldOutFiles:
    """Those of a run folder, kept in memory once they were read or written."""

    def __init__(self, run: RunFolder, prepared: Path) -> None:
        self._run, self._prepared = run, prepared
        self._there: dict[str, dict[int, HeldOut]] = {}
        self._clusters: NDArray[np.intp] = np.arange(0)

    def of(self, trial_id: str) -> dict[int, HeldOut]:
        """By pairs_seen; empty where there is no file, or no whole one."""
        if trial_id not in self._there:
            self._there[trial_id] = _read(self._run.held_out(trial_id))
        return self._there[trial_id]

    def keep(self, trial_id: str, earlier: Set[int], pairs_seen: int, new: HeldOut | None) -> None:
        """Adds a report to those at the earlier pairs_seen; what else was there is dropped."""
        kept = {pairs: each for pairs, each in self.of(trial_id).items() if pairs in earlier}
        if new is not None:
            kept[pairs_seen] = new
        self._there[trial_id] = kept
        if kept:
            write_atomically(self._run.held_out(trial_id), _content(kept))

    def make_durable(self, trial_id: str) -> None:
        """What was kept of a trial stays even where the power goes."""
        if self._run.url is None and self._run.held_out(trial_id).is_file():
            sync(self._run.held_out(trial_id))

    def clusters(self, pairs: int) -> NDArray[np.intp]:
        """Of each held-out pair the number of its prompt. Where this machine does not have the
        prepared data (a simulated search has none) each pair is its own."""
        if len(self._clusters) != pairs:
            self._clusters = np.arange(pairs)
            if mirror.fetch_once(self._prepared / "eval.arrow").is_file():
                from dpo_train.reference import prompt_keys  # slow to import

                numbers = cluster_numbers(prompt_keys(self._prepared, "eval"))
                self._clusters = numbers if len(numbers) == pairs else self._clusters
        return self._clusters


def _read(file: Path) -> dict[int, HeldOut]:
    try:
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as there:
            pairs_seen = _array(there, "pairs_seen", "<i8").tolist()
            columns = [_array(there, name, "<f4").reshape(len(pairs_seen), -1) for name in _COLUMNS]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    return {
        pairs: HeldOut(*(column[row] for column in columns)) for row, pairs in enumerate(pairs_seen)
    }


def _array(file: zipfile.ZipFile, name: str, dtype: str) -> NDArray[Any]:
    """All numbers of one array of an .npz file. np.load takes four times as long, for it parses
    each array's header as Python, and a search may have thousands of files. Raises ValueError."""
    content = file.read(f"{name}.npy")
    start = 10 + int.from_bytes(content[8:10], "little")
    if not content.startswith(_NPY_VERSION_1) or f"'{dtype}'".encode() not in content[:start]:
        raise ValueError(f"{name} is no array of {dtype}")
    return np.frombuffer(content, dtype, offset=start)


def _content(kept: Mapping[int, HeldOut]) -> bytes:
    columns = {
        name: np.stack([getattr(held_out, name) for held_out in kept.values()]) for name in _COLUMNS
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, pairs_seen=np.array(list(kept)), **columns)
    return content.getvalue()
