"""Run what README, docs/, CONTRIBUTING and AGENTS tell people to type."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from serve.__main__ import _parser as serve_parser
from tests.conftest import ROOT, Run
from tests.helpers.ray_job_command import sent_by
from tune.__main__ import _parser

FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")]
DOCUMENTS = "\n".join(page.read_text() for page in [*FRONT, *sorted((ROOT / "docs").glob("*.md"))])
_VARIABLE = re.compile(r"[A-Z_]+=\S* ")


def commands(name: str) -> list[list[str]]:
    """The words behind a program in all blocks of commands, pipes and files left out."""
    blocks = re.findall(r"^ *```sh\n(.*?)```", DOCUMENTS, re.DOTALL | re.MULTILINE)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    lines = [re.split(r" [|>] ", _VARIABLE.sub("", line))[0] for line in lines]
    return [shlex.split(line)[1:] for line in lines if line.split(" ")[0].endswith(name)]


def test_every_command_line_is_understood() -> None:
    typed = commands("dpo-tune")
    assert len(typed) >= 20
    for arguments in typed:
        assert _parser().parse_args(arguments).command


def test_every_command_named_in_a_sentence_exists_with_its_options() -> None:
    """`dpo-tune push RUN --merged`: in a sentence what follows may be left out."""
    (choices,) = (a.choices for a in _parser()._actions if isinstance(a.choices, dict))
    named = re.findall(r"`(?:\.venv/bin/)?dpo-tune ([a-z]+)\b([^`]*)`", DOCUMENTS)
    assert len(named) > 20
    for command, rest in named:
        assert command in choices
        known = options_of(choices[command])
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, f"{command}{rest}"


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def test_every_server_is_understood() -> None:
    typed = [words[2:] for words in commands("python") if words[:2] == ["-m", "serve"]]
    assert typed
    for words in typed:
        assert serve_parser().parse_args(words).model
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs" / "serving.md").read_text()))
    assert named - {"--merged"} <= options_of(serve_parser())


def test_every_ray_job_is_understood() -> None:
    typed = commands("/ray")
    assert {words[0] for words in typed} == {"job"}
    assert {words[1] for words in typed} == {"submit", "logs", "stop"}
    for words in typed:
        sent_by(*words[1:])


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    mentioned = {words[0] for words in commands("make")} | set(
        re.findall(r"`make ([\w-]+)`", DOCUMENTS)
    )
    assert mentioned <= set(targets)
    assert {"run", "test", "check"} <= mentioned


def test_every_test_and_script_to_run_exists() -> None:
    typed = [words for words in commands("python") if words[:1] != ["-m"]]
    named = re.findall(r"`\.venv/bin/python (?:-m pytest -n 0 )?(\S+\.py)[^`]*`", DOCUMENTS)
    paths = [*named, *(words[0] for words in typed if words[0].endswith(".py"))]
    assert len(paths) >= 3
    assert [path for path in paths if not (ROOT / path).exists()] == []


def mapped_files() -> set[Path]:
    """Return the files that docs/files.md names. A line's folder is the nearest line above that is
    indented less. A line that is indented far continues the line before."""
    section = (ROOT / "docs" / "files.md").read_text()
    found: set[Path] = set()
    folders = [(-1, Path())]
    for line in re.findall(r"```\n(.*?)```", section, re.DOTALL)[0].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent < 20:
            while folders[-1][0] >= indent:
                folders.pop()
            if folder := re.match(r" *([a-z_]+)/", line):
                folders.append((indent, folders[-1][1] / folder[1]))
        found |= {folders[-1][1] / name for name in re.findall(r"\b\w+\.(?:py|js)\b", line)}
    return found


def test_the_file_map_names_every_file_and_no_other() -> None:
    files = mapped_files()
    assert {str(path) for path in files if not (ROOT / path).exists()} == set()
    sources = {
        path.relative_to(ROOT)
        for package in ("dpo_train", "tune", "serve")
        for path in (ROOT / package).rglob("*.py")
        if not path.name.startswith("_") and path.parent.name != "sample"
    }
    assert {str(path) for path in sources - files} == set()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_run_can_be_shown_listed_and_removed(tmp_path: Path, dpo_tune: Run) -> None:
    yaml = tmp_path / "first-try.yaml"
    yaml.write_text(
        "trainer: simulated\ntrials: 2\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
        "wandb: {mode: disabled}\n"
    )
    assert dpo_tune("run", yaml).returncode == 0
    assert "winner" in dpo_tune("show", "first-try").stdout
    assert '"schema": 1' in dpo_tune("show", "first-try", "--json").stdout
    rows = dpo_tune("show", "first-try", "--csv").stdout.splitlines()
    assert len(rows) == 3
    assert rows[0].startswith("id,state,pairs_trained,pairs_at_best_report,dpo.beta,")
    line = r"first-try +\d{4}-\d\d-\d\d \d\d:\d\d finished +2/2 +0\.\d{3}  eval/accuracy "
    assert re.search(line, dpo_tune("list").stdout)
    assert "-m tune clean NAME …" in dpo_tune("clean").stdout
    assert "removed first-try" in dpo_tune("clean", "first-try").stdout
    assert not (tmp_path / "runs" / "first-try").exists()
