"""Defines the application on Ray Serve: `serve run serve.app:build model=…`, or a config file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Self

import ray
from pydantic import Field, model_validator
from ray import serve as ray_serve

from serve.errors import ModelError
from serve.instruments import RayInstruments
from serve.model_source import describe_memory, split_models
from serve.options import KEY_FILE, Options, is_loopback, read_key

_HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"


class ReplicaOptions(Options):
    """The options of a deployment: `name=value` of `serve run`, or `args` in a config file."""

    gpus: float = Field(0, ge=0)
    """GPUs of each replica. With a fraction, replicas share a GPU."""
    min_replicas: int = Field(1, ge=0)
    """The fewest replicas. 0 frees all resources while there are no requests."""
    max_replicas: int = Field(1, ge=1)
    """The most replicas. Ray Serve adds some while requests wait."""

    @model_validator(mode="after")
    def _check_replica_range(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: {self.min_replicas} is more than max_replicas, {self.max_replicas}"
            )
        return self


@ray_serve.deployment(
    max_ongoing_requests=1000,  # the engine's queue limits requests, with status 503
    max_queued_requests=1000,  # for requests that come before the first replica is ready
    max_surge_percent=100,  # a new model is loaded before the old one is removed
    # The access log would take a tenth of the time.
    logging_config={"log_level": "WARNING", "enable_access_log": False},
)
@ray_serve.ingress()
class ModelServer:
    """A replica: the models in memory, and the HTTP application over them."""

    def __init__(self, options: Mapping[str, object]) -> None:
        """`options` are the fields of ReplicaOptions."""
        self._options = ReplicaOptions.model_validate(options)

    def __serve_build_asgi_app__(self) -> Any:
        # Only a replica needs torch, not the process that deploys the application.
        from serve.compose import compose

        _refuse_open_proxies()
        options = self._options
        for line in describe_memory(split_models(options.model), options.slots, options.context):
            logging.getLogger("ray.serve").warning(line)
        self._composed = compose(options, RayInstruments())
        return self._composed.app

    def check_health(self) -> None:
        """Raises if an engine has stopped. Ray Serve then replaces the replica."""
        if not self._composed.is_alive:
            raise RuntimeError("an engine has stopped")


def _refuse_open_proxies() -> None:
    """Raises ModelError if other machines can connect and no key is set.

    Each proxy of the cluster listens on the host of the HTTP options. Behind Ray's HAProxy every
    client seems to have this machine's address, so a key is always needed.
    """
    if read_key() is not None:
        return
    if os.environ.get(_HA_PROXY) == "1":
        raise ModelError(f"{_HA_PROXY} is 1, and there is no key; set {KEY_FILE}")
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    host = ray.get(controller.get_http_config.remote()).host
    if host is not None and not is_loopback(host):
        raise ModelError(
            f"http_options.host: {host} is open to others, and there is no key; set {KEY_FILE} "
            "in the environment in which Ray is started, or write host: 127.0.0.1"
        )


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
