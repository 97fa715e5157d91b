"""This is the application on Ray Serve: `serve run serve.app:build model=…`, or a config file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from ray import serve as ray_serve

from serve.instruments import RayInstruments
from serve.model_source import describe_memory, split_models
from serve.options import Options


class ReplicaOptions(Options):
    """Each field is a `name=value` of `serve run`, or one of `args` in a config file."""

    gpus: float = Field(0, ge=0)
    """Each replica gets so many. A fraction shares a GPU."""
    min_replicas: int = Field(1, ge=0)
    """0 gives everything back when nobody asks."""
    max_replicas: int = Field(1, ge=1)
    """Ray Serve adds replicas as requests queue."""

    @model_validator(mode="after")
    def _check_replica_range(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: {self.min_replicas} is more than max_replicas, {self.max_replicas}"
            )
        return self


@ray_serve.deployment(
    max_ongoing_requests=1000,  # the engine's own queue is the bound, and says so with 503
    max_queued_requests=1000,  # of those that come while there is no replica yet
    max_surge_percent=100,  # a new model is loaded before the old one goes
    logging_config={"log_level": "WARNING", "enable_access_log": False},  # a tenth of the time
)
@ray_serve.ingress()
class ModelServer:
    """One replica: the models in memory, and the HTTP application over them."""

    def __init__(self, options: Mapping[str, object]) -> None:
        """`options` are the fields of ReplicaOptions."""
        self._options = ReplicaOptions.model_validate(options)

    def __serve_build_asgi_app__(self) -> Any:
        # Only a replica needs torch, not what builds and deploys the application.
        from serve.compose import compose

        options = self._options
        for line in describe_memory(split_models(options.model), options.slots, options.context):
            logging.getLogger("ray.serve").warning(line)
        self._composed = compose(options, RayInstruments())
        return self._composed.app

    def check_health(self) -> None:
        """Ray Serve asks here, and replaces a replica that raises."""
        if not self._composed.is_alive:
            raise RuntimeError("an engine has ended")


def build(args: Mapping[str, object]) -> ray_serve.Application:
    """Returns the application. `args` are the fields of ReplicaOptions.

    Raises pydantic's ValidationError.
    """
    options = ReplicaOptions.model_validate(args)
    server: Any = ModelServer
    deployment: ray_serve.Application = server.options(
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.slots,
        },
        graceful_shutdown_timeout_s=options.seconds + 10,
    ).bind(options.model_dump())
    return deployment
