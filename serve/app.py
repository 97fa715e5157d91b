"""The application on Ray Serve: for `serve run serve.app:build model=…`, for config files, and for
`python -m serve`, which is the same with a command line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve

from serve.places import parse, split

KEY, KEY_FILE = "SERVE_API_KEY", "SERVE_API_KEY_FILE"
"""Environment variables: the key, or a file whose first line it is."""


class Options(BaseModel):
    """What is served and how; each field is a `name=value` of `serve run` or a config file."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A folder, a Hub id or an adapter; several apart by commas, each perhaps as NAME=PLACE."""
    slots: int = Field(16, ge=1)
    """Answers that are made at once by a replica."""
    context: int = Field(2048, ge=16)
    """Tokens of a prompt and its answer together."""
    queue: int = Field(128, ge=1)
    """Requests that may wait in a replica; more are answered 503."""
    seconds: float = Field(120, gt=0)
    """For one request; then it ends with what there is."""
    author: str = ""
    """Stands at the foot of the page."""
    cpus: float = Field(1, gt=0)
    """Of a replica."""
    gpus: float = Field(0, ge=0)
    """Of a replica; a fraction shares one."""
    min_replicas: int = Field(1, ge=0)
    """0 gives everything back when nobody asks."""
    max_replicas: int = Field(1, ge=1)
    """Ray Serve adds replicas as requests queue. The page needs one process: above 1 there is
    none."""


@ray_serve.deployment(
    max_ongoing_requests=1000,  # the engine's own queue is the bound, and says so with 503
    graceful_shutdown_timeout_s=130,  # a request may take 120
    max_surge_percent=100,  # a new model is loaded before the old one goes
    logging_config={"log_level": "WARNING", "enable_access_log": False},  # a tenth of the time
)
@ray_serve.ingress()
class ModelServer:
    """One replica: the models in memory, and the HTTP application over them."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = Options(**options)

    def __serve_build_asgi_app__(self) -> Any:
        import torch

        from serve import api, models

        options = self._options
        torch.set_num_threads(max(1, int(options.cpus)))
        places = split(options.model)
        self._models = models.load(places, options.slots, options.context, options.queue)
        limits = api.Limits(seconds=options.seconds)
        app = api.create_app(self._models, limits, read_key())
        if options.max_replicas > 1:
            return app
        from serve import ui

        return ui.mount(app, self._models, limits, options.author, _examples(places[0]))


def build(args: dict[str, Any]) -> ray_serve.Application:
    """The application; `args` are the fields of Options. Raises pydantic's ValidationError."""
    options = Options(**args)
    server: Any = ModelServer
    deployment: ray_serve.Application = server.options(
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.slots,
        },
    ).bind(options.model_dump())
    return deployment


def read_key() -> str | None:
    """The key that requests must bring, if one is set. Raises OSError, and ValueError if it is
    empty: that is no key, but a mistake."""
    if path := os.environ.get(KEY_FILE):
        key = Path(path).read_text().partition("\n")[0].strip()
    else:
        given = os.environ.get(KEY)
        if given is None:
            return None
        key = given.strip()
    if not key:
        raise ValueError(f"{KEY_FILE if path else KEY} is set and holds no key")
    return key


def _examples(place: str) -> list[str]:
    """Prompts of the test split, where the model is the winner of a run folder."""
    results = Path(parse(place)[1]).expanduser().resolve().parent / "results.json"
    if not results.is_file():
        return []
    return [answer["prompt"] for answer in json.loads(results.read_text()).get("answers", [])]
