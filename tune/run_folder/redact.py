"""What may leave this machine: texts, settings and results without its folders.

Used by all that is sent or published. Knows no service.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_train.config import ModelConfig
from tune.config.schema import OUTPUTS, SearchConfig
from tune.run_folder.results import Results


def text(content: str) -> str:
    """The text with every path that has a folder cut to its last part."""
    return re.sub(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", content)


def is_local(source: str) -> bool:
    """Whether a model's or dataset's id names files, here or where the search began."""
    if source == "sample":
        return False
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None
    is_file = Path(source).suffix in (".jsonl", ".json", ".csv", ".parquet")
    return not is_id or is_file or source.startswith(".") or Path(source).exists()


def model(config: ModelConfig) -> str:
    """The base model's id; of one that lies in a folder its last part, of the sample `sample`."""
    return Path(config.id).name if is_local_model(config) else config.id


def is_local_model(config: ModelConfig) -> bool:
    """As `is_local`: a search pins the commit of what lies on the Hub."""
    return is_local(config.id) or (config.id != "sample" and config.revision is None)


def source(name: str) -> str:
    """A dataset's id; a path is cut to its last part."""
    return Path(name).name if is_local(name) else name


def search(config: SearchConfig) -> SearchConfig:
    """What was searched, without where: as another person would start from it, who does not have
    the code of `confirm.evaluate`."""
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
    """The results of that search, without where it ran."""
    shown = content.model_copy(deep=True)
    shown.published = shown.served = None
    shown.search = search(config).model_dump(mode="json", by_alias=True)
    if is_local(config.data.id):
        shown.answers = []  # rows of a dataset that others can't read are not told either
    for trial in shown.runs:
        if trial.error:  # of an error its kind: what follows may name folders, hosts and people
            trial.error = text(trial.error.partition(":")[0])
    for finalist in shown.confirmation.finalists if shown.confirmation else []:
        for run in finalist.runs:
            run.error = None  # it is the trial's, and told with it
    return shown
