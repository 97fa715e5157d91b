"""The configuration of a search: a trial's, with what is varied, how, and on what."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dpo_train.config import TrainConfig
from dpo_train.config_base import Part, override, parse
from dpo_train.config_faults import one_of, shown
from dpo_train.config_fields import Allowed
from dpo_train.errors import InputError
from dpo_train.scoring.metrics import objectives
from dpo_train.storage import mirror
from tune.config.objective import Bound, Objective
from tune.config.outputs import HubConfig, ServeConfig, WandbConfig
from tune.config.places import runs_dir
from tune.config.space import Axis, Point, PointKey, grid, untried_point

_MOST_PAIRS = 10**9


def _one(name: str) -> str:
    if name not in objectives():
        raise ValueError(one_of(name, list(objectives())))
    return name


def _one_or_two(value: Any) -> Any:
    names = list(value) if isinstance(value, list | tuple) else [value]
    for name in names:
        if name not in list(objectives()):
            raise ValueError(one_of(name, list(objectives())))
    if isinstance(value, str) or (len(names) == 2 and names[0] != names[1]):
        return value
    raise ValueError(
        f"must be one metric or two different ones, not {shown(value)}; type `eval/accuracy` or "
        "`[eval/accuracy, eval/drift]`"
    )


MetricName = Annotated[str, AfterValidator(_one)]


@dataclass(frozen=True)
class EarlierPoints:
    """`{from: RUN, best: 5}`: the best points of an earlier search that lie in this one's space."""

    run: str
    """The earlier run's folder, name or URL."""
    best: int = 5
    """How many at most."""


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
    name: Literal["tpe", "cmaes", "gp", "random", "grid"] = "tpe"
    """Optuna's sampler, or `grid`: all points, one after the other."""
    seed: int = Field(0, ge=0, lt=2**31)
    """With `resources.at_once: 1` on a CPU the same seed proposes the same trials again; with
    more at once the order in which trials end decides too."""


class StoppingConfig(Part):
    name: Literal["asha", "median", "none"] = "asha"
    """How weak trials are found: asynchronous successive halving (arXiv:1810.05934), the median
    of the others' running means, or not at all."""
    metric: MetricName = "eval/nll"
    """What is compared: smoother than the objective, so that fewer are stopped by noise. With two
    objectives ASHA compares pairs: this in place of the first, and the second."""
    grace_pairs: int = Field(64, ge=1, le=10**9)
    """No trial is stopped before; ASHA's first rung."""
    reduction: int = Field(3, ge=2)
    """At each rung one in so many goes on; rungs lie at grace_pairs times its powers."""
    brackets: int = Field(1, ge=1)
    """With several, some trials start at later rungs."""

    def rungs(self, pairs: int) -> list[int]:
        """Where trials are compared, up to so many pairs; of the median rule where it begins."""
        if self.name == "median":
            return [self.grace_pairs]
        return [rung for rung in self.evaluations() if rung <= pairs] if self.name == "asha" else []

    def evaluations(self) -> list[int]:
        """The pairs at which trials are evaluated unless the YAML says otherwise: where ASHA's
        rungs lie or would lie."""
        rungs = [self.grace_pairs]
        while rungs[-1] < _MOST_PAIRS:
            rungs.append(rungs[-1] * self.reduction)
        return rungs


class ResourcesConfig(Part):
    cpus: float = Field(1, gt=0, le=1024)
    """CPUs of one trial; by default 1, and 1/4 under `trainer: packed`: eight trials in a step
    gain a seventh over four, and each costs a process (benchmarks/RESULTS.md)."""
    gpus: float = Field(0, ge=0)
    """GPUs of one trial: 0, a fraction, 1, or several, which train it together."""
    sharded: bool = False
    """With several: weights, gradients and optimizer are shared out among them (FSDP2), for a model
    that one GPU does not hold. Else each has a copy and the gradients are averaged (DDP)."""
    at_once: int | None = Field(None, ge=1, examples=[4])
    """Most trials at once; as many as fit by default. A cluster that grows on demand is asked for
    the places of so many from the start."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus: {self.gpus:g} for one trial; several must be a whole number")
        if self.sharded and self.gpus <= 1:
            raise ValueError("sharded: needs several GPUs a trial; type `gpus: 2`")
        return self

    @property
    def members(self) -> int:
        """Processes that train one trial."""
        return max(1, int(self.gpus))


class BudgetConfig(Part):
    hours: float | None = Field(None, gt=0, le=100_000, examples=[8])
    """Wall-clock hours of the search, all its driver sessions together."""
    failures_in_a_row: int = Field(5, ge=1)
    """After so many failed trials without one that did not, the search stops."""


class ConfirmConfig(Part):
    finalists: int = Field(2, ge=1, le=1000)
    """How many of the best configurations are trained again. Two by two did best where it was
    measured (benchmarks/RESULTS.md). With two objectives they come from the front, the best in the
    first one before the others, and where it has fewer, from the next front."""
    seeds: int = Field(2, ge=1, le=1000)
    """How often each, with other seeds than the search's."""
    evaluate: Annotated[str | None, Allowed("package.module:function")] = Field(
        None, pattern=r"^[\w.]+:\w+$", examples=["my_package.judge:score"]
    )
    """package.module:function of your own: takes the folder of a finalist's best run, as `winner/`
    is one, and returns its numbers by name, which are shown. Called once for each finalist."""


class SearchConfig(TrainConfig):
    """One experiment: what `dpo-tune run` reads. Has all that a trial's YAML has."""

    name: Annotated[str, Allowed("letters, digits, `.`, `_`, `-`, the first no mark")] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["first-try"]
    )
    """Names the run folder."""
    runs_dir: str = Field(default_factory=runs_dir)
    """Where run folders and prepared data stand: a path that every node of a cluster sees, or a
    URL like s3://bucket/runs. By default what DPO_TUNE_RUNS says, or `runs`."""
    space: dict[str, Axis] = Field({}, examples=[{"dpo.beta": {"uniform": [0.1, 0.5]}}])
    """Dotted paths into the trial's config, and what each may be."""
    points: Annotated[list[Point] | EarlierPoints, BeforeValidator(_earlier_or_list)] = []
    """Tried first; axes left out are drawn. Or `{from: runs/earlier, best: 5}`, the points of an
    earlier search's best trials that lie in this space."""
    trials: int | None = Field(None, ge=1, le=1_000_000, examples=[24])
    """How many; a grid is tried whole by default."""
    repeat_points: bool = False
    """Whether a point that a trial has already may be proposed and trained again, though the same
    seed gives the same numbers. Listed points and clones are trained as often as you ask."""
    objective: Annotated[str | tuple[str, str], BeforeValidator(_one_or_two)] = "eval/accuracy"
    """By which the winner is picked, as docs/trust.md says: not simply the largest number. Or
    two, like `[eval/accuracy, eval/drift]`: then the search is for their Pareto front, on which a
    trial stands by its report that is the best in the first."""
    constraints: dict[MetricName, Bound] = {}
    """Bounds that the winner must keep, like `{eval/drift: {at_most: 1.5}}`."""
    confirm: ConfirmConfig | None = None
    """Trains the best again with other seeds before one is the winner; null goes by the search."""
    sampler: SamplerConfig = SamplerConfig()
    """What proposes the trials."""
    stopping: StoppingConfig = StoppingConfig()
    """What stops the weak ones."""
    resources: ResourcesConfig = ResourcesConfig()
    """Of one trial."""
    budget: BudgetConfig = BudgetConfig()
    """When one is spent no trial starts and running ones stop at their next step."""
    keep_best: int = Field(3, ge=1, le=1000)
    """How many trials' exported weights stay on disk; with two objectives in the finalists'
    order."""
    storage: str | None = Field(None, examples=["sqlite:///runs/studies.db"])
    """Where Optuna's study is kept for Optuna's own tools: a database's URL, or the path of a
    journal file. In memory by default; the search itself needs none."""
    save_every_minutes: float = Field(10, ge=0)
    """How much work a killed search may lose; 0 saves after every report."""
    wandb: WandbConfig = WandbConfig()
    """What Weights & Biases is told, if anything."""
    tensorboard: bool = False
    """Whether TensorBoard's event files are written to `tensorboard/` in the run folder."""
    hub: HubConfig = HubConfig()
    """Where the winner is published, if anywhere."""
    serve: ServeConfig = ServeConfig()
    """Whether the winner answers when the search has ended."""

    @model_validator(mode="before")
    @classmethod
    def _by_what_is_asked(cls, content: Any) -> Any:
        """What follows from other fields, unless the YAML says it: packed trials share a CPU, and
        the frozen base of a LoRA is bfloat16 on a GPU."""
        if not isinstance(content, dict):
            return content
        resources, model = content.get("resources") or {}, content.get("model") or {}
        if not isinstance(resources, dict) or not isinstance(model, dict):
            return content
        space = content.get("space")
        is_axis = isinstance(space, dict) and "lora" in space  # with null, all weights
        if content.get("lora") is not None and resources.get("gpus") and not is_axis:
            content = {**content, "model": {"dtype": "bfloat16", **model}}
        if content.get("trainer") == "packed":
            content = {**content, "resources": {"cpus": 0.25, **resources}}
        return content

    @property
    def folder(self) -> Path:
        return mirror.local(self.runs_dir) / self.name

    @property
    def prepared_root(self) -> Path:
        """Shared by all searches of a folder, so that a second one computes nothing."""
        return mirror.local(self.runs_dir) / ".prepared"

    @property
    def device(self) -> str:
        return "cuda" if self.resources.gpus else "cpu"

    @property
    def goal(self) -> Objective:
        """The objective, or the two, with which way is better."""
        return Objective.of(self.objective, self.constraints)

    @property
    def given_points(self) -> list[Point]:
        """The list in `points`; empty while those of an earlier search are not read yet."""
        return self.points if isinstance(self.points, list) else []

    @property
    def first_points(self) -> list[Point]:
        """The user's own, then the whole of a grid."""
        given = self.given_points
        rest = grid(self.space) if self.sampler.name == "grid" else []
        return given + [point for point in rest if point not in given]

    @property
    def total_trials(self) -> int:
        return self.trials or len(self.first_points)

    def untried_point(self, tried: Collection[PointKey]) -> Point | None:
        """A random point of the space that is not among those tried; None if every point was."""
        return untried_point(self.space, tried, random.Random(self.sampler.seed + len(tried)))

    @property
    def exports_kept(self) -> int:
        """How many configurations' weights stay on disk while a search goes on."""
        return max(self.keep_best, self.confirm.finalists if self.confirm else 0)

    @property
    def total_runs(self) -> int:
        """The trials, and the finalists' with other seeds."""
        if self.confirm is None:
            return self.total_trials
        finalists = min(self.confirm.finalists, self.total_trials)
        return self.total_trials + finalists * self.confirm.seeds

    @property
    def optimizers(self) -> set[str]:
        """All that a trial of this search may have."""
        axis = self.space.get("optim.name")
        return set(axis.corners) if axis else {self.optim.name}

    @property
    def most_epochs(self) -> int:
        axis = self.space.get("optim.epochs")
        return max(axis.corners) if axis else self.optim.epochs

    def trial(self, point: Point) -> TrainConfig:
        """The config of one trial. Raises InputError where a combination is impossible."""
        trial = override(self.base_trial(), point)
        if trial.optim.batch_size % self.resources.members:
            raise InputError(
                f"optim.batch_size: {trial.optim.batch_size} pairs can't be shared out among the "
                f"{self.resources.gpus:g} GPUs of a trial; give multiples of that, "
                f"like `{{choice: [{self.resources.members}, {2 * self.resources.members}]}}`"
            )
        return trial

    def base_trial(self) -> TrainConfig:
        content = {name: getattr(self, name) for name in _TRIAL_FIELDS}
        if self.eval_every_pairs is None and not self.eval_at_pairs:
            content["eval_at_pairs"] = self.stopping.evaluations()
        return parse(TrainConfig, content, {}, self.name)


_TRIAL_FIELDS = tuple(TrainConfig.model_fields)
OUTPUTS = ("wandb", "tensorboard", "hub", "serve")
"""The fields that say where results go, and nothing of the trials themselves."""
