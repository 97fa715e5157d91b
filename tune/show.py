"""The numbers of a search as text: for people, for scripts."""

from __future__ import annotations

import csv
import io

from tune.progress import describe, duration
from tune.records import TrialRecord
from tune.results import Results


def render(results: Results, rows: int = 10) -> str:
    """The end of a search for a terminal: winner against base, trials, answers, cost."""
    parts = [_verdict(results), _table(results, rows), _answers(results), _cost(results)]
    return "\n\n".join(part for part in parts if part)


def to_csv(results: Results) -> str:
    """One line a trial: id, state, pairs_seen, its config by dotted path, its best metrics."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, results.columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(results.rows())
    return stream.getvalue()


def _verdict(results: Results) -> str:
    winner = results.winner
    if winner is None:
        best = results.objective.best(results.trials)
        if best is None:
            return "no trial was measured: nothing was won"
        value = best.metrics[results.objective.metric]
        return f"no winner yet; best so far {best.id}: {results.objective.metric} {value:.3f}"
    warm = f" (from the weights of {winner.warm_from})" if winner.warm_from else ""
    lines = [f"winner {winner.trial} at {winner.pairs_seen} pairs: {describe(winner.config)}{warm}"]
    base, test = results.base.get("test"), winner.test
    if base and test:
        pairs = test["pairs"]
        lines += [
            f"on {pairs} untouched test pairs   base   winner",
            f"  ranking                    {base['ranking']:.3f}  {test['ranking']:.3f}   "
            f"95 % intervals {_interval(base)} and {_interval(test)}",
            f"  accuracy                   0.500  {test['accuracy']:.3f}",
            f"  drift, nats per token      0.000  {test['drift']:.3f}",
        ]
    else:
        metric = results.objective.metric
        lines.append(f"  {metric} {winner.eval[metric.removeprefix('eval/')]:.3f}")
    return "\n".join(lines)


def _interval(numbers: dict[str, list[float]]) -> str:
    low, high = numbers["interval"]
    return f"{low:.2f}–{high:.2f}"


def _table(results: Results, rows: int) -> str:
    ranked = results.ranked()
    lines = [f"{'trial':12} {'state':9} {'pairs':>6} {results.objective.metric:>13}  drift  config"]
    lines += [_row(trial, results.objective.metric) for trial in ranked[:rows]]
    if len(ranked) > rows:
        lines.append(f"… and {len(ranked) - rows} more: dpo-tune show {results.name} --csv")
    return "\n".join(lines)


def _row(trial: TrialRecord, metric: str) -> str:
    if trial.metrics:
        value = f"{trial.metrics[metric]:13.3f}  {trial.metrics['eval/drift']:5.2f}"
    else:
        value = f"{'-':>13}      -"
    told = f"  {trial.error}" if trial.error else ""
    if trial.cloned_from:
        told += f"  {'warm ' if trial.warm else ''}clone of {trial.cloned_from}"
    stood = f"{trial.id:12} {trial.state:9} {trial.pairs_seen:6} {value}"
    return f"{stood}  {describe(trial.config)}{told}"


def _answers(results: Results) -> str:
    return "\n".join(
        f"> {answer['prompt']}\n  base:   {answer['base']}\n  winner: {answer['winner']}"
        for answer in results.answers
    )


def _cost(results: Results) -> str:
    cost = results.cost
    gpu = f", {cost.gpu_seconds / 3600:.2f} GPU-hours" if cost.gpu_seconds else ""
    return (
        f"{results.counted()}; {cost.pairs_seen} pairs trained on, reference log-probs of "
        f"{cost.reference_pairs} pairs computed; {duration(cost.wall_seconds)}{gpu}"
    )
