"""Makes the results of a search from its records, when it ends or while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_train.evaluation.test_report import Numbers, TestReport
from dpo_train.reference_pass.manifest import Manifest
from dpo_train.storage import mirror
from tune.config.schema import SearchConfig
from tune.run_folder import less_drift, luck
from tune.run_folder.confirmation import Confirmation
from tune.run_folder.driver_lease import is_driven
from tune.run_folder.exports import ExportStamp
from tune.run_folder.folder import find_run, open_run
from tune.run_folder.live import read_live
from tune.run_folder.paths import RunFolder, RunLike
from tune.run_folder.records import Records
from tune.run_folder.results import Cost, Results, Winner, load_results
from tune.run_folder.trial_record import State, TrialRecord


@dataclass(frozen=True)
class SearchEnd:
    """What the end of a search adds to the records."""

    stop_reason: str = ""
    """The reason why no more trials started; empty while the search runs."""
    stamp: ExportStamp | None = None
    """The winner's trial, point and report; None if nothing was exported."""
    test: TestReport | None = None
    """Base and winner on the test split; None if they were not evaluated there."""
    confirmation: Confirmation | None = None
    """The comparison of the finalists; None if they were not trained again."""


RUNNING = SearchEnd()


def assemble(config: SearchConfig, records: Records, end: SearchEnd = RUNNING) -> Results:
    """Returns the results by the current records."""
    manifest = _manifest(records)
    stamp, test = end.stamp, end.test
    trials = list(records.trials.values())
    seconds = sum(record.seconds for record in trials)
    # The winner.
    winner = None
    if stamp:
        record = records.trials[stamp.trial]
        report = {
            key.removeprefix("eval/"): value
            for key, value in stamp.report.items()
            if key.startswith("eval/")
        }
        winner = Winner(
            trial=record.confirms or record.id,
            run=record.id,
            config=stamp.config,
            eval=report,
            pairs_seen=stamp.pairs_seen,
            test=test.test if test else Numbers(),
            sampled_kl=test.sampled_kl.get(stamp.searched) if test else None,
            failed=record.error or "" if record.state == "failed" else "",
        )
    # All results.
    return Results(
        name=config.name,
        objective=records.objective,
        base=_base(manifest, test),
        winner=winner,
        trials=records.searched,
        confirmations=records.confirmations,
        confirmation=end.confirmation,
        ranking=[record.id for record in records.ranked(records.searched) if record.metrics],
        front=[record.id for record in records.front()],
        luck=luck.estimate(records) if end.stop_reason else None,
        less_drift=less_drift.find(records) if winner else None,
        cost=Cost(
            wall_seconds=records.run.wall_seconds,
            gpu_seconds=seconds * config.resources.gpus,
            pairs_seen=sum(record.pairs_seen for record in trials),
            reference_pairs=sum(record.reference_pairs for record in trials),
        ),
        data={
            "pairs": manifest.pairs,
            "dropped": manifest.dropped,
            "key": records.run.prepared_folder.name,
        }
        if manifest
        else {},
        answers=test.answers if test else [],
        ended=end.stop_reason,
        search=config.model_dump(mode="json", by_alias=True),
    )


def _base(manifest: Manifest | None, test: TestReport | None) -> dict[str, Numbers]:
    measured = manifest.base if manifest else {}
    base = {split: Numbers.model_validate(each.model_dump()) for split, each in measured.items()}
    if test is not None:
        answers = {"answer_tokens": test.base.answer_tokens, "repeating": test.base.repeating}
        base["test"] = base["test"].model_copy(update=answers)
    return base


def _manifest(records: Records) -> Manifest | None:
    """Returns the manifest of the prepared data; None without it, as in a simulated search."""
    path = mirror.fetch_once(records.run.prepared_folder / "manifest.json")
    return Manifest.model_validate_json(path.read_text()) if path.is_file() else None


def current_results(run_folder: RunLike) -> Results:
    """Returns the current results of a run folder. A running search has no winner yet."""
    folder = find_run(run_folder)
    run = open_run(folder)
    config, records = run.config, run.records
    if folder.results_json.exists() and not records.open_trials():
        results = load_results(folder)
        if len(results.runs) == len(records.trials):
            return results
    return _with_current_states(assemble(config, records), folder).at(folder)


def _with_current_states(results: Results, folder: RunFolder) -> Results:
    """Returns the results with the current states of open trials.

    They are interrupted if no driver runs the search, and pending if no worker has started them,
    whatever the driver's last record says.
    """
    live, driven = read_live(folder), is_driven(folder)

    def state(trial: TrialRecord) -> State:
        if trial.has_ended:
            return trial.state
        if not driven:
            return "interrupted"
        waits = live is not None and trial.id not in live.trials
        return "pending" if waits else trial.state

    def updated(trials: list[TrialRecord]) -> list[TrialRecord]:
        return [trial.model_copy(update={"state": state(trial)}) for trial in trials]

    trials, confirmations = updated(results.trials), updated(results.confirmations)
    return results.model_copy(update={"trials": trials, "confirmations": confirmations})
