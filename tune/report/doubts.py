"""What a person should doubt of a search or its winner: one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_train.evaluation.test_report import Numbers
from tune.config.objective import Objective
from tune.run_folder.less_drift import MOST_DRIFT
from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results
from tune.run_folder.winner_rule import SATURATED

_FEWEST_TRIALS = 4
_LONGER, _SHORTER = 1.5, 0.5
"""Answers of the winner, by those of the base, that are worth a sentence."""
_MORE_REPEATS = 0.1
"""By so much larger a share of answers that repeat themselves."""


def doubts(results: Results) -> list[str]:
    """The most important first; empty where there is nothing to doubt."""
    found = [saturated(results.objective, results.trials), _beyond_bounds(results)]
    if results.winner is not None:
        found += [_failed(results), _far(results), _length(results), _repeats(results)]
    return [sentence for sentence in found if sentence]


def saturated(objective: Objective, trials: Sequence[TrialRecord]) -> str:
    """Says that most trials have all pairs right, so that the objective can't tell them apart."""
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
        f"{len(reports)} reports): it cannot tell them apart; try `--set objective=eval/nll`"
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
        f"the winner's drift is {drift:.2g} nats a token: so far from the base its answers may no "
        "longer fit their questions"
    )
    if near := results.less_drift:
        sentence += (
            f"; the best report with at most {MOST_DRIFT:g} is that of {near.trial} at "
            f"{near.pairs_seen} pairs, {results.objective.metric} {near.value:.3f}, drift "
            f"{near.drift:.2g}"
        )
    bound = f"{{eval/drift: {{at_most: {MOST_DRIFT:g}}}}}"
    return f"{sentence}; to bound it: `--set 'constraints={bound}'`"


def _length(results: Results) -> str:
    base, winner = _tokens(results, "base"), _tokens(results, "winner")
    if not base or not winner or _SHORTER <= winner / base <= _LONGER:
        return ""
    return (
        f"the winner's answers have {winner:.0f} tokens on average and the base's {base:.0f}: some "
        "of what it gained may be length alone"
    )


def _repeats(results: Results) -> str:
    assert results.winner is not None
    here, base = results.winner.test.repeating, _of_base(results).repeating
    if here is None or base is None or here - base <= _MORE_REPEATS:
        return ""
    return (
        f'{here:.0%} of the winner\'s answers repeat themselves, like "the the the the", and '
        f"{base:.0%} of the base's: it was trained too far; lower the learning rate or bound the "
        "drift"
    )


def _tokens(results: Results, whose: str) -> float | None:
    assert results.winner is not None
    numbers = results.winner.test if whose == "winner" else _of_base(results)
    return numbers.answer_tokens


def _of_base(results: Results) -> Numbers:
    return results.base.get("test", Numbers())
