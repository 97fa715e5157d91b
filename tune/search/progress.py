"""The progress of a running search: what is shown of it, and the line of each ended trial."""

from __future__ import annotations

import time
from collections.abc import Callable

from tune.config.objective import Objective, Report
from tune.run_folder.records import Records
from tune.run_folder.step import Step
from tune.run_folder.trial_record import ENDED, TrialRecord
from tune.run_folder.wording import describe, duration
from tune.search.pace import Pace
from tune.search.signs_of_life import SignsOfLife
from tune.search.view import RunningTrial, View
from tune.workers.live_state import Doing, Snapshot


class Progress:
    """Collects what the workers and the records say, and shows it."""

    def __init__(
        self,
        records: Records,
        total: int,
        signs: SignsOfLife | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` is the number of expected trials, without clones."""
        self._records = records
        self._total = total
        self._signs = signs or SignsOfLife()
        self._pace = Pace(now)
        self.live = Snapshot()
        """What the trials were doing at the last look."""

    def look(self, live: Snapshot) -> None:
        """Take what the workers say they are doing."""
        self.live = live
        for name, doing in live.trials.items():
            if doing.pairs_total and name in self._records.standings.open:
                self._pace.update(name, doing.pairs_done, doing.pairs_total)

    def add_report(self, trial: str, seen_before: int, step: Step) -> None:
        """Take what a trial did since its last report, at `seen_before` pairs. A fast trial may
        never be seen by `look`."""
        if step.pairs_total:
            self._pace.start(trial, seen_before, step.pairs_total, step.seconds)
            self._pace.update(trial, int(step.report["pairs_seen"]), step.pairs_total)

    def print_end(self, record: TrialRecord) -> None:
        """Print how a trial ended."""
        self._pace.end(record.id, record.pairs_seen)
        self.say(_trial_line(record, self._records.objective))

    def say(self, line: str) -> None:
        """Print a line."""
        self._signs.say(line)

    def view(self) -> View:
        """Return what is shown of the search now."""
        records, count = self._records, self._records.count
        running = self._running()
        ended, total = count(*ENDED), self._total + records.standings.clones
        share = sum(self._pace.share_done(trial.name) for trial in running)
        best = records.best()
        waiting = max(0, count("running") - len(running))
        counts = {"running": len(running), "waiting": waiting}
        counts |= {state: count(state) for state in ENDED}
        return View(
            doing=self.reference_line(),
            ended=ended,
            total=total,
            share=(ended + share) / max(1, total),
            seconds_left=self._pace.seconds_left(total - ended),
            counts=" · ".join(f"{number} {what}" for what, number in counts.items() if number),
            best=f"best {_values(records.objective, best.metrics)} ({best.id})" if best else "",
            running=running,
        )

    def reference_line(self) -> str:
        """Return a line like `reference log-probs 312 of 600 (1 min 40 s left)`; empty if no
        reference pass is running."""
        reference = self.live.reference
        if reference is None:
            return ""
        left = reference.seconds_left
        time_left = f" ({duration(left)} left)" if left is not None else ""
        return f"reference log-probs {reference.pairs_done} of {reference.pairs_total}{time_left}"

    def _running(self) -> tuple[RunningTrial, ...]:
        """Return the trials that a worker has begun. Ray Tune has one more, which waits."""
        records, live = self._records, self.live.trials
        found = []
        for name in sorted(live.keys() | self._pace.training):
            record, doing = records.trials.get(name), live.get(name, Doing("training"))
            if record is None or record.has_ended:
                continue
            found.append(
                RunningTrial(
                    name=name,
                    what=doing.what,
                    # The last look may be older than the last report.
                    pairs_done=max(doing.pairs_done, record.pairs_seen),
                    pairs_total=doing.pairs_total or self._pace.total(name),
                    last=_values(records.objective, record.curve[-1]) if record.curve else "",
                    pairs_per_second=self._pace.pairs_per_second(name),
                )
            )
        return tuple(found)


def _trial_line(record: TrialRecord, objective: Objective) -> str:
    again = f"  {record.confirms} again" if record.confirms else ""
    values = f"{_values(objective, record.metrics)}  " if record.metrics else ""
    why = f"  {record.error}" if record.error else ""
    return (
        f"{record.id} {record.state:8} {record.pairs_seen:>6} pairs  {values}"
        f"{describe(record.config)}{again}{why}"
    )


def _values(objective: Objective, report: Report) -> str:
    """Return the objectives' names and values in a report."""
    return " ".join(f"{each.metric} {report[each.metric]:.3f}" for each in objective.parts)
