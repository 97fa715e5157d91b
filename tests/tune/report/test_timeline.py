"""The timeline shows when trials ran, and on which device."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.report_page import drawn
from tests.helpers.simulated_results import simulated
from tune.report.timeline import Stay, stays
from tune.run_folder.paths import RunFolder
from tune.run_folder.placements import Placement, Placements
from tune.run_folder.results import Results


def summary(stay: Stay) -> tuple[str, str, float, float, int]:
    return stay.run.id[-3:], stay.device, stay.began, stay.ended, stay.lane


def search(folder: Path, *times: tuple[float, float | None], **changes: Any) -> Results:
    """Return a search whose trials began and ended at these times."""
    results = simulated(len(times))
    trials = [
        trial.model_copy(update={"began": began, "ended": ended})
        for trial, (began, ended) in zip(results.trials, times, strict=True)
    ]
    return results.model_copy(update={"trials": trials, **changes}).at(RunFolder.at(folder))


def run_json(folder: Path, *sessions: tuple[float, float]) -> None:
    content = {"prefix": "abc123", "prepared": "x", "device": "cpu", "sittings": sessions}
    (folder / "run.json").write_text(json.dumps(content))


def test_trials_that_share_a_device_lie_in_lanes_of_their_own(tmp_path: Path) -> None:
    results = search(tmp_path, (0, 10), (5, 20), (10, 30), (0, 30))
    run_json(tmp_path, (0, 100))
    placements = Placements(results.folder)
    for number, at in ((0, 0), (1, 5), (2, 10)):
        placements.note(results.trials[number].id, Placement("10.0.0.1", "0", 7), at)
    placements.note(results.trials[3].id, Placement("10.0.0.2", "0", 7), 0)
    assert sorted(map(summary, stays(results))) == [
        ("000", "node 1, GPU 0", 0, 10, 0),
        ("001", "node 1, GPU 0", 5, 20, 1),
        ("002", "node 1, GPU 0", 10, 30, 0),
        ("003", "node 2, GPU 0", 0, 30, 2),
    ]
    (figure,) = drawn(results)["timeline"]
    assert "10.0.0" not in str(figure)
    assert list(figure.layout.yaxis.ticktext) == ["node 1, GPU 0", "node 2, GPU 0"]


def test_a_trial_that_went_on_elsewhere_has_two_bars_and_a_gap_between_sessions(
    tmp_path: Path,
) -> None:
    results = search(tmp_path, (0, 90))
    run_json(tmp_path, (0, 20), (50, 100))
    Placements(results.folder).note(results.trials[0].id, Placement("n", "0", 1), 0)
    Placements(results.folder).note(results.trials[0].id, Placement("n", "1", 2), 60)
    assert list(map(summary, stays(results))) == [
        ("000", "GPU 0", 0, 20, 0),
        ("000", "GPU 1", 60, 90, 1),
    ]


def test_a_running_trial_reaches_to_when_its_driver_was_last_seen(tmp_path: Path) -> None:
    results = search(tmp_path, (0, None))
    run_json(tmp_path, (0, 42))
    assert [stay.ended for stay in stays(results)] == [42]


@pytest.mark.parametrize("line", ['{"at": 3, "tri', "null", '{"at": 3}', "[1]", "}"])
def test_half_a_line_of_a_killed_driver_is_passed_over(tmp_path: Path, line: str) -> None:
    results = search(tmp_path, (0, 9))
    Placements(results.folder).note(results.trials[0].id, Placement("n", "", 1), 0)
    with results.folder.placements.open("a") as file:
        file.write(line)
    assert list(map(summary, stays(results))) == [("000", "CPU", 0, 9, 0)]


def test_a_damaged_file_of_placements_leaves_the_trials_their_own_times(tmp_path: Path) -> None:
    results = search(tmp_path, (0, 9))
    results.folder.placements.write_bytes(bytes(range(128, 255)))
    assert [summary(stay)[2:4] for stay in stays(results)] == [(0, 9)]


@pytest.mark.parametrize("times", [[], [(0.0, 9.0)]])
def test_without_a_run_folder_trials_stand_by_their_own_times(
    tmp_path: Path, times: list[tuple[float, float]]
) -> None:
    results = simulated(3).model_copy(update={"trials": []}) if not times else search(
        tmp_path / "none", *times
    )  # fmt: skip
    assert [summary(stay)[1:] for stay in stays(results)] == [("", *span, 0) for span in times]
    if not times:
        assert drawn(results)["timeline"] == "It is not known when the trials ran."
