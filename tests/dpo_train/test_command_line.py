"""A command that a message names can be pasted into the same shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_train.command_line import dpo_tune, python_module, script
from tests.conftest import ROOT

SAYS = """
import sys
from dpo_train.command_line import dpo_tune
print(dpo_tune("resume", "runs/my search", "--trials", "+8"))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return the folder of an environment in which `dpo-tune` prints a command."""
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    program = folder / "dpo-tune"
    program.write_text(f"#!{sys.executable}\n{SAYS}")
    program.chmod(0o755)
    return folder


def printed(command: list[str], cwd: Path, path: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join(filter(None, [path, environment["PATH"]]))
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


ARGUMENTS = "resume 'runs/my search' --trials +8"


def test_a_program_called_by_its_path_is_named_by_that_path(
    installed: Path, tmp_path: Path
) -> None:
    assert printed(["env/bin/dpo-tune"], tmp_path) == f"env/bin/dpo-tune {ARGUMENTS}"
    assert printed([str(installed / "dpo-tune")], tmp_path) == f"env/bin/dpo-tune {ARGUMENTS}"


def test_a_program_that_the_shell_finds_is_named_alone(installed: Path, tmp_path: Path) -> None:
    assert printed(["dpo-tune"], tmp_path, str(installed)) == f"dpo-tune {ARGUMENTS}"


def test_a_module_is_named_with_the_python_that_ran_it(tmp_path: Path) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "__init__.py").touch()
    (tmp_path / "tune" / "__main__.py").write_text(SAYS)
    by_path = printed([sys.executable, "-m", "tune"], tmp_path)
    assert by_path == f"{sys.executable} -m tune {ARGUMENTS}"
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python-here").symlink_to(sys.executable)
    assert printed(["python-here", "-m", "tune"], tmp_path, str(folder)) == (
        f"python-here -m tune {ARGUMENTS}"
    )


def test_a_folder_with_a_space_is_quoted_in_the_program_too(
    installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "my env"
    folder.mkdir()
    installed.rename(folder / "bin")
    assert shlex.split(printed([str(folder / "bin" / "dpo-tune")], tmp_path)) == [
        "my env/bin/dpo-tune", "resume", "runs/my search", "--trials", "+8",
    ]  # fmt: skip


def test_a_script_of_this_environment_is_found_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    assert Path(shlex.split(script("pytest", "a b"))[0]).exists()
    assert shlex.split(script("pytest", "a b"))[1:] == ["a b"]
    assert script("no-such-script", "x") == "no-such-script x"


def test_outside_of_a_command_line_the_named_program_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    first = shlex.split(dpo_tune("list"))[0]
    assert first == "dpo-tune" or Path(first).exists()
    assert python_module("serve", "a").endswith(" -m serve a")
