"""The event files of a search, written by tensorboardX and read back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.api_pb2 import Status

from dpo_train.config_base import parse
from dpo_train.errors import InputError
from tests.helpers.event_files import curves, events, hparams
from tests.helpers.recorded_search import Search
from tune.config.checks import check
from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.run_folder.trial_record import TrialRecord
from tune.tracking.child_process import TrackingProcess
from tune.tracking.tensorboard_tracker import TensorboardTracker

SPACE = {
    "optim.learning_rate": {"log_uniform": [1e-5, 1e-2]},
    "lora": {"choice": [None, {"r": 8}]},
    "optim.schedule": {"choice": ["linear", "cosine"]},
}


def config(**fields: Any) -> SearchConfig:
    content = {"name": "x", "trainer": "simulated", "trials": 2, "tensorboard": True, **fields}
    return check(parse(SearchConfig, content, {}, "x.yaml"))


def record(*pairs: int, **fields: Any) -> TrialRecord:
    curve = [{"pairs_seen": seen, "eval/accuracy": seen / 1024} for seen in pairs]
    fields = {"state": "running", "config": {"optim.learning_rate": 1e-3}, **fields}
    return TrialRecord(id="a-000", curve=curve, **fields)


def test_a_trial_has_its_axes_its_curves_its_best_report_and_its_end(tmp_path: Path) -> None:
    tracker = TensorboardTracker(RunFolder.at(tmp_path), config(space=SPACE))
    tracker.begin_search()
    values = {"optim.learning_rate": 1e-3, "lora": {"r": 8}, "optim.schedule": "linear"}
    tracker.report(record(64, 128, config=values))
    best = {"pairs_seen": 64, "eval/accuracy": 0.75}
    ended = record(64, 128, 256, config=values, metrics=best, state="stopped", ended=7.0)
    tracker.end_trial(ended)
    tracker.end_search(None)
    tracker.close()

    root = tmp_path / "tensorboard"
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"a-000"}
    (experiment,) = hparams(root)
    assert {info.name for info in experiment.experiment.hparam_infos} == set(SPACE)
    metrics = {info.name.tag for info in experiment.experiment.metric_infos}
    assert "best/eval/accuracy" in metrics
    assert curves(root / "a-000") == {
        "eval/accuracy": [(64, 0.0625), (128, 0.125), (256, 0.25)],
        "best/eval/accuracy": [(64, 0.75)],
    }
    begin, end = hparams(root / "a-000")
    shown = begin.session_start_info.hparams
    assert shown["optim.learning_rate"].number_value == 1e-3
    assert shown["lora"].string_value == '{"r": 8}'
    assert shown["optim.schedule"].string_value == "linear"
    assert end.session_end_info.status == Status.Value("STATUS_SUCCESS")
    assert end.session_end_info.end_time_secs == 7.0


def test_a_failed_trial_is_shown_as_failed_and_an_interrupted_one_as_open(tmp_path: Path) -> None:
    tracker = TensorboardTracker(RunFolder.at(tmp_path), config())
    tracker.begin_search()
    tracker.end_trial(record(64, state="failed"))
    _, end = hparams(tmp_path / "tensorboard" / "a-000")
    assert end.session_end_info.status == Status.Value("STATUS_FAILURE")
    tracker.end_trial(record(64, state="running"))
    assert len(hparams(tmp_path / "tensorboard" / "a-000")) == 1


def test_a_repeated_report_is_written_once(tmp_path: Path) -> None:
    """When a trial's process died, the trial goes on from its saved state with a shorter curve."""
    tracker = TensorboardTracker(RunFolder.at(tmp_path), config())
    tracker.begin_search()
    for pairs in ((64, 128, 192), (64,), (64, 128), (64, 128, 192, 256)):
        tracker.report(record(*pairs))
    tracker.close()
    steps = [step for step, _ in curves(tmp_path / "tensorboard" / "a-000")["eval/accuracy"]]
    assert steps == [64, 128, 192, 256]


def test_a_report_can_be_read_immediately(tmp_path: Path) -> None:
    """The process may be killed at any time while a user watches the curves."""
    tracker = TensorboardTracker(RunFolder.at(tmp_path), config())
    tracker.begin_search()
    tracker.report(record(64))
    assert curves(tmp_path / "tensorboard" / "a-000") == {"eval/accuracy": [(64, 0.0625)]}
    tracker.close()


def test_another_driver_session_writes_no_report_twice(tmp_path: Path) -> None:
    search = Search(tmp_path, tensorboard=True, mode="disabled")
    tracking = TrackingProcess(search.run, search.config)
    search.report(2)
    search.close(tracking)
    folder = search.folder / "tensorboard" / search.ids[0]
    assert len(curves(folder)["eval/accuracy"]) == 2
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # a killed process can leave a cut file

    tracking = TrackingProcess(search.run, search.config)
    search.report(1)
    search.end()
    search.close(tracking)
    steps = [step for step, _ in curves(folder)["eval/accuracy"]]
    assert steps == [64, 128, 192]
    # This event makes an open TensorBoard forget what it read in the earlier file.
    assert events(folder)[1].session_log.status == 1
    assert not (search.folder / "wandb").exists()


def test_torch_stays_out_of_the_process(tmp_path: Path) -> None:
    source = (
        "import sys\n"
        "from tune.config.schema import SearchConfig\n"
        "from tune.run_folder.paths import RunFolder\n"
        "from tune.tracking.tensorboard_tracker import TensorboardTracker\n"
        "tracker = TensorboardTracker(RunFolder.at(sys.argv[1]), SearchConfig(name='x'))\n"
        "assert 'tensorboardX' not in sys.modules\n"
        "tracker.begin_search()\n"
        "assert 'tensorboardX' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=True)


def test_a_search_on_a_url_is_refused() -> None:
    with pytest.raises(InputError, match="tensorboard: its files can only be written under a"):
        config(runs_dir="s3://bucket/runs")
