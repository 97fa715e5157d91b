"""Stores the values of each held-out pair at each report: `trials/<id>.npz`, beside the record.

They are used to compare trials pair by pair, and to estimate the luck of the best one.
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
    """The values at one report: float32 arrays of shape (N,), in the order of the pairs."""

    chosen: NDArray[np.float32]
    """Δ of the chosen completion, in nats."""
    rejected: NDArray[np.float32]
    """Δ of the rejected completion, in nats."""
    token_margin: NDArray[np.float32]
    """Mean log-prob per token of the chosen completion minus that of the rejected one."""

    @classmethod
    def of(cls, held_out: Mapping[str, metrics.Floats]) -> HeldOut | None:
        """Returns the values that a session measured; None if it measured no pairs."""
        if not set(_COLUMNS.values()) <= held_out.keys():
            return None
        return cls(**{
            name: np.asarray(held_out[column], np.float32) for name, column in _COLUMNS.items()
        })  # fmt: skip

    def values(self, metric: str) -> metrics.Floats | None:
        """Returns a metric for each pair, of shape (N,); None for an unsupported metric."""
        margin = self.margins(metric)
        if metric in metrics.SHARES:
            return metrics.share_right(margin)
        return {"eval/margin": margin, "eval/nll": metrics.nll(margin)}.get(metric)

    def margins(self, metric: str) -> metrics.Floats:
        """Returns the margins behind a metric, shape (N,): per token for ranking, else in nats."""
        if metric == "eval/ranking":
            return self.token_margin.astype(np.float64)
        return self.chosen.astype(np.float64) - self.rejected.astype(np.float64)


class HeldOutFiles:
    """The files of a run folder, cached in memory."""

    def __init__(self, run: RunFolder, prepared: Path) -> None:
        self._run, self._prepared = run, prepared
        self._cached: dict[str, dict[int, HeldOut]] = {}
        self._clusters: NDArray[np.intp] = np.arange(0)

    def of(self, trial_id: str) -> dict[int, HeldOut]:
        """Returns a trial's values by pairs_seen; empty if its file is missing or damaged."""
        if trial_id not in self._cached:
            self._cached[trial_id] = _read(self._run.held_out(trial_id))
        return self._cached[trial_id]

    def keep(self, trial_id: str, earlier: Set[int], pairs_seen: int, new: HeldOut | None) -> None:
        """Stores a new report's values, and drops all others but those at `earlier` pairs_seen."""
        kept = {pairs: each for pairs, each in self.of(trial_id).items() if pairs in earlier}
        if new is not None:
            kept[pairs_seen] = new
        self._cached[trial_id] = kept
        if kept:
            write_atomically(self._run.held_out(trial_id), _content(kept))

    def make_durable(self, trial_id: str) -> None:
        """Syncs a trial's file to the disk, so that it survives a power cut."""
        if self._run.url is None and self._run.held_out(trial_id).is_file():
            sync(self._run.held_out(trial_id))

    def clusters(self, pairs: int) -> NDArray[np.intp]:
        """Returns the number of each pair's prompt, of shape (N,).

        Without the prepared data, as in a simulated search, each pair counts as its own prompt.
        """
        if len(self._clusters) != pairs:
            self._clusters = np.arange(pairs)
            if mirror.fetch_once(self._prepared / "eval.arrow").is_file():
                from dpo_train.reference import prompt_keys  # slow to import

                numbers = cluster_numbers(prompt_keys(self._prepared, "eval"))
                self._clusters = numbers if len(numbers) == pairs else self._clusters
        return self._clusters


def _read(file: Path) -> dict[int, HeldOut]:
    try:
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as npz:
            pairs_seen = _array(npz, "pairs_seen", "<i8").tolist()
            columns = [_array(npz, name, "<f4").reshape(len(pairs_seen), -1) for name in _COLUMNS]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    return {
        pairs: HeldOut(*(column[row] for column in columns)) for row, pairs in enumerate(pairs_seen)
    }


def _array(file: zipfile.ZipFile, name: str, dtype: str) -> NDArray[Any]:
    """Returns the numbers of one array of an .npz file. Raises ValueError for another format.

    np.load parses each header as Python and takes four times as long. A search may have thousands
    of files, so we read them ourselves.
    """
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
