"""What a search found: `results.json`, made from the records when it ends, and while it runs.

Knows no Ray and no Optuna.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from dpo_train.errors import InputError
from dpo_train.scoring.metrics import METRICS
from dpo_train.storage import mirror
from dpo_train.storage.files import write_atomically
from tune.config.objective import Objective, Report
from tune.config.schema import SearchConfig
from tune.run_folder import less_drift, luck
from tune.run_folder.confirmation import Confirmation
from tune.run_folder.folder import find_run, open_run
from tune.run_folder.less_drift import LessDrift
from tune.run_folder.luck import Luck
from tune.run_folder.records import STATES, Document, Records, TrialRecord

if TYPE_CHECKING:
    import pandas


class Winner(Document):
    trial: str
    """The trial of the search whose configuration won."""
    run: str = ""
    """The run whose weights lie in winner/: that trial, or one that confirms it."""
    config: dict[str, Any]
    eval: Report
    """The metrics at the report whose weights were exported, without the prefix eval/."""
    pairs_seen: int
    failed: str = ""
    """Why its run failed after the report that won; empty if it did not."""
    warm_from: str | None = None
    """The trial from whose weights an earlier version started it, if not from the base's: its
    configuration alone does not give its numbers."""
    test: dict[str, Any] = {}
    """Metrics on the test split without the prefix eval/; `interval` is that of `ranking`;
    `answer_tokens`; `over_base` and `over_searched` are differences, pair by pair."""
    sampled_kl: dict[str, Any] = {}
    """Where eval/drift is an objective: KL from the base in nats an answer, estimated on sampled
    answers to held-out prompts (dpo_train/evaluation/sampled_kl.py); `mean` and its 95 %
    `interval`."""


class Cost(Document):
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0
    pairs_seen: int = 0
    reference_pairs: int = 0


class Publication(Document):
    """Where the winner was pushed to, or why it was not."""

    repo: str
    commit: str = ""
    url: str = ""
    """Of the repository at that commit."""
    error: str = ""


UNTRAINED = {each.short_name: each.base for each in METRICS if each.base is not None}
"""What the base would report: it is its own reference, so all its log-ratios are 0."""


class Deployment(Document):
    """Where Ray Serve answers with the winner, or why it does not."""

    url: str = ""
    error: str = ""


class Results(Document):
    """The content of results.json."""

    schema_: int = 1
    name: str
    objective: Objective
    base: dict[str, dict[str, Any]]
    winner: Winner | None
    trials: list[TrialRecord]
    """Of the search itself."""
    confirmations: list[TrialRecord] = []
    """The finalists' runs with other seeds."""
    confirmation: Confirmation | None = None
    """How the finalists compare by them."""
    ranking: list[str] = []
    """The trials that were measured, the best first by `winner_rule.py`."""
    front: list[str] = []
    """With two objectives the trials that no other beats in one without losing in the other, each
    at its best report: by the first, of which the second is what it had there."""
    luck: Luck | None = None
    """How much of the best number is luck, once the search has ended."""
    less_drift: LessDrift | None = None
    """Where the winner's drift is above `MOST_DRIFT` and no bound was asked for."""
    cost: Cost
    data: dict[str, Any] = {}
    """Pairs in each split, how many rows each reason left out, and the key of the prepared data:
    numbers of two searches are of the same pairs and base if it is the same."""
    answers: list[dict[str, str]] = []
    """Greedy answers of base and winner to prompts of the test split."""
    ended: str = ""
    """Why no more trials started."""
    search: dict[str, Any] = {}
    """The configuration as resolved: space, stopping, model, data and all else of the YAML."""
    environment: dict[str, Any] = {}
    """`python`, `versions` of the libraries, and `hardware`: amounts by name, as Ray counts."""
    published: Publication | None = None
    """The last push of the winner, if one was tried."""
    served: Deployment | None = None
    """What Ray Serve was last asked to do with the winner."""
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where these results were read or written."""
        return self._folder

    @property
    def place(self) -> str:
        """The same as a person types it: a URL, if the run stands there."""
        return mirror.shown(self._folder)

    def at(self, folder: Path) -> Results:
        self._folder = folder
        return self

    @property
    def runs(self) -> list[TrialRecord]:
        """All that was trained."""
        return [*self.trials, *self.confirmations]

    def to_json(self) -> str:
        content = {"schema": self.schema_, **self.model_dump(exclude={"schema_"})}
        return json.dumps(content, indent=1)

    def ranked(self) -> list[TrialRecord]:
        """The best trial first, those that were not measured last; with two objectives front by
        front."""
        place = {trial: number for number, trial in enumerate(self.ranking)}
        if not place:  # earlier versions wrote no order
            order = self.objective.by_value([trial.metrics for trial in self.trials])
            return [self.trials[index] for index in order]
        return sorted(self.trials, key=lambda trial: place.get(trial.id, len(place)))

    def best(self) -> TrialRecord | None:
        """The first of them, if one was measured and may win."""
        best = next(iter(self.ranked()), None)
        return best if best and self.objective.allows(best.metrics) else None

    def about_front(self) -> str:
        """How many trials lie on the front, and how one of them is taken; empty with one
        objective."""
        first = self.objective
        if first.second is None:
            return ""
        told = f"the Pareto front of {first.told}: {len(self.front)} of {len(self.trials)} trials"
        if self.confirmation is not None:
            count = len(self.confirmation.finalists)
            return f"{told}; the winner is one of {count} finalists, trained again"
        return f"{told}; the winner is the best of it in {first.metric}"

    def counted(self) -> str:
        """For example `11 finished, 13 stopped`."""
        counts = Counter(trial.state for trial in self.trials)
        return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])

    def columns(self) -> list[str]:
        """Names of a trial's values in one row: axes by dotted path, metrics at its best report."""
        axes = sorted({path for trial in self.trials for path in trial.config})
        metrics = sorted({name for trial in self.trials for name in trial.metrics})
        return ["id", "state", *axes, *metrics, "seconds", "error"]

    def rows(self) -> list[dict[str, Any]]:
        """One dict a trial, by `columns`; inactive axes and what was not measured are left out."""
        return [
            {
                "id": trial.id,
                "state": trial.state,
                **trial.config,
                **trial.metrics,
                "seconds": round(trial.seconds, 3),
                "error": trial.error,
            }
            for trial in self.trials
        ]

    def frame(self) -> pandas.DataFrame:
        """The same as `dpo-tune show --csv`, for a notebook."""
        import pandas  # slow to import

        return pandas.DataFrame(self.rows(), columns=self.columns())


def assemble(
    config: SearchConfig,
    records: Records,
    stamp: dict[str, Any] | None,
    verdict: dict[str, Any],
    stop_reason: str,
    confirmation: Confirmation | None = None,
) -> Results:
    """The results as the records stand; `stamp` and `verdict` of the winner, once it is known."""
    manifest = _manifest(records)
    trials = list(records.trials.values())
    seconds = sum(record.seconds for record in trials)
    winner = None
    if stamp:
        record = records.trials[stamp["trial"]]
        report = {
            key.removeprefix("eval/"): value
            for key, value in stamp["report"].items()
            if key.startswith("eval/")
        }
        winner = Winner(
            trial=record.confirms or record.id,
            run=record.id,
            config=stamp["config"],
            eval=report,
            pairs_seen=int(stamp["report"]["pairs_seen"]),
            test=verdict.get("test", {}),
            sampled_kl=verdict.get("sampled_kl", {}).get(record.confirms or record.id, {}),
            failed=record.error or "" if record.state == "failed" else "",
        )
    return Results(
        name=config.name,
        objective=records.objective,
        base=_base(manifest, verdict),
        winner=winner,
        trials=records.searched,
        confirmations=records.confirmations,
        confirmation=confirmation,
        ranking=[record.id for record in records.ranked(records.searched) if record.metrics],
        front=[record.id for record in records.front()],
        luck=luck.estimate(records) if stop_reason else None,
        less_drift=less_drift.find(records) if winner else None,
        cost=Cost(
            wall_seconds=records.run.wall_seconds,
            gpu_seconds=seconds * config.resources.gpus,
            pairs_seen=sum(record.pairs_seen for record in trials),
            reference_pairs=sum(record.reference_pairs for record in trials),
        ),
        data={
            **{key: manifest[key] for key in ("pairs", "dropped") if key in manifest},
            **({"key": records.run.prepared_folder.name} if manifest else {}),
        },
        answers=verdict.get("answers", []),
        ended=stop_reason,
        search=config.model_dump(mode="json", by_alias=True),
    )


def _base(manifest: dict[str, Any], verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By split: `ranking`, its `interval`, `pairs`; on test `answer_tokens` too, once the winner is
    evaluated."""
    base: dict[str, dict[str, Any]] = manifest.get("base", {})
    if "base" in verdict:
        base = {**base, "test": {**base["test"], **verdict["base"]}}
    return base


def _manifest(records: Records) -> dict[str, Any]:
    path = mirror.fetch_once(records.run.prepared_folder / "manifest.json")
    manifest: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return manifest


def write_results(folder: Path, results: Results) -> None:
    write_atomically(folder / "results.json", results.to_json())


def load_results(run: str | Path) -> Results:
    """The results of a run folder, or of a name under `runs/`. Raises InputError."""
    folder = find_run(run)
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(
            f"{mirror.shown(folder)}: the search has no results yet; type `dpo-tune resume "
            f"{mirror.shown(folder)}` to finish it"
        )
    content = json.loads(path.read_text())
    return Results.model_validate({**content, "schema_": content["schema"]}).at(folder)


def current_results(run_folder: str | Path) -> Results:
    """The results of a run folder as it stands: of a running search, without a winner."""
    folder = find_run(run_folder)
    config, records = open_run(folder)
    if (folder / "results.json").exists() and not records.open_trials():
        results = load_results(folder)
        if len(results.runs) == len(records.trials):
            return results
    return assemble(config, records, None, {}, "").at(folder)
