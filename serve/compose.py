"""Puts the server together: the models, the API, the metrics and the web page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from fastapi import FastAPI

from serve import api, meters, models, ui
from serve.instruments import Instruments
from serve.model_source import parse_model, split_models
from serve.models import ServedModel
from serve.options import Options, read_key, split_at_commas


@dataclass(frozen=True)
class Composed:
    """An application and its models."""

    app: FastAPI
    models: dict[str, ServedModel]

    def close(self) -> None:
        """Ends the engines after they have finished their answers."""
        for engine in models.engines(self.models):
            engine.close()

    @property
    def is_alive(self) -> bool:
        """Whether all engines run."""
        return all(engine.is_alive for engine in models.engines(self.models))


def compose(options: Options, instruments: Instruments) -> Composed:
    """Loads the models and builds the application over them. Raises ModelError."""
    torch.set_num_threads(max(1, int(options.cpus)))
    names = split_models(options.model)
    loaded = models.load(names, options.slots, options.context, options.queue,
                         options.generation_config == "model")  # fmt: skip
    origins = split_at_commas(options.allowed_origins)
    app = api.create_app(loaded, read_key(), options.seconds, allowed_origins=origins)
    meters.mount(app, loaded, instruments)
    ui.mount(app, list(loaded), options.author, _example_prompts(names[0]))
    return Composed(app, loaded)


def _example_prompts(model: str) -> list[str]:
    """Returns prompts of the test split if the model is the winner of a run folder, else none."""
    folder = Path(parse_model(model)[1]).expanduser()
    results = folder.resolve().parent / "results.json"
    if not folder.is_dir() or not results.is_file():
        return []
    try:
        return [str(answer["prompt"]) for answer in json.loads(results.read_text())["answers"]]
    except (ValueError, KeyError, TypeError):  # another program wrote a file of this name
        return []
