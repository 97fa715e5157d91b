"""`dpo-tune init`: from a model and a dataset to a commented YAML that runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dpo_train import model_source
from dpo_train.config import TrainConfig
from dpo_train.config_base import Overrides, parse
from dpo_train.data import load_pairs
from dpo_train.errors import InputError
from dpo_train.storage.files import write_atomically
from tune.config.json_schema import FILE
from tune.config.load import load_new_search
from tune.search.gpus import visible_gpus

_TEMPLATE = "search.yaml.jinja"
_TRIALS_ON_GPUS, _TRIALS_ON_CPUS = 24, 12
_MANY_PAIRS = 256
"""With as many the first rung lies at 128 pairs, where it tells more than noise; else at 64."""


@dataclass(frozen=True)
class Wanted:
    """What a person said, or answered."""

    model: str
    data: str
    file: Path


def ask_for_missing(model: str | None, data: str | None, file: Path | None) -> Wanted:
    """Asks at a terminal for what the flags leave out: at most three questions. Raises InputError
    where nobody can be asked."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal and (model is None or data is None):
        missing = " and ".join(
            name for name, given in (("--model", model), ("--data", data)) if given is None
        )
        raise InputError(
            f"init: {missing} must be given where nobody can be asked; type "
            "`dpo-tune init --model FOLDER --data pairs.jsonl`"
        )
    asks = model is None or data is None
    model = model or _answer("base model: a folder, a Hub id, or `sample`", "sample")
    data = data or _answer("preference pairs: a file, a folder, a Hub id, or `sample`", "sample")
    if file is None:
        usual = f"{_stem(data)}.yaml"
        file = Path(_answer("file to write", usual) if asks and is_terminal else usual)
    return Wanted(model, data, file)


def write_search(wanted: Wanted, overrides: Overrides) -> str:
    """Reads model and dataset, and writes the YAML; returns what a person should know of it.

    `overrides` are values of `model` and `data` by dotted path. Raises InputError for what can't be
    read, and for a file that exists.
    """
    file, name = wanted.file, shlex.quote(str(wanted.file))
    if file.exists():
        raise InputError(f"init: {file} exists; type `dpo-tune init OTHER.yaml` to name another")
    for path in overrides:
        if not path.startswith(("model.", "data.")):
            raise InputError(
                f"init: --set {path}: only model and data are read here; change {path} in the "
                f"file, or type `dpo-tune run {name} --set {path}=…`"
            )
    given = {"model": {"id": wanted.model}, "data": {"id": wanted.data}}
    config = parse(TrainConfig, given, overrides, "init")
    model_source.resolve(config.model)
    pairs = load_pairs(config.data)
    train, held_out, test = (len(rows) for rows in pairs.splits.values())
    has_gpu = bool(visible_gpus())
    text = _template().render(
        schema=FILE,
        file=name,
        name=_as_yaml(_stem(str(file))),
        model=_as_yaml(config.model.model_dump(mode="json", exclude_unset=True)),
        data={
            key: _as_yaml(value)
            for key, value in config.data.model_dump(mode="json", exclude_unset=True).items()
        },
        train=f"{train:,}",
        held_out=f"{held_out:,}",
        test=f"{test:,}",
        trials=_TRIALS_ON_GPUS if has_gpu else _TRIALS_ON_CPUS,
        grace_pairs=128 if train >= _MANY_PAIRS else 64,
        gpus=1 if has_gpu else 0,
    )
    write_atomically(file, text)
    trials = load_new_search(file).total_trials
    return (
        f"written: {file}: {trials} trials that train a LoRA of {wanted.model} on {train:,} pairs\n"
        f"read as: {pairs.read_as}; {pairs.summary()}\n"
        f"next: `dpo-tune doctor {name}` to look, `dpo-tune run {name}` to search"
    )


def _answer(question: str, usual: str) -> str:
    return input(f"{question} [{usual}]: ").strip() or usual


def _stem(source: str) -> str:
    """A dataset's or file's name as a search may have it."""
    stem = Path(source).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-") or "search"


def _template() -> Template:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # it is YAML, whose values `_as_yaml` quotes
    ).get_template(_TEMPLATE)


def _as_yaml(value: object) -> str:
    """A value on one line: a text without quotes where YAML reads it as it stands, else as JSON,
    which YAML reads too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str) and re.fullmatch(r"[\w./~-]+", value):
        try:
            if YAML(typ="safe", pure=True).load(value) == value:
                return value
        except YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)
