"""The results of a search as rows, and the records from which they come."""

import csv
import io
from pathlib import Path

import pytest

from tests.helpers.driver import held_out
from tests.helpers.simulated_results import SEARCH, simulated
from tune.config.checks import check
from tune.config.objective import Objective
from tune.config.schema import SearchConfig
from tune.report.terminal import to_csv
from tune.run_folder import redact
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.held_out import HeldOut
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.results import Deployment
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.run_folder.trial_record import read_records


def test_the_frame_has_the_rows_of_the_csv() -> None:
    results = simulated(6)
    header, *lines = csv.reader(io.StringIO(to_csv(results)))
    frame = results.frame()
    assert list(frame.columns) == header
    assert list(frame["id"]) == [line[0] for line in lines] == [t.id for t in results.trials]
    accuracy = header.index("eval/accuracy")
    assert [float(line[accuracy]) for line in lines] == list(frame["eval/accuracy"])
    without = results.trials.index(next(t for t in results.trials if "lora.r" not in t.config))
    assert lines[without][header.index("lora.r")] == ""
    assert frame["lora.r"].isna()[without]


def test_what_each_pair_had_is_kept_for_every_report(tmp_path: Path) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    objective = Objective.of("eval/accuracy")
    records = Records(RunFolder.at(tmp_path), objective)
    records.begin_driver_session()
    records.add("a", {})

    def reported(pairs: int, accuracy: float) -> dict[int, HeldOut]:
        report = {"pairs_seen": pairs, "eval/accuracy": accuracy, "eval/drift": 1.0}
        records.report("a", Step(report, 0.0, 1.0, held_out(accuracy)))
        return Records(RunFolder.at(tmp_path), objective).held_out.of("a")

    for pairs, accuracy in ((64, 0.6), (128, 0.9), (192, 0.8)):
        kept = reported(pairs, accuracy)
    assert list(kept) == [64, 128, 192]
    for pairs, accuracy in ((64, 0.6), (128, 0.9), (192, 0.8)):
        values = kept[pairs].values("eval/accuracy")
        assert values is not None
        assert values.mean() == pytest.approx(accuracy)
        assert kept[pairs].margins("eval/ranking").max() == pytest.approx(0.1)
    # A trial that goes on from its first report loses the later ones.
    assert list(reported(128, 0.5)) == [64, 128]
    (tmp_path / "trials" / "a.npz").write_bytes(b"PK damaged")
    damaged = Records(RunFolder.at(tmp_path), objective)
    assert damaged.held_out.of("a") == {}
    best = damaged.best()
    assert best is not None
    assert best.metrics["pairs_seen"] == 64


def test_what_is_published_says_nothing_of_where_it_was_served() -> None:
    config = check(SearchConfig.model_validate({**SEARCH, "serve": {"after": True, "port": 81}}))
    served = Deployment(url="http://127.0.0.1:81", error="to try again: serve deploy /home/jo/x")
    results = simulated(3).model_copy(update={"served": served})
    published = redact.results(results, config).to_json()
    assert "127.0.0.1" not in published
    assert "/home/jo" not in published
    assert redact.search(config).serve == SearchConfig(name="x").serve


@pytest.mark.parametrize("text", ['{"id": "a", "config": {}, "state": "banana"}', '{"id": "a"', ""])
def test_an_invalid_record_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "a.json").write_text(text)
    damaged: list[DamagedFile] = []
    assert list(read_records(RunFolder.at(tmp_path), damaged.append)) == []
    assert [f"{tmp_path}/trials/a.json is damaged (" in str(each) for each in damaged] == [True]
