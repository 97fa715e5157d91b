"""`dpo-tune init`: writes a commented YAML that runs, for a model and a dataset."""

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
from dpo_train.command_line import dpo_tune
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
"""With at least this many training pairs the first rung is at 128 pairs, because there a report
shows more than noise. With fewer it is at 64."""


@dataclass(frozen=True)
class InitRequest:
    """What the user wants: given as options, or typed as answers."""

    model: str
    data: str
    file: Path


def ask_for_missing(model: str | None, data: str | None, file: Path | None) -> InitRequest:
    """Ask at a terminal for the options that are missing, with at most three questions.

    Raises InputError without a terminal.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal and (model is None or data is None):
        missing = " and ".join(
            name for name, given in (("--model", model), ("--data", data)) if given is None
        )
        raise InputError(
            f"init: {missing} must be given, since there is no terminal to ask at; type "
            f"`{dpo_tune('init', '--model', 'FOLDER', '--data', 'pairs.jsonl')}`"
        )
    has_asked = model is None or data is None
    model = model or _answer("base model: a folder, a Hub id, or `sample`", "sample")
    data = data or _answer("preference pairs: a file, a folder, a Hub id, or `sample`", "sample")
    if file is None:
        usual = f"{_stem(data)}.yaml"
        file = Path(_answer("file to write", usual) if has_asked and is_terminal else usual)
    return InitRequest(model, data, file)


def write_search(request: InitRequest, overrides: Overrides) -> str:
    """Read model and dataset, write the YAML, and return a summary to print.

    `overrides` are values of `model` and `data` by dotted path. Raises InputError if model or data
    can't be read, or if the file exists.
    """
    # --- refuse what can't be written ---
    file, name = request.file, str(request.file)
    if file.exists():
        raise InputError(
            f"init: {file} exists; type `{dpo_tune('init', 'OTHER.yaml')}` to write another file"
        )
    for path in overrides:
        if not path.startswith(("model.", "data.")):
            raise InputError(
                f"init: --set {path}: init takes only model and data; change {path} in the "
                f"file, or type `{dpo_tune('run', name, '--set', f'{path}=VALUE')}`"
            )

    # --- read model and data ---
    given = {"model": {"id": request.model}, "data": {"id": request.data}}
    config = parse(TrainConfig, given, overrides, "init")
    model_source.resolve(config.model)
    pairs = load_pairs(config.data)
    train, held_out, test = (len(rows) for rows in pairs.splits.values())

    # --- write the YAML, and load it as a check ---
    has_gpu = bool(visible_gpus())
    text = _template().render(
        schema=FILE,
        file=shlex.quote(name),
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
        gpus=0.0625 if has_gpu else 0,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)
    trials = load_new_search(file).total_trials
    return (
        f"written: {file}: {trials} trials, each a LoRA of {request.model} on {train:,} pairs\n"
        f"read as: {pairs.read_as}; {pairs.summary()}\n"
        f"next: `{dpo_tune('doctor', name)}` to check it, `{dpo_tune('run', name)}` to run it"
    )


def _answer(question: str, usual: str) -> str:
    try:
        return input(f"{question} [{usual}]: ").strip() or usual
    except EOFError:  # Ctrl-D
        print()
        command = dpo_tune("init", "--model", "FOLDER", "--data", "pairs.jsonl")
        raise InputError(f"init: the question was not answered; type `{command}`") from None


def _stem(source: str) -> str:
    """Return the name of a dataset or file, made of characters that a search's name may have."""
    stem = Path(source).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-") or "search"


def _template() -> Template:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the template is YAML, and `_as_yaml` quotes its values
    ).get_template(_TEMPLATE)


def _as_yaml(value: object) -> str:
    """Return a value as YAML on one line. A text that YAML would read as something else is written
    as JSON, which YAML reads too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str) and re.fullmatch(r"[\w./~-]+", value):
        try:
            if YAML(typ="safe", pure=True).load(value) == value:
                return value
        except YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)
