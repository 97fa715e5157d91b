"""Warnings about a search or its winner: one sentence for each reason to doubt them."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_train.evaluation.test_report import Numbers
from tune.config.objective import Objective
from tune.run_folder.less_drift import MOST_DRIFT
from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord
from tune.run_folder.winner_rule import SATURATED

_FEWEST_TRIALS = 4
_LONGER, _SHORTER = 1.5, 0.5
"""Length of the winner's answers relative to the base's, beyond which a warning is given."""
_MORE_REPEATS = 0.1
"""A warning is given if the winner's share of repeating answers is larger than the base's by this
much."""


def doubts(results: Results) -> list[str]:
    """Returns the warnings, the most important first; empty if there is nothing to doubt."""
    found = [saturated(results.objective, results.trials), _beyond_bounds(results)]
    if results.winner is not None:
        found += [_failed(results), _far(results), _length(results), _repeats(results)]
    return [sentence for sentence in found if sentence]


def saturated(objective: Objective, trials: Sequence[TrialRecord]) -> str:
    """Returns a warning if half of the trials have nearly all pairs right, else an empty string."""
    measured = [trial for trial in trials if trial.metrics]
    if not objective.is_share or len(measured) < _FEWEST_TRIALS:
        return ""
    name = objective.metric
    full = [trial for trial in measured if trial.metrics.get(name, 0) >= SATURATED]
    if 2 * len(full) < len(measured):
        return ""
    reports = [report for trial in measured for report in trial.curve]
    tied = sum(report.get(name, 0) >= SATURATED for report in reports)
    return (
        f"{len(full)} of {len(measured)} trials are within 0.01 of 1.000 in {name} ({tied} of "
        f"{len(reports)} reports), so it can't tell them apart; try `--set objective=eval/nll`"
    )


def _beyond_bounds(results: Results) -> str:
    objective = results.objective
    measured = [trial for trial in results.trials if trial.metrics]
    beyond = [trial for trial in measured if not objective.allows(trial.metrics)]
    if not beyond or not objective.bounds:
        return ""
    return (
        f"{len(beyond)} of {len(measured)} trials have no report with {objective.bounds_text}, so "
        "they can't win"
    )


def _failed(results: Results) -> str:
    winner = results.winner
    if winner is None or not winner.failed:
        return ""
    return (
        f"the winner's training failed after the report that won, at {winner.pairs_seen} pairs: "
        f"{winner.failed}"
    )


def _far(results: Results) -> str:
    winner = results.winner
    drift = winner.eval.get("drift", 0.0) if winner else 0.0
    if drift <= MOST_DRIFT or "eval/drift" in results.objective.bounds:
        return ""
    sentence = (
        f"the winner's drift from the base is {drift:.2g} nats per token: with so much its answers "
        "may no longer fit their questions"
    )
    if near := results.less_drift:
        sentence += (
            f"; the best report with a drift of at most {MOST_DRIFT:g} is that of {near.trial} at "
            f"{near.pairs_seen} pairs, {results.objective.metric} {near.value:.3f}, drift "
            f"{near.drift:.2g}"
        )
    bound = f"{{eval/drift: {{at_most: {MOST_DRIFT:g}}}}}"
    return f"{sentence}; to limit it: `--set 'constraints={bound}'`"


def _length(results: Results) -> str:
    base, winner = _tokens(results, "base"), _tokens(results, "winner")
    if not base or not winner or _SHORTER <= winner / base <= _LONGER:
        return ""
    return (
        f"the winner's answers have {winner:.0f} tokens on average, the base's have {base:.0f}: "
        "some of its gain may come from the length alone"
    )


def _repeats(results: Results) -> str:
    assert results.winner is not None
    winner, base = results.winner.test.repeating, _base_numbers(results).repeating
    if winner is None or base is None or winner - base <= _MORE_REPEATS:
        return ""
    return (
        f'{winner:.0%} of the winner\'s answers repeat themselves, like "the the the the", and '
        f"{base:.0%} of the base's: it was trained too far; lower the learning rate or limit the "
        "drift"
    )


def _tokens(results: Results, whose: str) -> float | None:
    assert results.winner is not None
    numbers = results.winner.test if whose == "winner" else _base_numbers(results)
    return numbers.answer_tokens


def _base_numbers(results: Results) -> Numbers:
    return results.base.get("test", Numbers())
