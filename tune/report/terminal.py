"""Renders the results of a search as text: tables for people, CSV for scripts."""

from __future__ import annotations

import csv
import io

from dpo_train.command_line import dpo_tune
from dpo_train.scoring import metrics
from tune.config.objective import Objective
from tune.report.doubts import doubts
from tune.report.facts import luck, verdict
from tune.run_folder.results import Results
from tune.run_folder.trial_record import ENDED, TrialRecord
from tune.run_folder.wording import describe, duration


def render(results: Results, rows: int = 10) -> str:
    """Returns what a terminal shows at the end of a search: winner, trials, answers, cost."""
    blocks = [
        _winner_block(results),
        "\n".join(f"warning: {doubt}" for doubt in doubts(results)),
        _confirmation(results),
        _table(results, rows),
        _answers(results),
        _cost(results),
    ]
    return "\n\n".join(block for block in blocks if block)


def to_csv(results: Results) -> str:
    """Returns one line a trial: id, state, the pairs trained on, the pairs up to the best report,
    configuration by dotted path, metrics of the best report."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, results.columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(results.rows())
    return stream.getvalue()


def _winner_block(results: Results) -> str:
    winner = results.winner
    if winner is None:
        best = results.best()
        if best is None and any(trial.state not in ENDED for trial in results.trials):
            return "no trial has reported yet"
        if best is None and not any(trial.metrics for trial in results.trials):
            return "there is no winner: no trial was measured"
        if best is None:
            return f"there is no winner: no report has {results.objective.bounds_text}"
        value = best.metrics[results.objective.metric]
        return f"no winner yet; best so far {best.id}: {results.objective.metric} {value:.3f}"
    warm = f" (started from the weights of {winner.warm_from})" if winner.warm_from else ""
    whose_weights = f", weights of {winner.run}" if winner.run not in ("", winner.trial) else ""
    point = describe(winner.config)
    lines = [f"winner {winner.trial}{whose_weights} at {winner.pairs_seen} pairs: {point}{warm}"]
    if expected := luck(results):
        lines.append(f"  {expected}")
    if results.test_of_base is None or results.test_of_winner is None:
        metric = results.objective.metric
        return "\n".join([*lines, f"  {metric} {winner.eval[metric.removeprefix('eval/')]:.3f}"])
    lines.append(f"  {verdict(results)}")
    lines += _numbers(results)
    if kl := winner.sampled_kl:
        low, high = kl.interval
        lines.append(
            f"  on held-out prompts, its sampled answers have a KL of {kl.mean:.3g} nats from "
            f"the base (95 % interval {low:.3g} to {high:.3g})"
        )
    return "\n".join(lines)


def _numbers(results: Results) -> list[str]:
    """Returns the table of base and winner on the test split.

    With a confirmation, a column between them has the winner of the search alone.
    """
    # The columns.
    base, test = results.test_of_base, results.test_of_winner
    assert base is not None
    assert test is not None
    models = {"base": base, "winner": test}
    if results.confirmation is not None and results.confirmation.searched_test.metrics:
        searched = results.confirmation.searched_test
        models = {"base": base, "search only": searched, "confirmed": test}
    # The rows: ranking with its interval first, then the other metrics.
    rows = {
        "ranking": [f"{each.metrics['ranking']:.3f}" for each in models.values()],
        "  95 % interval": ["{:.2f}–{:.2f}".format(*each.interval) for each in models.values()],
    }
    rows |= {
        metric.label: [
            f"{each.metrics[name]:.3f}" if name in each.metrics else "-" for each in models.values()
        ]
        for metric in metrics.measured(test.metrics)
        if (name := metric.short_name) not in rows
    }
    lengths = [each.answer_tokens for each in models.values() if each.answer_tokens is not None]
    if len(lengths) == len(models):
        rows["tokens of an answer, mean"] = [f"{length:.1f}" for length in lengths]
    # The text.
    lines = [f"  {name:28}" + "".join(f"{cell:>14}" for cell in row) for name, row in rows.items()]
    head = f"on {test.pairs} test pairs"
    differences = [
        f"  pair by pair, {name} of the confirmed winner is {gain.difference:+.3f} against search "
        f"only (95 % interval {_signed(gain.interval)})"
        for name, gain in test.over_searched.items()
    ]
    return [f"{head:30}" + "".join(f"{name:>14}" for name in models), *lines, *differences]


def _signed(bounds: list[float]) -> str:
    low, high = bounds
    return f"{low:+.3f} to {high:+.3f}"


def _confirmation(results: Results) -> str:
    """Returns the table of the finalists with other seeds, which shows how much was luck."""
    confirmation = results.confirmation
    if confirmation is None:
        return ""
    width = max(len("other seeds"), 6 * len(confirmation.finalists[0].runs))
    other = results.objective.other.metric.removeprefix("eval/")
    head = f"{'finalist':12} {'search':>8}  {'other seeds':{width}} {'mean':>6}"
    lines = [f"{head} {other:>6}  behind the winner"]
    for finalist in confirmation.finalists:
        values = " ".join(finalist.seed_values)
        mean = "-" if finalist.mean is None else f"{finalist.mean:.3f}"
        second = "-" if finalist.drift is None else f"{finalist.drift:.2f}"
        if finalist.second is not None:
            second = f"{finalist.second:.3f}"
        details = "".join(f"  {name} {value:.4g}" for name, value in finalist.evaluation.items())
        if finalist.sampled_kl:
            details = f"  sampled KL {finalist.sampled_kl.mean:.3g}{details}"
        if finalist.behind:
            behind = finalist.behind
            details = f"  {behind.difference:.3f}, 95 % {_signed(behind.interval)}{details}"
        lines.append(
            f"{finalist.trial:12} {finalist.searched:8.3f}  {values:{width}} {mean:>6} "
            f"{second:>{max(6, len(other))}}{details}"
        )
    lines.append(f"{confirmation.winner} won by {confirmation.decided_by}")
    if confirmation.winner != confirmation.searched:
        lines[-1] += f"; without the confirmation it would be {confirmation.searched}"
    return "\n".join(lines)


def _table(results: Results, rows: int) -> str:
    """Returns the table of the best trials; with two objectives at least the whole front."""
    ranked, objective, front = results.ranked(), results.objective, set(results.front)
    second = objective.second.metric if objective.second else "drift"
    shown = ranked[: max(rows, len(front))]
    width = max([len("state"), *(len(trial.state) for trial in shown)])
    head = f"{'trial':12} {'state':{width}} {'pairs trained':>13} {'at best':>7}"
    head = f"{head} {objective.metric:>13} {second:>6}"
    lines = [f"{head}{_mark(objective, False)}config"]
    lines += [_row(trial, objective, trial.id in front, width) for trial in shown]
    if len(ranked) > len(shown):
        command = dpo_tune("show", results.folder.argument, "--csv")
        lines.append(f"… and {len(ranked) - len(shown)} more: {command}")
    if front:
        lines.append(f"* {results.describe_front()}")
    return "\n".join(lines)


def _row(trial: TrialRecord, objective: Objective, on_front: bool, state_width: int) -> str:
    width, digits = (len(objective.second.metric), 3) if objective.second else (6, 2)
    if trial.metrics:
        other = trial.metrics[objective.other.metric]
        value = f"{trial.metrics[objective.metric]:13.3f} {other:{width}.{digits}f}"
    else:
        value = f"{'-':>13} {'-':>{width}}"
    notes = f"  {trial.error}" if trial.error else ""
    if trial.metrics and objective.bounds and not objective.allows(trial.metrics):
        notes += f"  no report has {objective.bounds_text}"
    if trial.cloned_from:
        notes += f"  {'warm ' if trial.warm else ''}clone of {trial.cloned_from}"
    best = trial.pairs_at_best_report
    at_best = "-" if best is None else str(best)
    cells = f"{trial.id:12} {trial.state:{state_width}} {trial.pairs_seen:13} {at_best:>7} {value}"
    return f"{cells}{_mark(objective, on_front)}{describe(trial.config)}{notes}"


def _mark(objective: Objective, on_front: bool) -> str:
    """Returns the mark before a trial's configuration: a star for trials on the front."""
    return "  " if objective.second is None else " * " if on_front else "   "


def _answers(results: Results) -> str:
    return "\n".join(
        f"> {answer.prompt}\n  base:   {answer.base}\n  winner: {answer.winner}"
        for answer in results.answers
    )


def _cost(results: Results) -> str:
    cost = results.cost
    gpu = f", {cost.gpu_seconds / 3600:.2f} GPU-hours" if cost.gpu_seconds else ""
    interrupted = ""
    if any(trial.state == "interrupted" for trial in results.runs):
        command = dpo_tune("resume", results.folder.argument)
        interrupted = f"\nno process runs this search now; to go on: {command}"
    return (
        f"{results.state_counts()}; {cost.pairs_seen} pairs trained on, reference log-probs of "
        f"{cost.reference_pairs} pairs computed; {duration(cost.wall_seconds)}{gpu}"
        f"{interrupted}"
    )
