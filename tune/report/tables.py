"""The tables of a report: rows of text, which `content.html` escapes."""

from __future__ import annotations

from dpo_train.evaluation.test_report import Numbers
from dpo_train.scoring import metrics
from tune.config.space import Point
from tune.report import facts
from tune.report.facts import Saved
from tune.run_folder.results import Results
from tune.run_folder.wording import describe, duration, value_text

_ANSWER_TOKENS = "mean length of greedy answers, in tokens: longer ones often please judges"

MOST_FAILURES = 20
"""That stand with their errors; the table of all trials has the others."""

Rows = list[list[str]]
Table = tuple[list[str], Rows]
"""Its head and its rows."""


def point(config: Point) -> Rows:
    """A trial's values as YAML has them, a float by four digits."""
    return [[path, value_text(value, 4)] for path, value in config.items()]


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
    if (loss := _train_loss(results)) is not None:
        of_training = ["train loss", *[""] * (len(columns) - 1), f"{loss:.3f}"]
        beside = next((n for n, row in enumerate(rows, 1) if row[0] == "loss"), len(rows))
        rows.insert(beside, [*of_training, facts.TRAIN_LOSS_MEANING])
    return ["", *columns, ""], rows


def _train_loss(results: Results) -> float | None:
    """Of the winner's run at the report whose weights won."""
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
    """The first MOST_FAILURES."""
    failed = [trial for trial in results.trials if trial.state == "failed"]
    return [
        [trial.id, str(trial.pairs_seen), trial.error or "", describe(trial.config)]
        for trial in failed[:MOST_FAILURES]
    ]


def space(results: Results) -> Table:
    """The axes as they were searched."""
    axes = facts.searched_axes(results)
    head = ["axis", "range", "when", "winner"]
    rows = [list(axis) for axis in axes]
    kept = [column for column, title in enumerate(head)
            if column < 2 or any(row[column] for row in rows)]  # fmt: skip
    return [head[column] for column in kept], [[row[column] for column in kept] for row in rows]


def settings(results: Results) -> Rows:
    """How trials were proposed and stopped."""
    return [
        ["objective", facts.aim(results)],
        ["proposed by", facts.proposed_by(results)],
        ["early stopping", facts.stopping_rule(results)],
        *([["ended by", results.ended]] if results.ended else []),
    ]


def data(results: Results) -> Rows:
    """Pairs by split, and rows that were left out by the reason; empty before they are counted."""
    if not results.data:
        return []
    pairs = [[f"pairs, {name}", f"{count:,}"] for name, count in results.data["pairs"].items()]
    dropped = [[f"left out: {why}", f"{count:,}"] for why, count in results.data["dropped"].items()]
    return pairs + (dropped or [["left out", "none"]])


def environment(results: Results) -> Rows:
    """Empty before a search has ended."""
    if not results.environment:
        return []
    versions = results.environment["versions"].items()
    return [
        ["hardware", facts.hardware(results)],
        ["Python", results.environment["python"]],
        *([name, number] for name, number in versions),
    ]
