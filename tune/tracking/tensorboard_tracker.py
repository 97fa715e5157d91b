"""Writes event files for TensorBoard under `tensorboard/` in the run folder, one folder a trial.

Problem: an earlier driver session may have been killed while it wrote. So each driver session
writes a trial's file again from its record, and each report is in it once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from dpo_train.scoring.metrics import objectives
from tune.config.schema import SearchConfig
from tune.config.space import Axis, to_optuna
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results
from tune.run_folder.trial_record import ENDED, TrialRecord

_BEST = "best/"
"""Prefix of the metrics of a trial's best report, by which trials are ranked."""


class TensorboardTracker:
    """Writes scalars over `pairs_seen`; for the HPARAMS page, the axes and the best metrics."""

    name = "TensorBoard"

    def __init__(self, folder: RunFolder, config: SearchConfig) -> None:
        self._root = folder.path / "tensorboard"
        self._config = config
        self._open: dict[str, _TrialFile] = {}

    def begin_search(self) -> None:
        """Writes the names of all axes and metrics. A trial's file names only the axes it uses."""
        _import_without_torch()
        axes = {path: _example(axis) for path, axis in self._config.space.items()}
        experiment, _, _ = _hparams(axes, [_BEST + name for name in objectives()])
        file = _EventFile(self._root)
        file.write(experiment, 0)
        file.close()

    def report(self, record: TrialRecord) -> None:
        """Writes the new reports of a trial."""
        if record.id not in self._open:
            self._open[record.id] = _TrialFile(self._root / record.id, record)
        self._open[record.id].write_reports(record)

    def end_trial(self, record: TrialRecord) -> None:
        """Writes the last reports of a trial and its end."""
        self.report(record)
        self._open.pop(record.id).end(record)

    def end_search(self, results: Results | None) -> None:
        """Does nothing: the trials' files already have everything."""

    def close(self) -> None:
        """Closes all open files."""
        for trial in self._open.values():
            trial.file.close()


class _TrialFile:
    """The event file of one trial."""

    def __init__(self, folder: Path, record: TrialRecord) -> None:
        self.file = _EventFile(folder)
        self._last_pairs = -1
        values = {path: to_optuna(value) for path, value in record.config.items()}
        _, start, _ = _hparams(values, [])
        self.file.write(start, 0)

    def write_reports(self, record: TrialRecord) -> None:
        """Writes the reports that are not in the file yet."""
        for report in record.curve:
            pairs = int(report["pairs_seen"])
            if pairs > self._last_pairs:  # a trial that lost work repeats earlier reports
                self._last_pairs = pairs
                self.file.write_scalars(report, pairs)
        self.file.flush()

    def end(self, record: TrialRecord) -> None:
        """Writes the best report and the trial's end, but nothing if it was interrupted."""
        if record.state in ENDED:
            if record.metrics:
                best = {
                    _BEST + name: value
                    for name, value in record.metrics.items()
                    if name.startswith("eval/")
                }
                self.file.write_scalars(best, int(record.metrics["pairs_seen"]))
            self.file.write(_session_end(record), record.pairs_seen)
        self.file.close()


class _EventFile:
    """The only event file of its folder, in TensorBoard's format."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import RecordWriter  # slow to import
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.tune"))
        self._write_event(file_version="brain.Event:2")
        # A running TensorBoard still has the earlier file's values, so this event removes them.
        self._write_event(session_log=SessionLog(status=SessionLog.START), step=0)

    def write(self, summary: Any, step: int) -> None:
        self._write_event(summary=summary, step=step)

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        from tensorboardX.summary import scalar  # slow to import

        for name, value in values.items():
            if name != "pairs_seen":  # it is the step
                self.write(scalar(name, value), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write_event(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # slow to import

        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())


def _import_without_torch() -> None:
    """Imports tensorboardX. It would also import torch, which takes 190 MB and is not needed here,
    so we hide torch from it."""
    is_hidden = "torch" not in sys.modules
    if is_hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX  # noqa: F401  slow to import
    finally:
        if is_hidden:
            del sys.modules["torch"]


def _example(axis: Axis) -> JsonValue:
    """Returns a value from which TensorBoard learns the axis's type."""
    values = [to_optuna(value) for value in axis.corners]
    return next((value for value in values if value is not None), None)


def _hparams(values: Mapping[str, JsonValue], metrics: Collection[str]) -> Any:
    """Returns three summaries: of the experiment, of a trial's start, and of its end."""
    from tensorboardX.summary import hparams  # slow to import

    return hparams(values, dict.fromkeys(metrics, 0.0))


def _session_end(record: TrialRecord) -> Any:
    """Returns the summary of a trial's end.

    tensorboardX's own summary can't express a failure or a time, so we make it ourselves.
    """
    from tensorboardX.proto.api_pb2 import Status  # slow to import
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo

    status = "STATUS_FAILURE" if record.state == "failed" else "STATUS_SUCCESS"
    end = SessionEndInfo(status=Status.Value(status), end_time_secs=record.ended or time.time())
    _, _, summary = _hparams({}, [])
    content = HParamsPluginData(session_end_info=end).SerializeToString()
    summary.value[0].metadata.plugin_data.content = content
    return summary
