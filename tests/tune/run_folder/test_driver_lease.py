"""One driver has a run folder at a time."""

import fcntl
from pathlib import Path

import pytest

from dpo_train.errors import InputError
from tune.run_folder import driver_lease
from tune.run_folder.driver_lease import is_driven, only_driver
from tune.run_folder.paths import RunFolder


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    with only_driver(folder):
        assert is_driven(folder)
        with pytest.raises(InputError, match="runs this search now"), only_driver(folder):
            pass
    assert not is_driven(folder)


def test_a_command_that_looks_just_now_refuses_no_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.at(tmp_path)
    with only_driver(folder):
        pass
    with folder.driver_lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        # The other command has looked while the driver waits.
        monkeypatch.setattr(driver_lease.time, "sleep", lambda _: fcntl.flock(file, fcntl.LOCK_UN))
        with only_driver(folder):
            assert is_driven(folder)
