"""The Optuna study of a search: it proposes points, and learns how each trial ended.

It is made from the records and can be thrown away. A study in a storage is for Optuna's own tools.
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
from tune.run_folder.records import Records
from tune.run_folder.trial_record import ENDED, STATES, TrialRecord
from tune.search.study_storage import open_storage
from tune.search.tpe import WindowedTPE

T = TypeVar("T")

_FAR_BEYOND = 1e9
"""Replaces an infinite excess, with which no sampler can compute."""

_TRIES = 5
"""How many proposals may repeat a trial's point before the new trial gets a random point. In a
space of 120 points TPE made 93 proposals for 60 trials, 59 of them new (mean of 12 searches)."""


class SearchStudy:
    """The study of a search. It names trials by our ids, and learns only what is in the records."""

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
        """All trials that Optuna knows."""
        return self._study.trials

    def ask(self, trial_id: str, point: Point | None = None) -> Point:
        """Return the sampler's next point. Axes that `point` names get its values."""

        def ask() -> Point:
            if point is not None:
                self._enqueue(point)
            trial, proposed = self._ask(trial_id)
            self._open[trial_id] = trial
            return proposed

        return self._twice_if_lost(ask)

    def ask_new(self, trial_id: str, untried: Point) -> Point:
        """Return the sampler's next point that no trial has.

        If the sampler proposes a point that a trial has, it learns that trial's results and is
        asked again. A sampler that is sure of its optimum could repeat it for ever, so after a few
        tries we return `untried`.
        """
        for _ in range(_TRIES):
            point = self.ask(trial_id)
            twin = self._trial_with(point)
            if twin is None:
                return point
            self._tell_repeated(trial_id, twin)
        return self.ask(trial_id, untried)

    def ask_again(self, record: TrialRecord) -> None:
        """Open a trial whose point is known: a clone, or a trial of an earlier driver session."""
        if record.id not in self._open:
            self._open[record.id] = self._twice_if_lost(lambda: self._reopened(record))

    def report(self, trial_id: str, report: Report) -> None:
        """Tell Optuna a trial's report."""
        with self._leaving_a_lost_storage():
            for pairs_seen, value in _intermediate([report], self._config).items():
                self._open[trial_id].report(value, pairs_seen)

    def tell(self, record: TrialRecord) -> None:
        """Tell Optuna how a trial ended. A trial that Tune gave back without an end is ignored: it
        is opened again later."""
        trial = self._open.pop(record.id, None)
        if trial is None or record.state not in ENDED:
            return
        with self._leaving_a_lost_storage():
            for metric, excess in _excesses(record, self._config).items():
                trial.set_constraint(metric, excess)
            self._study.tell(trial, _values(record, self._config), OPTUNA_STATES[record.state])

    def _trial_with(self, point: Point) -> TrialRecord | None:
        """Return the trial that has this point; of several, the one of which most is known."""
        found = self._records.standings.points.get(point_key(point), [])
        twins = [self._records.trials[trial_id] for trial_id in found]
        return min(twins, key=lambda record: STATES.index(record.state), default=None)

    def _tell_repeated(self, trial_id: str, twin: TrialRecord) -> None:
        """Answer a proposal that repeats a trial with that trial's reports and end.

        If that trial still runs, the proposal counts as failed, from which no sampler learns.
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
                "maximize" if each.mode == "max" else "minimize" for each in self._config.goal.parts
            ],
            sampler=make_sampler(self._config, len(self._records.searched)),
        )
        with warnings.catch_warnings():
            # Optuna has marked this as experimental for years; a test checks that it works.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([each.metric for each in self._config.goal.parts])
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
        """If the database is gone, continue with a study in memory instead of ending the search."""
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
    """Make the configured sampler. `trials_before` is the number of trials that already exist."""
    # A later driver session must not draw the same numbers again, so its seed is another one.
    seed = config.sampler.seed + 7919 * trials_before
    with warnings.catch_warnings():
        # Optuna has marked `group` and GP as experimental for years; our tests cover both.
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
    """Return the objectives of a finished trial, otherwise None: what a stopped trial reached can't
    be compared with a finished one."""
    if record.state != "finished":
        return None
    return [record.metrics[each.metric] for each in config.goal.parts]


def _excesses(record: TrialRecord, config: SearchConfig) -> dict[str, float]:
    """Return how far an ended trial's best report is beyond each bound; 0 or less if it keeps it.

    It is empty for a trial without reports, which Optuna treats as beyond its bounds.
    """
    if not record.metrics or record.state not in ENDED:
        return {}
    return {
        metric: min(excess, _FAR_BEYOND)
        for metric, excess in config.goal.excesses(record.metrics).items()
    }


def _intermediate(curve: Sequence[Report], config: SearchConfig) -> dict[int, float]:
    """Return the objective by pairs_seen; empty with two objectives, where Optuna takes no reports.

    With two, a stopped trial is still PRUNED. TPE then ranks it behind all COMPLETE trials (optuna
    5.0, `_split_trials`, which raises if it has reports). With one objective the reports only rank
    stopped trials among themselves.
    Telling Optuna that it is COMPLETE, with the values that it reached, would be wrong: drift grows
    with training, so trials that are stopped early would lie on the front. GP reads only COMPLETE
    trials, with one objective too.
    """
    if config.goal.second:
        return {}
    return {int(report["pairs_seen"]): report[config.goal.metric] for report in curve}
