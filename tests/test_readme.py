"""What the README tells people to type, typed."""

import re
import shlex
from pathlib import Path

import pytest
from ray.dashboard.modules.job.cli import job_cli_group

from tests.conftest import ROOT, Run
from tune.__main__ import _parser

README = (ROOT / "README.md").read_text()


def commands(name: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.split(" ")[0].endswith(name)]


def sent_by(command: str, *arguments: str) -> Path | None:
    """The YAML of the search that `ray job COMMAND` sends; None if it sends none.

    Ray and we understand every option of it.
    """
    given = job_cli_group.commands[command].make_context(command, list(arguments)).params
    if command != "submit":
        return None
    assert given["working_dir"] == "."
    assert given["entrypoint"][:3] == ("python", "-m", "tune")
    yaml = _parser().parse_args(given["entrypoint"][3:]).yaml
    assert (ROOT / yaml).exists()
    return Path(yaml)


def test_every_command_line_is_understood() -> None:
    typed = commands("dpo-tune")
    assert len(typed) >= 6
    for arguments in typed:
        assert _parser().parse_args(arguments).command


def test_every_ray_job_is_understood() -> None:
    typed = commands("/ray")
    assert {words[0] for words in typed} == {"job"}
    assert {words[1] for words in typed} == {"submit", "logs", "stop"}
    for words in typed:
        sent_by(*words[1:])


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    mentioned = {words[0] for words in commands("make")} | set(
        re.findall(r"`make ([\w-]+)`", README)
    )
    assert mentioned <= set(targets)
    assert {"run", "test", "check"} <= mentioned


def test_the_file_map_is_true() -> None:
    table = README[README.index("## File map") : README.index("Not here yet")]
    named = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    listed: set[Path] = set()
    for cell in named:
        paths = [Path(path) for path in re.findall(r"`([^`]+)`", cell)]
        listed |= {path if len(path.parts) > 1 else paths[0].parent / path for path in paths}
        listed |= set(paths[:1])
    assert {path for path in listed if not (ROOT / path).exists()} == set()
    for package in ("dpo_train", "tune", "serve"):
        sources = {path.relative_to(ROOT) for path in (ROOT / package).glob("[!_]*.py")}
        assert sources <= listed


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
    assert rows[0].startswith("id,state,dpo.beta,")
    assert re.search(r"first-try +run +finished +2 ", dpo_tune("list").stdout)
    assert "to remove: dpo-tune clean NAME" in dpo_tune("clean").stdout
    assert "removed first-try" in dpo_tune("clean", "first-try").stdout
    assert not (tmp_path / "runs" / "first-try").exists()
