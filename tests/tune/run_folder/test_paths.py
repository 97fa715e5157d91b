"""RunFolder knows where a run is and the paths in it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_train.storage import mirror
from tests.conftest import ROOT
from tune.run_folder.paths import RunFolder


def test_a_run_on_a_disk_has_no_url_and_is_shown_as_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.at("runs/x")
    assert folder.url is None
    assert (str(folder), folder.name, Path(folder)) == ("runs/x", "x", Path("runs/x"))
    # Another process may have another working directory.
    assert folder.location == str(tmp_path / "runs" / "x")


def test_a_run_at_a_url_is_known_by_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mirror.CACHE, str(tmp_path))
    folder = RunFolder.at("s3://bucket/runs/x?region=eu")
    assert folder.path.is_relative_to(tmp_path)
    assert folder.url == folder.location == "s3://bucket/runs/x?region=eu"
    assert str(folder) == "'s3://bucket/runs/x?region=eu'"  # quoted for a shell
    assert RunFolder.at(folder.path) == folder


def test_an_export_is_found_again_by_another_node() -> None:
    relative, absolute = RunFolder.at("here/x"), RunFolder.at("/there/x")
    exported = relative.relative(relative.export("x-abc-001", 64))
    assert absolute.absolute(exported) == absolute.export("x-abc-001", 64)


def test_a_folder_is_a_run_once_it_has_run_json(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    assert not folder.exists
    folder.run_json.write_text("{}")
    assert folder.exists


def test_only_the_run_folder_asks_whether_a_run_is_at_a_url() -> None:
    may_ask = {
        "run_folder",
        "config",
    }  # the configuration checks `runs_dir`, which is not a run folder
    asking = re.compile(r"\bis_url\(|\bmirror\.url\(")
    callers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tune").rglob("*.py")
        if asking.search(path.read_text()) and path.parent.name not in may_ask
    ]
    assert callers == []


def test_a_folder_that_may_not_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "secret":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert mirror.sizes(tmp_path) == {"a/file": 1}
