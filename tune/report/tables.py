"""Makes the tables of a report: rows of text, which `content.html` escapes."""

from __future__ import annotations

from dpo_train.evaluation.test_report import Numbers
from dpo_train.scoring import metrics
from tune.config.space import Point
from tune.report import facts
from tune.report.facts import Saved
from tune.run_folder.results import Results
from tune.run_folder.wording import describe, duration, value_text

_ANSWER_TOKENS = "mean length of greedy answers, in tokens: judges often prefer longer ones"

MOST_FAILURES = 20
"""Failures that are listed with their errors; the table of all trials has the others."""

Rows = list[list[str]]
Table = tuple[list[str], Rows]
"""The head and the rows."""


def point(config: Point) -> Rows:
    """Returns a trial's values as in the YAML, floats with four digits."""
    return [[path, value_text(value, 4)] for path, value in config.items()]


def front(results: Results) -> Table:
    """Returns the trials on the Pareto front, among which the winner was chosen."""
    assert results.winner is not None
    names = [objective.metric for objective in results.objective.parts]
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
    """Returns base and winner in each metric, with the base's values that hold by definition."""
    assert results.winner is not None
    test, held_out = results.winner.test, Numbers(metrics=results.winner.eval)
    base = results.test_of_base if test.metrics else None
    columns = {"base, test": base or Numbers(), "winner, test": test}
    if results.confirmation is not None and results.confirmation.searched_test.metrics:
        columns["winner of the search only, test"] = results.confirmation.searched_test
    columns["winner, eval"] = held_out
    meanings = {each.short_name: each.explained for each in metrics.METRICS}
    meanings["answer_tokens"] = _ANSWER_TOKENS
    rows = [
        [name, *(_value(name, column) for column in columns.values()), meaning]
        for name, meaning in meanings.items()
        if name in held_out.shown or name in test.shown
    ]
    if (loss := _train_loss(results)) is not None:
        train_row = ["train loss", *[""] * (len(columns) - 1), f"{loss:.3f}"]
        after_loss = next((n for n, row in enumerate(rows, 1) if row[0] == "loss"), len(rows))
        rows.insert(after_loss, [*train_row, facts.TRAIN_LOSS_MEANING])
    return ["", *columns, ""], rows


def _train_loss(results: Results) -> float | None:
    """Returns the train loss of the winner's run at the report whose weights won, if known."""
    winner = results.winner
    assert winner is not None
    for run in results.runs:
        if run.id == (winner.run or winner.trial):
            for report in run.curve:
                if report["pairs_seen"] == winner.pairs_seen:
                    return report.get(facts.TRAIN_LOSS)
    return None


def _value(name: str, numbers: Numbers) -> str:
    if name not in numbers.shown:
        return ""
    value = f"{numbers.shown[name]:.3f}"
    if name == "ranking" and numbers.interval:
        low, high = numbers.interval
        value += f"\n[{low:.2f}\u2060–\u2060{high:.2f}]"
    return value


def confirmation(results: Results) -> Table:
    """Returns the finalists with other seeds, which shows how much was luck."""
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
        own_values = (f"{name} {value:.4g}" for name, value in finalist.evaluation.items())
        rows.append(
            {
                "finalist": finalist.trial,
                "in the search": f"{finalist.searched:.3f}",
                "other seeds": ", ".join(finalist.seed_values),
                "mean": "failed" if finalist.mean is None else f"{finalist.mean:.3f}",
                other: "failed" if second is None else f"{second:.3f}",
                "sampled KL": kl,
                "behind the winner": behind,
                "own evaluation": ", ".join(own_values),
                "": describe(finalist.config),
            }
        )
    titles = rows[0] if rows else {}
    head = [title for title in titles if not title or any(row[title] for row in rows)]
    return head, [[row[title] for title in head] for row in rows]


def time(results: Results, estimate: Saved | None) -> Rows:
    """Returns what the search cost, and what early stopping saved of it."""
    cost = results.cost
    seconds = sum(run.seconds for run in results.runs)
    rows = [
        ["wall-clock time", duration(cost.wall_seconds)],
        ["time of all trials together", duration(seconds)],
        ["pairs trained on", str(cost.pairs_seen)],
        ["pairs whose reference log-probs were computed", str(cost.reference_pairs)],
    ]
    if cost.gpu_seconds:
        rows.insert(2, ["GPU-hours", f"{cost.gpu_seconds / 3600:.2f}"])
    if estimate is not None:
        gpus = cost.gpu_seconds / seconds if seconds else 0
        length = f"{estimate.seconds * gpus / 3600:.2f} GPU-hours, " if gpus else ""
        rows.append(["saved by early stopping", f"about {length}{duration(estimate.seconds)}"])
    return rows


def failures(results: Results) -> Rows:
    """Returns the first MOST_FAILURES failed trials with their errors."""
    failed = [trial for trial in results.trials if trial.state == "failed"]
    return [
        [trial.id, str(trial.pairs_seen), trial.error or "", describe(trial.config)]
        for trial in failed[:MOST_FAILURES]
    ]


def space(results: Results) -> Table:
    """Returns the axes of the search space."""
    axes = facts.searched_axes(results)
    head = ["axis", "range", "when", "winner"]
    rows = [list(axis) for axis in axes]
    kept = [column for column, title in enumerate(head)
            if column < 2 or any(row[column] for row in rows)]  # fmt: skip
    return [head[column] for column in kept], [[row[column] for column in kept] for row in rows]


def settings(results: Results) -> Rows:
    """Returns the objective, and how trials were proposed and stopped."""
    return [
        ["objective", facts.aim(results)],
        ["proposed by", facts.proposed_by(results)],
        ["early stopping", facts.stopping_rule(results)],
        *([["ended by", results.ended]] if results.ended else []),
    ]


def data(results: Results) -> Rows:
    """Returns the pairs of each split and the rows left out by reason; empty before the count."""
    if not results.data:
        return []
    pairs = [[f"pairs, {name}", f"{count:,}"] for name, count in results.data["pairs"].items()]
    dropped = results.data["dropped"].items()
    left_out = [[f"rows left out: {reason}", f"{count:,}"] for reason, count in dropped]
    return pairs + (left_out or [["rows left out", "none"]])


def environment(results: Results) -> Rows:
    """Returns hardware and versions; empty before the search has ended."""
    if not results.environment:
        return []
    versions = results.environment["versions"].items()
    return [
        ["hardware", facts.hardware(results)],
        ["Python", results.environment["python"]],
        *([name, number] for name, number in versions),
    ]
