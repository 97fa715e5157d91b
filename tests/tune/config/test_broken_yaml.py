"""Each of many broken YAML files gets an error of one line, and nothing is written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tune.__main__ import main

GOOD = {
    "trainer": "simulated",
    "trials": 2,
    "space": {"dpo.beta": {"uniform": [0.1, 0.2]}},
    "points": [{"dpo.beta": 0.15}],
}
VALUES: dict[str, Any] = {
    "a word": "many", "empty": "", "a list": [1, 2], "a mapping": {"a": 1}, "NaN": float("nan"),
    "infinite": float("inf"), "negative": -1, "huge": 10**40, "true": True, "null": None,
}  # fmt: skip
PLACES = ("trials", "trainer", "seed", "space", "points", "objective", "optim.learning_rate",
          "optim.batch_size", "dpo.beta", "stopping.grace_pairs", "resources.cpus", "confirm",
          "constraints", "keep_best", "budget.hours")  # fmt: skip
TEXTS = {
    "nothing": "", "only a comment": "# later\n", "a list": "- trials: 2\n", "no YAML": "a: [1\n",
    "tabs": "\ttrials: 2\n", "a key twice": "trials: 2\ntrials: 3\n", "bytes": "\0\1\2",
    "two documents": "trials: 2\n---\ntrials: 3\n", "an alias of nothing": "trials: *two\n",
    "a tag": "trials: !!python/object:os.system ls\n", "a merge": "<<: 3\ntrials: 2\n",
    "a number for a key": "1: 2\n", "itself": "a: &a\n  b: *a\n",
}  # fmt: skip


def broken() -> dict[str, str]:
    """Return YAML files that are wrong, each in one way, by what is wrong."""
    cases = {f"file of {name}": text for name, text in TEXTS.items()}
    for path in PLACES:
        for name, value in VALUES.items():
            content = json.loads(json.dumps(GOOD))
            section, _, field = path.rpartition(".")
            (content.setdefault(section, {}) if section else content)[field] = value
            cases[f"{path} is {name}"] = json.dumps(content)
    for unknown in ("trails", "model.ids", "optim.lr", "stopping.rungs", "hub.token"):
        content = json.loads(json.dumps(GOOD))
        section, _, field = unknown.rpartition(".")
        (content.setdefault(section, {}) if section else content)[field] = 1
        cases[f"unknown {unknown}"] = json.dumps(content)
    for axis in ({}, {"uniform": [1]}, {"uniform": [2, 1]}, {"log_uniform": [0, 1]}, 3, None,
                 {"choice": []}, {"int": [1.5, 2]}, {"uniform": [0, 1], "choice": [1]},
                 {"uniform": [0.1, 0.2], "when": {"lora.r": 1}}):  # fmt: skip
        cases[f"axis {axis}"] = json.dumps({**GOOD, "space": {"dpo.beta": axis}, "points": []})
    for wrong in ("./nothing", "/nowhere/at/all", "~/none.jsonl", "x.jsonl", "../.."):
        cases[f"data at {wrong}"] = json.dumps({**GOOD, "trainer": "trl", "data": {"id": wrong}})
        cases[f"model at {wrong}"] = json.dumps({**GOOD, "trainer": "trl", "model": {"id": wrong}})
    return cases


FINE = {"confirm is null", "budget.hours is null"}


def test_a_hundred_broken_yamls_are_each_answered_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tune.search.driver._search", lambda *_: pytest.fail("it began"))
    cases = {name: text for name, text in broken().items() if name not in FINE}
    wrong = {}
    for name, text in cases.items():
        Path("x.yaml").write_text(text)
        try:
            code = main(["run", "x.yaml"])
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        shown = capsys.readouterr()
        # Mistakes that the YAML alone does not show are found after the first line of progress.
        signs = ".*: (checking model, data and outputs|reading the data)\n"
        printed = re.sub(signs, "", shown.out)
        if (code, shown.err.count("\n"), printed) != (2, 1, "") or "Traceback" in shown.err:
            wrong[name] = (code, shown.err, shown.out)
        left = sorted(path.name for path in tmp_path.iterdir())
        if left != ["x.yaml"]:
            wrong.setdefault(name, left)
            shutil.rmtree("runs", ignore_errors=True)
    assert wrong == {}
    assert len(cases) >= 100
