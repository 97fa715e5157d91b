"""From a model and a dataset to a running search: `init`, then `run`."""

import json
import shutil
import sys
from io import StringIO
from pathlib import Path

import pytest

from dpo_train import sample
from dpo_train.errors import InputError
from tests.conftest import Run
from tune.commands import init
from tune.commands.init import InitRequest, ask_for_missing, write_search
from tune.config.load import load_search

ROWS = [
    {"prompt": f"Which number follows {n}?", "chosen": f"It is {n + 1}.", "rejected": "None."}
    for n in range(60)
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a user's model and pairs."""
    shutil.copytree(sample.MODEL, tmp_path / "my model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray", "here")
def test_two_commands_lead_from_a_folder_and_a_file_to_a_winner(
    dpo_tune: Run, tmp_path: Path
) -> None:
    made = dpo_tune("init", "--model", "my model", "--data", "pairs.jsonl")
    assert made.returncode == 0, made.stderr
    assert "written: pairs.yaml: 12 trials" in made.stdout
    assert "read as: prompt + answers, 60 rows" in made.stdout
    done = dpo_tune("run", "pairs.yaml", "--set", "trials=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "pairs" / "winner" / "adapter_config.json").exists()


def test_the_file_says_what_everything_is_and_loads(here: Path) -> None:
    printed = write_search(InitRequest("my model", "pairs.jsonl", Path("x.yaml")), {})
    text = (here / "x.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=/")
    assert 'model: {id: "my model"}' in text
    assert "# 40 pairs to train on, 10 to compare trials by, 10 for the end" in text
    assert "# What is searched" in text
    config = load_search(Path("x.yaml"))
    assert (config.name, config.model.id, config.data.id) == ("x", "my model", "pairs.jsonl")
    assert len(config.space) == 3
    assert config.lora is not None
    assert "dpo-tune run x.yaml`" in printed


def test_init_writes_the_columns_that_the_data_need(here: Path) -> None:
    renamed = [{"question": r["prompt"], "good": r["chosen"], "bad": [r["rejected"]]} for r in ROWS]
    (here / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    request = InitRequest("sample", "odd.jsonl", Path("odd.yaml"))
    with pytest.raises(InputError, match=r"--set data.columns.chosen=NAME|data.columns.prompt=que"):
        write_search(request, {})
    assert not (here / "odd.yaml").exists()
    columns = {"data.columns.prompt": "question", "data.columns.chosen": "good",
               "data.columns.rejected": "bad[0]", "data.max_length_tokens": 256}  # fmt: skip
    write_search(request, columns)
    data = load_search(Path("odd.yaml")).data
    assert data.columns.rejected == "bad[0]"
    assert data.max_length_tokens == 256


def test_with_a_gpu_a_trial_has_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "visible_gpus", lambda: ["one"])
    write_search(InitRequest("sample", "pairs.jsonl", here / "x.yaml"), {})
    config = load_search(here / "x.yaml")
    assert (config.resources.gpus, config.trials) == (0.0625, 24)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_three_questions_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["my model", "pairs.jsonl", ""])
    questions: list[str] = []
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or next(answers))
    found = ask_for_missing(None, None, None)
    assert found == InitRequest("my model", "pairs.jsonl", Path("pairs.yaml"))
    assert [text.split(":")[0] for text in questions] == [
        "base model", "preference pairs", "file to write [pairs.yaml]",
    ]  # fmt: skip


def test_init_does_not_ask_for_values_given_as_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(text))
    assert ask_for_missing("m", "acme/truthy", None).file == Path("truthy.yaml")


def test_a_folder_for_the_file_is_made(here: Path) -> None:
    write_search(InitRequest("sample", "sample", Path("new/folder/x.yaml")), {})
    assert (here / "new" / "folder" / "x.yaml").exists()


def test_ctrl_d_at_a_question_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def end_of_input(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr("builtins.input", end_of_input)
    with pytest.raises(InputError, match="init: the question was not answered; type"):
        ask_for_missing(None, None, None)
