"""Common mistakes. Each gets an error of one or two lines that says where it is, what is allowed
and what to type, and the exit code is 2."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpo_train import sample
from tune.__main__ import main

GOOD = "trials: 2\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
ROW = {"prompt": "Which number follows 3?", "chosen": "It is 4.", "rejected": "None."}


@dataclass(frozen=True)
class Wrong:
    """One mistake, typed in a folder with `x.yaml`, and texts that its error must contain."""

    messages: tuple[str, ...]
    yaml: str = GOOD
    typed: str = "run x.yaml"
    make: Callable[[Path], object] = lambda _: None
    """Writes the other files of the folder."""


def axis(text: str, *messages: str) -> Wrong:
    return Wrong(messages, f"trials: 2\nspace: {{optim.learning_rate: {text}}}\n")


def more(text: str, *messages: str) -> Wrong:
    return Wrong(messages, f"{GOOD}{text}\n")


def override(text: str, *messages: str) -> Wrong:
    return Wrong(messages, typed=f"run x.yaml --set {shlex.quote(text)}")


def rows(*texts: str, name: str = "rows.jsonl") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("".join(f"{text}\n" for text in texts))


def data(make: Callable[[Path], object], *messages: str, name: str = "rows.jsonl") -> Wrong:
    return Wrong(messages, f"{GOOD}data: {{id: {name}}}\n", "doctor x.yaml", make)


def model_without(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        shutil.copytree(sample.MODEL, folder / "base")
        (folder / "base" / name).unlink()

    return make


def without_template(folder: Path) -> None:
    shutil.copytree(sample.MODEL, folder / "base")
    (folder / "base" / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "base" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings))


def renamed(**names: str) -> str:
    return json.dumps({names.get(name, name): value for name, value in ROW.items()})


WRONG = {
    # --- axes ---
    "loguniform": axis("{loguniform: [1e-6, 1e-4]}",
                       "space: optim.learning_rate: unknown key 'loguniform'",
                       "did you mean 'log_uniform'?"),
    "values, as in a W&B sweep": axis("{values: [1e-5, 1e-4]}", "type `{choice: [a, b]}`"),
    "two numbers": axis("[1e-3, 1e-5]", "space: optim.learning_rate: [0.001, 1e-5] could mean",
                        "`{choice: [0.001, 1e-5]}` or `{log_uniform: [1e-5, 0.001]}`"),
    "three numbers": axis("[1e-3, 1e-4, 1e-5]", "type `{choice: [0.001, 0.0001, 1e-5]}`"),
    "one number": axis("1e-5", "1e-5 is not an axis", "belongs outside of space"),
    "an axis of nothing": axis("", "null is not an axis", "`{choice: [a, b]}`"),
    "no kind": axis("{}", "exactly one of log_uniform, uniform", "this one has none"),
    "two kinds": axis("{uniform: [0, 1], choice: [1]}", "this one has uniform and choice"),
    "one bound": axis("{uniform: [1]}", "must be two numbers, [low, high]", "type `uniform: [0.1,"),
    "words as bounds": axis("{log_uniform: [low, high]}", "must be two numbers, [low, high]"),
    "bounds the wrong way": axis("{uniform: [2, 1]}", "low must be below high"),
    "a logarithm of 0": axis("{log_uniform: [0, 1]}", "a logarithmic axis needs low above 0"),
    "an empty choice": axis("{choice: []}", "must be a list of at least one value"),
    "optim.lr": Wrong(("unknown path 'optim.lr'", "did you mean 'optim.learning_rate'?"),
                      "trials: 2\nspace: {optim.lr: {log_uniform: [1e-6, 1e-4]}}\n"),
    "bs": Wrong(("unknown path 'bs'", "did you mean 'optim.batch_size'?"),
                "trials: 2\nspace: {bs: {choice: [4, 8]}}\n"),
    "an axis of the model": Wrong(("space: model.id", "run one search for each value"),
                                  "trials: 2\nspace: {model.id: {choice: [a, b]}}\n"),
    "a value that is none of a field's": Wrong(
        ("space: dpo.loss", "there is no 'sigmiod'; did you mean 'sigmoid'?"),
        "trials: 2\nspace: {dpo.loss: {choice: [sigmoid, sigmiod]}}\n"),
    "fractions of a whole number": Wrong(
        ("type `optim.batch_size: {int: [4, 16]}`",),
        "trials: 2\nspace: {optim.batch_size: {uniform: [4, 16]}}\n"),
    "no space": Wrong(("space: there is nothing to search", "type `space: {optim.learning_rate:",
                       "take trials out and type `python -m dpo_train x.yaml --out my-model`"),
                      "trials: 2\n"),
    # --- names of others ---
    "num_train_epochs": more("num_train_epochs: 3", "type `optim.epochs`"),
    "per_device_train_batch_size": more("optim: {per_device_train_batch_size: 4}",
                                        "`optim.batch_size`"),
    "lr in a part": more("optim: {lr: 1e-5}", "'optim.lr'; did you mean 'optim.learning_rate'?"),
    "a field at the wrong level": more("learning_rate: 1e-5", "did you mean 'optim.learning_rate'"),
    "a typing error": more("trails: 3", "unknown key 'trails'; did you mean 'trials'?"),
    "a key like no other": more("optim: {zzz: 1}", "allowed here: name, learning_rate"),
    "the dataset's name": more("dataset: pairs.jsonl", "did you mean 'data.id'?"),
    # --- values ---
    "a word for a number": more("optim: {learning_rate: fast}",
                                "optim.learning_rate: must be a number above 0 and at most 10",
                                "not 'fast'; type `learning_rate: 1e-5`"),
    "many trials": Wrong(("trials: must be a whole number of at least 1", "not 'many'",
                          "type `trials: 24`"), GOOD.replace("trials: 2", "trials: many")),
    "true trials": Wrong(("trials: must be a whole number", "not true"),
                         GOOD.replace("trials: 2", "trials: true")),
    "no trials": Wrong(("trials: say how many, like `trials: 24`",), GOOD.replace("trials: 2", "")),
    "a loss of no name": more("dpo: {loss: sigmiod}", "dpo.loss: there is no 'sigmiod'",
                              "did you mean 'sigmoid'?"),
    "a part that is a number": more("optim: 3", "optim: must be a mapping of name, learning_rate",
                                    "type `optim: {name: adamw, learning_rate: 1e-5}`"),
    "a part that is a word": more("stopping: none", "type `stopping: {name: none}`"),
    "a model that is a word": more("model: sample", "type `model: {id: sample}`"),
    "a repository without an owner": more("hub: {repo: it}", "hub.repo: 'it' is not owner/name"),
    "an axis that is no mapping": Wrong(("space: must be a mapping", "type `space: {dpo.beta:"),
                                        "trials: 2\nspace: [dpo.beta]\n"),
    "chosen is null": more("data: {columns: {chosen: null}}",
                           "data.columns.chosen is null; it must be a text"),
    "an objective of no name": more("objective: eval/acuracy", "there is no 'eval/acuracy'",
                                    "did you mean 'eval/accuracy'?"),
    "the same objective twice": more("objective: [eval/nll, eval/nll]", "two different ones"),
    "a bound of no metric": more("constraints: {drift: {at_most: 1}}", "constraints.drift",
                                 "did you mean 'eval/drift'"),
    "a name with a slash": more("name: a/b", "name: must be letters, digits", "not 'a/b'"),
    "no function": more("confirm: {evaluate: judge}", "must be package.module:function",
                        "type `evaluate: my_package.judge:score`"),
    "points that are none": more("points: {dpo.beta: 0.1}", "points: must be a list of points",
                                 "`[{dpo.beta: 0.1}]`"),
    "a point outside": more("points: [{dpo.beta: 3}]", "lies outside the space (uniform 0.1 to"),
    "512 GPUs": more("resources: {gpus: 512}", "resources.gpus: a trial wants 512",
                     "type `--set resources.gpus=0`"),
    "rungs off the evaluations": more("eval_every_pairs: 64\nstopping: {grace_pairs: 100}",
                                      "the nearest that fit: 64 or 128"),
    # --- --set ---
    "a field of TRL's": override("trl.ld_alpha=1", "ld_alpha can't be set here",
                                 "take it out"),
    "a field that is none": override("optim.epoch=3", "did you mean 'optim.epochs'?"),
    "no value": override("trials", "--set: 'trials' has no `=`; type `--set optim.epochs=2`"),
    "no path": override("=3", "--set: '=3' has no path before its `=`"),
    "half a list": override("data.chars=[1,", "is not a YAML value; quote it for the shell"),
    "an axis alone": override("space.dpo.beta=1", "unknown path 'space.dpo.beta'; give space as a"),
    # --- the file ---
    "no file": Wrong(("none.yaml: can't be read", "`dpo-tune init`"), typed="run none.yaml"),
    "a folder": Wrong((".: can't be read",), typed="run ."),
    "tabs": Wrong(("x.yaml: line 1", "indent with spaces"), "\ttrials: 2\n"),
    "a key twice": Wrong(("x.yaml: line 2", "take one of them out"), "trials: 1\ntrials: 2\n"),
    "a list that never ends": Wrong(("x.yaml: line 2", "correct the line"), "trials: [1\n"),
    "nothing": Wrong(("x.yaml: must be a mapping of keys to values, like `trials: 24`",), ""),
    # --- the command line ---
    "a command of no name": Wrong(("no command 'rnu'", "dpo-tune run`?"), typed="rnu"),
    "a YAML for a command": Wrong(("did you mean `", "dpo-tune run x.yaml`?"), typed="x.yaml"),
    "no YAML": Wrong(("arguments are required: yaml", "dpo-tune run --help`"), typed="run"),
    "an unknown option": Wrong(("--trails", "dpo-tune --help`"), typed="run x.yaml --trails 3"),
    "no run of the name": Wrong(("no run 'none'",), typed="show none"),
    "init without a model": Wrong(("init: --model must be given", "dpo-tune init --model"),
                                  typed="init --data rows.jsonl"),
    "init over a file": Wrong(("init: x.yaml exists", "OTHER.yaml"),
                              typed="init x.yaml --model sample --data sample"),
    "init with another field": Wrong(
        ("init: --set trials: init takes only", "dpo-tune run new.yaml --set trials=VALUE`"),
        typed="init new.yaml --model sample --data sample --set trials=3"),
    # --- model and data ---
    "no dataset": data(lambda _: None, "data.id: no file rows.jsonl; give a path that exists"),
    "a dataset that is not JSON": data(rows("once", "upon", "a time"), "none of the 3 rows can be",
                                       "rows.jsonl line 1: not JSON"),
    "an empty dataset": data(rows(), "data.id: rows.jsonl has no rows; give a file"),
    "other columns": data(rows(*[renamed(prompt="question", chosen="good")] * 5),
                          "no column 'chosen'", "--set data.columns.chosen=good"),
    "no chosen in any row": data(rows(*[json.dumps({**ROW, "chosen": None})] * 5),
                                 "rows.jsonl line 1: chosen is null"),
    "a table of semicolons": data(rows("prompt;chosen;rejected", "a;b;c", name="rows.csv"),
                                  "separated by ';'", "save it as .csv", name="rows.csv"),
    "one row": data(rows(json.dumps(ROW)), "no pair is left for train", "give more rows"),
    "pairs that are all too long": Wrong(
        ("no pair is left for train after tokenising", "raise data.max_length_tokens"),
        f"{GOOD}data: {{max_length_tokens: 8}}\n", "doctor x.yaml"),
    "no model": Wrong(("model.id:", "nothing has no config.json; give a folder"),
                      f"{GOOD}model: {{id: ./nothing}}\n"),
    "a model without a tokenizer": Wrong(
        ("has no tokenizer_config.json; give a folder as save_pretrained writes it",),
        f"{GOOD}model: {{id: ./base}}\n", make=model_without("tokenizer_config.json")),
    "a tokenizer without a template": Wrong(
        ("model.id: the tokenizer of './base' has no chat template; use an instruct model",),
        f"{GOOD}model: {{id: ./base}}\n", "doctor x.yaml", without_template),
}  # fmt: skip
PYDANTICS = re.compile(r"Input should|validation error|pydantic|Traceback|\^\[|Extra inputs")


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_answered_with_the_place_and_what_to_type(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = WRONG[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("tune.search.driver._search", lambda *_: pytest.fail("it began"))
    Path("x.yaml").write_text(wrong.yaml)
    wrong.make(tmp_path)
    assert main(shlex.split(wrong.typed)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") <= 2
    assert not PYDANTICS.search(error), error
    for message in wrong.messages:
        assert message in error
    suggestions = re.findall(r"did you mean (.*)\?", error)
    assert all(len(names.split(",")) <= 5 for names in suggestions)


def test_there_are_at_least_forty_wrong_inputs() -> None:
    assert len(WRONG) >= 40
