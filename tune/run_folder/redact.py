"""Removes this machine's folders from texts, settings and results that are sent or published.

Knows no service.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_train.config import ModelConfig
from tune.config.schema import OUTPUTS, SearchConfig
from tune.run_folder.results import Results


def text(content: str) -> str:
    """Returns the text with each path cut to its last part."""
    return re.sub(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", content)


def is_local(source: str) -> bool:
    """Returns whether a model's or dataset's id names files, here or where the search began."""
    if source == "sample":
        return False
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None
    is_file = Path(source).suffix in (".jsonl", ".json", ".csv", ".parquet")
    return not is_id or is_file or source.startswith(".") or Path(source).exists()


def model(config: ModelConfig) -> str:
    """Returns the base model's id; a path is cut to its last part."""
    return Path(config.id).name if is_local_model(config) else config.id


def is_local_model(config: ModelConfig) -> bool:
    """Returns whether the model is local. One from the Hub has a commit, since searches pin it."""
    return is_local(config.id) or (config.id != "sample" and config.revision is None)


def source(name: str) -> str:
    """Returns a dataset's id; a path is cut to its last part."""
    return Path(name).name if is_local(name) else name


def search(config: SearchConfig) -> SearchConfig:
    """Returns the configuration without this machine's settings, for another person to run.

    The code of `confirm.evaluate` is not published, so the field is removed.
    """
    confirm = config.confirm and config.confirm.model_copy(update={"evaluate": None})
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"id": model(config.model)}),
            "data": config.data.model_copy(update={"id": source(config.data.id)}),
            "runs_dir": "runs",
            "storage": None,
            "confirm": confirm,
            **{name: SearchConfig.model_fields[name].default for name in OUTPUTS},
        }
    )


def results(content: Results, config: SearchConfig) -> Results:
    """Returns the results of that search, without this machine's paths and names."""
    shown = content.model_copy(deep=True)
    shown.published = shown.served = None
    shown.search = search(config).model_dump(mode="json", by_alias=True)
    if is_local(config.data.id):
        shown.answers = []  # the dataset is private, so its prompts are too
    for trial in shown.runs:
        if trial.error:  # only the error's kind: the rest may name folders, hosts and people
            trial.error = text(trial.error.partition(":")[0])
    for finalist in shown.confirmation.finalists if shown.confirmation else []:
        for run in finalist.runs:
            run.error = None  # the trial's record has it
    return shown
