"""The tables of a report: rows of text, which `content.html` escapes."""

from __future__ import annotations

import json

from dpo_train.evaluation.test_report import Numbers
from dpo_train.scoring import metrics
from tune.config.space import Point
from tune.report.facts import Saved
from tune.run_folder.results import Results
from tune.run_folder.wording import describe, duration

_ANSWER_TOKENS = "mean length of greedy answers, in tokens: longer ones often please judges"

Rows = list[list[str]]
Table = tuple[list[str], Rows]
"""Its head and its rows."""


def point(config: Point) -> Rows:
    """A trial's values as YAML has them, a float by four digits."""
    return [
        [path, f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')]
        for path, value in config.items()
    ]


def front(results: Results) -> Table:
    """With two objectives the trials between which `select` decided."""
    assert results.winner is not None
    names = [part.metric for part in results.objective.parts]
    trials = {trial.id: trial for trial in results.trials}
    rows = [
        [
            trial.id + (" won" if trial.id == results.winner.trial else ""),
            *(f"{trial.metrics[name]:.3f}" for name in names),
            trial.state,
            str(int(trial.metrics["pairs_seen"])),
            describe(trial.config),
        ]
        for trial in map(trials.__getitem__, results.front)
    ]
    return ["trial", *names, "", "pairs", ""], rows


def numbers(results: Results) -> Table:
    """Base and winner in each metric; numbers of the base that hold by definition included."""
    assert results.winner is not None
    test, held_out = results.winner.test, Numbers(metrics=results.winner.eval)
    base = results.test_of_base if test.metrics else None
    columns = {"base, test": base or Numbers(), "winner, test": test}
    if results.confirmation is not None and results.confirmation.searched_test.metrics:
        columns["winner as searched, test"] = results.confirmation.searched_test
    columns["winner, eval"] = held_out
    meanings = {each.short_name: each.explained for each in metrics.METRICS}
    meanings["answer_tokens"] = _ANSWER_TOKENS
    rows = [
        [name, *(_value(name, column) for column in columns.values()), meaning]
        for name, meaning in meanings.items()
        if name in held_out.shown or name in test.shown
    ]
    return ["", *columns, ""], rows


def _value(name: str, numbers: Numbers) -> str:
    if name not in numbers.shown:
        return ""
    value = f"{numbers.shown[name]:.3f}"
    if name == "ranking" and numbers.interval:
        low, high = numbers.interval
        value += f"\n[{low:.2f}\u2060–\u2060{high:.2f}]"
    return value


def confirmation(results: Results) -> Table:
    """The finalists with other seeds, so that one sees how much was luck."""
    assert results.confirmation is not None
    other = results.objective.other.metric.removeprefix("eval/")
    rows = []
    for finalist in results.confirmation.finalists:
        behind = kl = ""
        if finalist.sampled_kl:
            low, high = finalist.sampled_kl.interval
            kl = f"{finalist.sampled_kl.mean:.3g} [{low:.3g}, {high:.3g}]"
        if finalist.behind:
            low, high = finalist.behind.interval
            behind = f"{finalist.behind.difference:.3f} [{low:+.3f}, {high:+.3f}]"
        second = finalist.drift if finalist.second is None else finalist.second
        told = (f"{name} {value:.4g}" for name, value in finalist.evaluation.items())
        rows.append(
            {
                "finalist": finalist.trial,
                "as searched": f"{finalist.searched:.3f}",
                "other seeds": ", ".join(finalist.seeds_told),
                "mean": "failed" if finalist.mean is None else f"{finalist.mean:.3f}",
                other: "failed" if second is None else f"{second:.3f}",
                "sampled KL": kl,
                "behind": behind,
                "own evaluation": ", ".join(told),
                "": describe(finalist.config),
            }
        )
    titles = rows[0] if rows else {}
    head = [title for title in titles if not title or any(row[title] for row in rows)]
    return head, [[row[title] for title in head] for row in rows]


def time(results: Results, estimate: Saved | None) -> Rows:
    cost = results.cost
    seconds = sum(run.seconds for run in results.runs)
    rows = [
        ["wall clock", duration(cost.wall_seconds)],
        ["held by trials", duration(seconds)],
        ["pairs trained on", str(cost.pairs_seen)],
        ["pairs of which the reference's log-probs were computed", str(cost.reference_pairs)],
    ]
    if cost.gpu_seconds:
        rows.insert(2, ["GPU-hours", f"{cost.gpu_seconds / 3600:.2f}"])
    if estimate is not None:
        gpus = cost.gpu_seconds / seconds if seconds else 0
        length = f"{estimate.seconds * gpus / 3600:.2f} GPU-hours, " if gpus else ""
        rows.append(["saved by stopping trials", f"about {length}{duration(estimate.seconds)}"])
    return rows


def failures(results: Results) -> Rows:
    return [
        [trial.id, str(trial.pairs_seen), trial.error or "", describe(trial.config)]
        for trial in results.trials
        if trial.state == "failed"
    ]
