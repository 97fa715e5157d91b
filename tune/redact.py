"""What may leave this machine: texts, settings and results without its folders.

Used by all that is sent or published. Knows no service.
"""

from __future__ import annotations

import re
from pathlib import Path

from tune.config import HubConfig, SearchConfig, WandbConfig
from tune.records import Results


def text(content: str) -> str:
    """The text with every path that has a folder cut to its last part."""
    return re.sub(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", content)


def is_local(source: str) -> bool:
    """Whether a model's or dataset's id names files of this machine."""
    return source.startswith((".", "/", "~")) or Path(source).exists()


def source(name: str) -> str:
    """A model's or dataset's id; a path is cut to its last part."""
    return Path(name).name if is_local(name) else name


def search(config: SearchConfig) -> SearchConfig:
    """What was searched, without where: as another person would start from it."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"id": source(config.model.id)}),
            "data": config.data.model_copy(update={"id": source(config.data.id)}),
            "runs_dir": "runs",
            "storage": None,
            "wandb": WandbConfig(),
            "hub": HubConfig(),
        }
    )


def results(content: Results, config: SearchConfig) -> Results:
    """The results of that search, without where it ran."""
    trials = [
        trial.model_copy(update={"error": text(trial.error)}) if trial.error else trial
        for trial in content.trials
    ]
    shown = search(config).model_dump(mode="json", by_alias=True)
    return content.model_copy(update={"trials": trials, "search": shown, "published": None})
