"""The Optuna study of a search: proposes points, and is told the truth about each ending.

It is made from the records and can be thrown away. One in a storage is for Optuna's own tools.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import optuna
from optuna.storages import BaseStorage

from dpo_train.errors import one_line
from tune.config.objective import Report
from tune.config.schema import SearchConfig
from tune.config.space import Point, point_key, suggest, to_optuna
from tune.run_folder.optuna_states import OPTUNA_STATES
from tune.run_folder.records import ENDED, STATES, Records, TrialRecord
from tune.search.study_storage import open_storage
from tune.search.tpe import WindowedTPE

T = TypeVar("T")

_FAR_BEYOND = 1e9
"""In place of an infinite excess, with which no sampler can count."""

_TRIES = 5
"""How often the sampler is asked for a point that no trial has, before the trial gets a random one.
Over 120 points TPE found 59 new ones for 60 trials in 93 proposals (the mean of 12 searches)."""


class SearchStudy:
    """Speaks of trials by our ids. What it is told stands in the records before."""

    def __init__(self, config: SearchConfig, records: Records) -> None:
        self._config = config
        self._records = records
        self._open: dict[str, optuna.Trial] = {}
        self._storage: BaseStorage | None = None
        try:
            self._build(open_storage(config.storage))
        except Exception as error:  # each database driver has errors of its own
            if config.storage is None:
                raise
            self._leave_storage(error)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All that Optuna knows."""
        return self._study.trials

    def ask(self, trial_id: str, point: Point | None = None) -> Point:
        """The sampler's next point; axes that `point` names have its values."""

        def ask() -> Point:
            if point is not None:
                self._enqueue(point)
            trial, proposed = self._ask(trial_id)
            self._open[trial_id] = trial
            return proposed

        return self._twice_if_lost(ask)

    def ask_new(self, trial_id: str, untried: Point) -> Point:
        """The sampler's next point that no trial has.

        Where it proposes a point that a trial has, it is told what is known of that trial and asked
        again. A sampler that is sure of its optimum may propose that for ever, so after a few tries
        the trial gets `untried`.
        """
        for _ in range(_TRIES):
            point = self.ask(trial_id)
            twin = self._trial_with(point)
            if twin is None:
                return point
            self._tell_repeated(trial_id, twin)
        return self.ask(trial_id, untried)

    def ask_again(self, record: TrialRecord) -> None:
        """Opens a trial whose point is known: of an earlier driver session, or a clone."""
        if record.id not in self._open:
            self._open[record.id] = self._twice_if_lost(lambda: self._reopened(record))

    def report(self, trial_id: str, report: Report) -> None:
        with self._leaving_a_lost_storage():
            for pairs_seen, value in _intermediate([report], self._config).items():
                self._open[trial_id].report(value, pairs_seen)

    def tell(self, record: TrialRecord) -> None:
        """How a trial ended. One that has not, though Tune let go of it, is opened again later."""
        trial = self._open.pop(record.id, None)
        if trial is None or record.state not in ENDED:
            return
        with self._leaving_a_lost_storage():
            for metric, excess in _excesses(record, self._config).items():
                trial.set_constraint(metric, excess)
            self._study.tell(trial, _values(record, self._config), OPTUNA_STATES[record.state])

    def _trial_with(self, point: Point) -> TrialRecord | None:
        """The trial that has this point; of several the one of which most is known."""
        found = self._records.standings.points.get(point_key(point), [])
        twins = [self._records.trials[trial_id] for trial_id in found]
        return min(twins, key=lambda record: STATES.index(record.state), default=None)

    def _tell_repeated(self, trial_id: str, twin: TrialRecord) -> None:
        """Answers a proposal that repeats a trial with that trial's reports and end.

        Of one that still runs nothing is known yet. The proposal then counts as failed, which no
        sampler learns from.
        """
        trial = self._open.pop(trial_id)
        state = OPTUNA_STATES[twin.state if twin.state in ENDED else "failed"]
        with self._leaving_a_lost_storage():
            trial.set_user_attr("trial", twin.id)
            for pairs_seen, value in _intermediate(twin.curve, self._config).items():
                trial.report(value, pairs_seen)
            for metric, excess in _excesses(twin, self._config).items():
                trial.set_constraint(metric, excess)
            self._study.tell(trial, _values(twin, self._config), state)

    def _build(self, storage: BaseStorage | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage
        name = self._records.study_name
        if storage and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[
                "maximize" if part.mode == "max" else "minimize" for part in self._config.goal.parts
            ],
            sampler=make_sampler(self._config, len(self._records.searched)),
        )
        with warnings.catch_warnings():
            # Marked experimental since years; a test holds it.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([part.metric for part in self._config.goal.parts])
        for record in self._records.searched:
            if record.state in ENDED:
                self._study.add_trial(_frozen(record, self._config))
        for trial_id in self._open:
            self._open[trial_id] = self._reopened(self._records.trials[trial_id])

    def _reopened(self, record: TrialRecord) -> optuna.Trial:
        self._enqueue(record.config)
        trial, _ = self._ask(record.id)
        for pairs_seen, value in _intermediate(record.curve, self._config).items():
            trial.report(value, pairs_seen)
        return trial

    def _enqueue(self, point: Point) -> None:
        self._study.enqueue_trial({path: to_optuna(value) for path, value in point.items()})

    def _ask(self, trial_id: str) -> tuple[optuna.Trial, Point]:
        trial = self._study.ask()
        trial.set_user_attr("trial", trial_id)
        return trial, suggest(trial, self._config.space)

    @contextlib.contextmanager
    def _leaving_a_lost_storage(self) -> Iterator[None]:
        """A database that is gone does not end a search: the study goes on in memory."""
        try:
            yield
        except Exception as error:  # each database driver has errors of its own
            if self._storage is None:
                raise
            self._leave_storage(error)

    def _leave_storage(self, error: Exception) -> None:
        print(
            f"warning: storage {self._config.storage!r} failed ({type(error).__name__}: "
            f"{one_line(error)}); the search goes on without it",
            flush=True,
        )
        self._build(None)

    def _twice_if_lost(self, ask: Callable[[], T]) -> T:
        with self._leaving_a_lost_storage():
            return ask()
        return ask()


def make_sampler(config: SearchConfig, trials_before: int) -> optuna.samplers.BaseSampler:
    # A later driver session must not draw the first one's numbers again.
    seed = config.sampler.seed + 7919 * trials_before
    with warnings.catch_warnings():
        # `group` and GP are marked experimental since years; both are tested here.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.sampler.name:
            case "tpe":
                return WindowedTPE(seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case _:
                return optuna.samplers.RandomSampler(seed=seed)


def _frozen(record: TrialRecord, config: SearchConfig) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=OPTUNA_STATES[record.state],
        values=_values(record, config),
        user_attrs={"trial": record.id},
        params={path: to_optuna(value) for path, value in record.config.items()},
        distributions={path: config.space[path].distribution() for path in record.config},
        intermediate_values=_intermediate(record.curve, config),
        constraints=_excesses(record, config),
    )


def _values(record: TrialRecord, config: SearchConfig) -> list[float] | None:
    """Of a trial that trained all its pairs; what a stopped one reached is no such value."""
    if record.state != "finished":
        return None
    return [record.metrics[part.metric] for part in config.goal.parts]


def _excesses(record: TrialRecord, config: SearchConfig) -> dict[str, float]:
    """By how much the best report of an ended trial lies beyond each bound, as Optuna takes it: 0
    or less within. Empty where nothing was measured, which Optuna takes as beyond."""
    if not record.metrics or record.state not in ENDED:
        return {}
    return {
        metric: min(excess, _FAR_BEYOND)
        for metric, excess in config.goal.excesses(record.metrics).items()
    }


def _intermediate(curve: Sequence[Report], config: SearchConfig) -> dict[int, float]:
    """The objective by pairs_seen; empty with two, of which Optuna takes none.

    A stopped trial is PRUNED all the same. TPE then counts it and puts its point with the bad ones,
    behind all COMPLETE ones (optuna 5.0, `_split_trials`), where with one objective the values
    would only rank the stopped among themselves; one that has some raises there. COMPLETE with what
    it had would be wrong: drift grows with training, so whoever is stopped early would lie on the
    front by it. GP reads COMPLETE trials alone, with one objective too.
    """
    if config.goal.second:
        return {}
    return {int(report["pairs_seen"]): report[config.goal.metric] for report in curve}
