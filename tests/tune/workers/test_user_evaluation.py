"""The code that a YAML can name, and the message before it runs."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_train.errors import InputError
from tests.helpers.recorded_search import Search
from tune.config.checks import check
from tune.config.places import ALLOWED_CODE
from tune.config.schema import SearchConfig
from tune.run_folder import redact
from tune.run_folder.run_info import RunInfo
from tune.search.user_code import approve
from tune.workers.user_evaluation import evaluate_folder, file_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with an evaluation function in a module that no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(ALLOWED_CODE, raising=False)
    package = tmp_path / f"judges_of_{tmp_path.parent.name}_{tmp_path.name}".replace("-", "_")
    package.mkdir()
    (package / "judge.py").write_text("def score(folder):\n    return {'won': 0.5}\n")
    return package


def config(name: str) -> SearchConfig:
    return check(
        SearchConfig.model_validate(
            {"name": "x", "trials": 2, "trainer": "simulated", "confirm": {"evaluate": name}}
        )
    )


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "os.path:join", "builtins:eval"])
def test_pythons_own_library_is_never_called(here: Path, name: str) -> None:
    for allowed in ((), ("os", "subprocess", "builtins")):
        with pytest.raises(InputError, match="in Python.s standard library, which is not allowed"):
            file_of(name, here.parent, allowed)
        with pytest.raises(InputError):
            evaluate_folder(name, here, str(here.parent), allowed)


def test_an_installed_package_is_called_only_where_the_command_names_it(here: Path) -> None:
    with pytest.raises(InputError, match="if you trust it, type `--allow-code torch`"):
        file_of("torch.hub:load", here.parent, ())
    assert file_of("torch.hub:load", here.parent, ("torch",)).name == "hub.py"


def test_a_module_under_the_working_folder_is_called(here: Path) -> None:
    name = f"{here.name}.judge:score"
    assert file_of(name, here.parent, ()) == here / "judge.py"
    assert evaluate_folder(name, here, str(here.parent)) == {"won": 0.5}
    with pytest.raises(InputError, match="there is no module"):
        file_of(f"{here.name}.none:score", here.parent, ())
    with pytest.raises(InputError, match="which is not under the working folder"):
        file_of(name, here.parent / "elsewhere", ())


def test_a_function_that_a_module_passes_on_is_looked_at_where_it_is_from(here: Path) -> None:
    (here / "passed_on.py").write_text("from os import system\nfrom torch.hub import load\n")
    name = f"{here.name}.passed_on"
    with pytest.raises(InputError, match="in Python's standard library, which is not allowed"):
        evaluate_folder(f"{name}:system", here, str(here.parent))
    with pytest.raises(InputError, match="if you trust it, type `--allow-code torch`"):
        evaluate_folder(f"{name}:load", here, str(here.parent))


@pytest.mark.parametrize("name", ["__main__:score", "__main__.x:score"])
def test_the_program_itself_is_no_module_of_the_user(here: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is no module"):
        file_of(name, here.parent, ())


@pytest.mark.parametrize("name", [".a:f", "a..b:f", "a.:f"])
def test_a_name_that_is_none_is_refused_as_it_is_read(name: str) -> None:
    with pytest.raises(ValidationError, match=r"confirm\.evaluate"):
        config(name)


def test_a_package_may_import_what_processes_of_the_search_leave_out(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "__init__.py").write_text("import wandb\n")
    monkeypatch.setitem(sys.modules, "wandb", None)
    name = f"{here.name}.judge:score"
    assert evaluate_folder(name, here, str(here.parent)) == {"won": 0.5}


def test_the_file_is_named_before_it_runs_and_a_changed_one_must_be_allowed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = config(f"{here.name}.judge:score")
    run = RunInfo(prefix="abc", prepared="", device="cpu")
    approve(search, run)
    assert f"x: confirm.evaluate will run {here.name}.judge:score from {here}" in (
        capsys.readouterr().err
    )
    approve(search, run)
    (here / "judge.py").write_text("def score(folder):\n    return {'won': 1.0}\n")
    with pytest.raises(InputError, match=f"has changed .* type `--allow-code {here.name}`"):
        approve(search, run)
    monkeypatch.setenv(ALLOWED_CODE, here.name)
    approve(search, run)
    monkeypatch.delenv(ALLOWED_CODE)
    approve(search, run)


def test_it_is_left_out_of_what_is_published(here: Path, tmp_path: Path) -> None:
    shown = redact.search(config(f"{here.name}.judge:score"))
    assert shown.confirm is not None
    assert shown.confirm.evaluate is None
    assert redact.search(Search(tmp_path / "runs").config).confirm is None
