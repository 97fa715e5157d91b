"""Run folders in which a file was cut short, emptied or written by another program."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_train.errors import InputError
from tests.helpers.recorded_search import Search
from tune.__main__ import main
from tune.config.objective import Objective
from tune.run_folder.assemble import assemble
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.driver_lease import only_driver
from tune.run_folder.folder import Run, open_run
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.results import Results, load_results, write_results
from tune.run_folder.trial_record import TrialRecord
from tune.search import driver

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "null": lambda _: b"null",
    "of another type": lambda _: b"[1, 2]",
}
FILES = ("run.json", "search.yaml", "results.json", "trials/{}.json")
COMMANDS = ("show", "list", "report", "resume")


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Make a finished search of two trials in `runs/`, by a stub in place of training."""

    def without_ray(run: Run, *_: Any) -> Results:
        results = assemble(run.config, run.records)
        write_results(run.folder.results_json, results)
        return results.at(run.folder)

    monkeypatch.setattr(driver, "_search", without_ray)
    monkeypatch.chdir(tmp_path)
    search = Search(tmp_path / "runs")
    search.report(2)
    search.begin(1e-4)
    search.report(1)
    search.end()
    return search


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_line_that_names_it(
    search: Search, capfd: pytest.CaptureFixture[str], damage: str, file: str, command: str
) -> None:
    path = search.folder / file.format(search.ids[1])
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    code = main([command] if command == "list" else [command, "x"])
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    naming = [line for line in printed.splitlines() if path.name in line]
    if command == "list" and path.name != f"{search.ids[1]}.json":
        assert code == 0
        return
    assert len(naming) == 1, printed
    is_whole_run = file in ("run.json", "search.yaml")
    if is_whole_run or (file == "results.json" and command in ("show", "report")):
        assert code == 2
        return
    assert code in (0, 1)  # 1: no winner
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.exists() == (command == "resume")
    if command == "resume":
        assert load_results(search.folder).search["name"] == "x"


def test_a_lost_trial_is_replaced_under_a_new_number(search: Search) -> None:
    record = search.run.record(search.ids[0])
    record.write_text("{")
    run = open_run(search.run, sets_aside=True)
    assert list(run.records.trials) == [search.ids[1]]
    assert run.records.proposed == 1
    prefix = search.ids[0].split("-")[0]
    assert run.records.next_id() == f"{prefix}-002"  # files of 000 must not become another trial's
    again = Records(search.run, Objective.of("eval/accuracy"))
    assert again.damaged == []
    taken = [again.add(again.next_id(), {"optim.learning_rate": 1e-4}).id for _ in range(3)]
    assert len({*taken, *search.ids}) == 3 + len(search.ids)


@pytest.mark.parametrize("field", ["id", "request", "cloned_from", "confirms"])
@pytest.mark.parametrize("value", ["../../../outside", "/outside", "a/b", "..", ".hidden", "a\x00"])
def test_names_in_a_record_lead_nowhere_else(search: Search, field: str, value: str) -> None:
    path = search.run.record(search.ids[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    (damaged,) = Records(search.run, Objective.of("eval/accuracy")).damaged
    assert damaged.path == path
    with pytest.raises(ValueError, match=field):
        TrialRecord.model_validate_json(path.read_bytes())


def test_a_record_belongs_to_its_file(search: Search) -> None:
    path = search.run.record(search.ids[0])
    path.write_text(search.run.record(search.ids[1]).read_text())
    (damaged,) = Records(search.run, Objective.of("eval/accuracy")).damaged
    assert f"it says that it is {search.ids[1]!r}" in str(damaged)


def test_a_message_about_a_file_is_one_line(tmp_path: Path) -> None:
    damaged = DamagedFile(tmp_path / "run.json", ValueError("one\ntwo"))
    assert str(damaged.refusal("type this")).endswith("run.json is damaged (one two); type this")


def test_runs_beside_a_damaged_one_are_listed_and_removed(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Search(search.folder.parent / "second")
    other.run.run_json.write_text("{")
    (search.folder.parent / "y").symlink_to(search.folder)
    assert main(["list"]) == 0
    assert "x " in capsys.readouterr().out
    assert main(["clean", "y"]) == 2
    assert "is a link; remove it with `rm`" in capsys.readouterr().err
    assert main(["clean", "x", "x"]) == 0
    assert capsys.readouterr().out.count("removed x") == 1
    assert not search.folder.exists()


def test_a_link_that_leads_back_is_no_loop(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    (search.folder / "up").symlink_to(search.folder.parent)
    (search.folder / "nowhere").symlink_to("nothing")
    assert main(["list"]) == 0
    assert "x " in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_not_removed(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = search.folder.parent / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text("{}")
    assert main(["clean", "foreign"]) == 2
    assert "has no search.yaml, so no search made it" in capsys.readouterr().err
    assert foreign.exists()


def test_prepared_data_of_a_running_search_are_not_removed(search: Search) -> None:
    prepared = search.folder.parent / ".prepared" / "abc"
    prepared.mkdir(parents=True)
    (prepared / "manifest.json").write_text("{}")
    content = json.loads(search.run.run_json.read_text()) | {"prepared": str(prepared)}
    search.run.run_json.write_text(json.dumps(content))
    with only_driver(RunFolder.at(search.folder)):
        assert main(["clean", ".prepared/abc"]) == 2
    assert prepared.exists()
    assert main(["clean", ".prepared/abc"]) == 0
    assert not prepared.exists()


def test_setting_the_clock_does_not_change_a_budget(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(search.run, Objective.of("eval/accuracy"))
    before = records.run.wall_seconds
    records.begin_driver_session()
    monkeypatch.setattr("time.time", lambda: 0.0)
    records.touch()
    assert 0 <= records.run.wall_seconds - before < 60
    assert 0 <= records.seconds_spent - before < 60


def test_damaged_results_are_refused_by_what_reads_them(search: Search) -> None:
    search.run.results_json.write_text("{")
    with pytest.raises(InputError, match=r"results.json is damaged .* type `.*dpo-tune resume"):
        load_results(search.folder)
