"""The configuration of a search: that of a trial, and what is searched, how, and on what."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpo_train.config import TrainConfig
from dpo_train.config_base import Part, override, parse
from dpo_train.config_faults import shown
from dpo_train.config_fields import Allowed
from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.config.defaults import with_defaults
from tune.config.objective import Bound, MetricName, Objective, OneOrTwoMetrics
from tune.config.outputs import HubConfig, ServeConfig, WandbConfig
from tune.config.places import runs_dir
from tune.config.space import Axis, Point, PointKey, grid, untried_point

_MOST_PAIRS = 10**9


@dataclass(frozen=True)
class EarlierPoints:
    """`{from: RUN, best: 5}`: the best points of an earlier search that lie in this one's space."""

    run: str
    """The earlier run's folder, name or URL."""
    best: int = 5
    """The most points to take from it."""


def _earlier_or_list(value: Any) -> Any:
    if isinstance(value, EarlierPoints):
        return value
    if isinstance(value, list):
        for number, point in enumerate(value):
            if not isinstance(point, dict):
                raise ValueError(
                    f"point {number} is {shown(point)}; type it like `{{dpo.beta: 0.1}}`"
                )
        return value
    known = isinstance(value, dict) and "from" in value and not set(value) - {"from", "best"}
    best = value.get("best", 5) if known else None
    if not isinstance(best, int) or isinstance(best, bool) or best < 1:
        raise ValueError(
            f"must be a list of points, not {shown(value)}; type `[{{dpo.beta: 0.1}}]`, or "
            "`{from: runs/earlier, best: 5}` for the best of an earlier search"
        )
    return EarlierPoints(str(value["from"]), best)


class SamplerConfig(Part):
    """How points are proposed."""

    name: Literal["tpe", "cmaes", "gp", "random", "grid"] = "tpe"
    """Optuna's sampler, or `grid`, which tries all points of the space in order."""
    seed: int = Field(0, ge=0, lt=2**31)
    """The sampler's seed. With `resources.at_once: 1` on a CPU the same seed proposes the same
    trials again; with more at once, the order in which trials end decides too."""


class StoppingConfig(Part):
    """How weak trials are stopped early."""

    name: Literal["asha", "median", "none"] = "asha"
    """The rule: asynchronous successive halving (`asha`, arXiv:1810.05934), the median of the other
    trials' running means (`median`), or `none`."""
    metric: MetricName = "eval/nll"
    """The metric that the rule compares. The default is smoother than the objective, so that noise
    stops fewer trials. With two objectives ASHA compares this metric and the second objective."""
    grace_pairs: int = Field(64, ge=1, le=10**9)
    """Pairs before which no trial is stopped. This is ASHA's first rung."""
    reduction: int = Field(3, ge=2)
    """One in this many trials goes on at each rung. Rungs are at grace_pairs × reduction^n."""
    brackets: int = Field(1, ge=1)
    """ASHA's brackets. With several, some trials are first compared at a later rung."""

    def rungs(self, pairs: int) -> list[int]:
        """Return the pair counts, up to `pairs`, at which trials are compared; for the median rule
        only its first."""
        if self.name == "median":
            return [self.grace_pairs]
        return [rung for rung in self.evaluations() if rung <= pairs] if self.name == "asha" else []

    def evaluations(self) -> list[int]:
        """Return the pair counts at which trials are evaluated by default: ASHA's rungs, whether or
        not ASHA is the rule."""
        rungs = [self.grace_pairs]
        while rungs[-1] < _MOST_PAIRS:
            rungs.append(rungs[-1] * self.reduction)
        return rungs


class ResourcesConfig(Part):
    """What one trial runs on, and how many trials run at once."""

    cpus: float = Field(1, gt=0, le=1024)
    """CPUs of one trial. By default 1, or 1/4 with `trainer: packed`: eight trials in a step are
    only 1/7 faster than four, and each needs a process (benchmarks/RESULTS.md)."""
    gpus: float = Field(0, ge=0)
    """GPUs of one trial: 0, a fraction, 1, or several that train it together."""
    sharded: bool = False
    """Whether several GPUs split weights, gradients and optimizer among them (FSDP2), for a model
    that one GPU can't hold. By default each has a copy and gradients are averaged (DDP)."""
    at_once: int | None = Field(None, ge=1, examples=[4])
    """The most trials that run at once; by default as many as fit. A cluster that grows on demand
    is asked for this many slots from the start."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus: {self.gpus:g} is above 1, so it must be a whole number")
        if self.sharded and self.gpus <= 1:
            raise ValueError("sharded: it needs several GPUs per trial; type `gpus: 2`")
        return self

    @property
    def members(self) -> int:
        """How many processes train one trial."""
        return max(1, int(self.gpus))


class BudgetConfig(Part):
    """The limits of a search."""

    hours: float | None = Field(None, gt=0, le=100_000, examples=[8])
    """Wall-clock hours of the search, summed over its driver sessions. By default no limit."""
    failures_in_a_row: int = Field(5, ge=1)
    """The search stops after this many failed trials in a row."""


class ConfirmConfig(Part):
    """How the best configurations are trained again before one wins."""

    finalists: int = Field(2, ge=1, le=1000)
    """How many configurations are trained again. Two finalists with two seeds did best in our
    measurements (benchmarks/RESULTS.md). With two objectives they come from the Pareto front,
    ordered by the first objective, then from the next front."""
    seeds: int = Field(2, ge=1, le=1000)
    """How many new seeds each finalist is trained with. The mean over them decides."""
    evaluate: Annotated[str | None, Allowed("package.module:function")] = Field(
        None, pattern=r"^\w+(\.\w+)*:\w+$", examples=["my_package.judge:score"]
    )
    """Your own function, as package.module:function. It is called once per finalist with the folder
    of its best run (like `winner/`), and returns numbers by name, which are shown."""


class SearchConfig(TrainConfig):
    """One search, as `dpo-tune run` reads it. It also has every field of a trial's YAML."""

    name: Annotated[str, Allowed("letters, digits, `.`, `_`, `-`, no sign first")] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["first-try"]
    )
    """Name of the run folder. By default the name of the YAML file."""
    runs_dir: str = Field(default_factory=runs_dir)
    """The folder of run folders and prepared data: a path that every node of a cluster sees, or a
    URL like s3://bucket/runs. By default the value of DPO_TUNE_RUNS, or `runs`."""
    space: dict[str, Axis] = Field({}, examples=[{"dpo.beta": {"uniform": [0.1, 0.5]}}])
    """What is searched: dotted paths of a trial's fields, and the values that each may have."""
    points: Annotated[list[Point] | EarlierPoints, BeforeValidator(_earlier_or_list)] = []
    """Points that are tried first; axes that a point leaves out are drawn. Or
    `{from: runs/earlier, best: 5}`: an earlier search's best points that lie in this space."""
    trials: int | None = Field(None, ge=1, le=1_000_000, examples=[24])
    """How many trials to run. By default a grid is tried whole; other samplers need a number."""
    repeat_points: bool = False
    """Whether a point that a trial already has may be proposed again, though the same seed gives
    the same numbers. Listed points and clones are trained as often as you ask."""
    objective: OneOrTwoMetrics = "eval/accuracy"
    """The metric that decides the winner, by the rule of docs/trust.md: not simply the largest
    number. With two, like `[eval/accuracy, eval/drift]`, the search is for their Pareto front, and
    each trial's report that is best in the first metric counts."""
    constraints: dict[MetricName, Bound] = {}
    """Bounds that the winner must keep, like `{eval/drift: {at_most: 1.5}}`."""
    confirm: ConfirmConfig | None = None
    """Trains the best configurations again with other seeds before one wins. Null skips this."""
    sampler: SamplerConfig = SamplerConfig()
    """How points are proposed."""
    stopping: StoppingConfig = StoppingConfig()
    """How weak trials are stopped early."""
    resources: ResourcesConfig = ResourcesConfig()
    """What one trial runs on, and how many run at once."""
    budget: BudgetConfig = BudgetConfig()
    """Limits of the search. At a limit no trial starts, and running ones stop at the next step."""
    keep_best: int = Field(3, ge=1, le=1000)
    """How many trials keep their exported weights on disk: the best ones, with two objectives in
    the order of the finalists."""
    storage: str | None = Field(None, examples=["sqlite:///runs/studies.db"])
    """Where Optuna's study is kept for Optuna's own tools: a database URL, or the path of a journal
    file. By default it is only in memory; the search itself does not need it."""
    save_every_minutes: float = Field(10, ge=0)
    """Minutes of work that a killed search may lose. 0 saves after every report."""
    wandb: WandbConfig = WandbConfig()
    """What is sent to Weights & Biases."""
    tensorboard: bool = False
    """Whether TensorBoard's event files are written to `tensorboard/` in the run folder."""
    hub: HubConfig = HubConfig()
    """Whether and where the winner is published on the Hugging Face Hub."""
    serve: ServeConfig = ServeConfig()
    """Whether the winner is served when the search has ended."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, content: Any) -> Any:
        return with_defaults(content)

    @property
    def folder(self) -> Path:
        """The run folder on this machine."""
        return mirror.local(self.runs_dir) / self.name

    @property
    def prepared_root(self) -> Path:
        """The folder of prepared data. All searches of a runs folder share it."""
        return mirror.local(self.runs_dir) / ".prepared"

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.resources.gpus else "cpu"

    @property
    def goal(self) -> Objective:
        """The objective or objectives, with their modes and bounds."""
        return Objective.of(self.objective, self.constraints)

    @property
    def given_points(self) -> list[Point]:
        """The points listed in `points`; empty while those of an earlier search are not read."""
        return self.points if isinstance(self.points, list) else []

    @property
    def first_points(self) -> list[Point]:
        """The listed points, then all other points of a grid."""
        given = self.given_points
        rest = grid(self.space) if self.sampler.name == "grid" else []
        return given + [point for point in rest if point not in given]

    @property
    def total_trials(self) -> int:
        """The trials of the search, without confirmations."""
        return self.trials or len(self.first_points)

    def untried_point(self, tried: Collection[PointKey]) -> Point | None:
        """Return a random point of the space that was not tried; None if all were."""
        return untried_point(self.space, tried, random.Random(self.sampler.seed + len(tried)))

    @property
    def exports_kept(self) -> int:
        """How many configurations keep their weights on disk while the search runs."""
        return max(self.keep_best, self.confirm.finalists if self.confirm else 0)

    @property
    def total_runs(self) -> int:
        """The trials and the confirmations, which train finalists again with other seeds."""
        if self.confirm is None:
            return self.total_trials
        finalists = min(self.confirm.finalists, self.total_trials)
        return self.total_trials + finalists * self.confirm.seeds

    @property
    def optimizers(self) -> set[str]:
        """The optimizers that a trial of this search may use."""
        axis = self.space.get("optim.name")
        return set(axis.corners) if axis else {self.optim.name}

    @property
    def most_epochs(self) -> int:
        """The most epochs of a trial of this search."""
        axis = self.space.get("optim.epochs")
        return max(axis.corners) if axis else self.optim.epochs

    def trial(self, point: Point) -> TrainConfig:
        """Return the config of the trial at a point. Raises InputError for impossible values."""
        trial = override(self.base_trial(), point)
        if trial.optim.batch_size % self.resources.members:
            raise InputError(
                f"optim.batch_size: {trial.optim.batch_size} pairs can't be split evenly among the "
                f"{self.resources.gpus:g} GPUs of a trial; give multiples of that number, "
                f"like `{{choice: [{self.resources.members}, {2 * self.resources.members}]}}`"
            )
        return trial

    def base_trial(self) -> TrainConfig:
        """Return the config of a trial without the values of the axes."""
        content = {name: getattr(self, name) for name in _TRIAL_FIELDS}
        if self.eval_every_pairs is None and not self.eval_at_pairs:
            content["eval_at_pairs"] = self.stopping.evaluations()
        return parse(TrainConfig, content, {}, self.name)


_TRIAL_FIELDS = tuple(TrainConfig.model_fields)
OUTPUTS = ("wandb", "tensorboard", "hub", "serve")
"""The fields that decide where results go and nothing about the trials."""
