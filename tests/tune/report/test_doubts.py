"""The doubts that a report raises about a search and its winner."""

from typing import Any

import pytest

from dpo_train.evaluation.test_split import repeats_itself
from tests.helpers.simulated_results import simulated
from tune.report import page, terminal
from tune.report.doubts import doubts, saturated
from tune.report.facts import luck
from tune.run_folder.less_drift import LessDrift
from tune.run_folder.luck import Luck
from tune.run_folder.results import Results


def joined(results: Results) -> str:
    return " | ".join(doubts(results))


def changed(results: Results, **numbers: Any) -> Results:
    assert results.winner is not None
    test = results.winner.test.model_copy(update=numbers.pop("test", {}))
    winner = results.winner.model_copy(update={"test": test, **numbers})
    return results.model_copy(update={"winner": winner})


def test_a_search_like_others_is_not_doubted() -> None:
    assert doubts(simulated(24)) == []


def test_an_objective_that_cannot_tell_trials_apart_is_said() -> None:
    results = simulated(12)
    full = [
        trial.model_copy(
            update={
                "metrics": {**trial.metrics, "eval/accuracy": 0.995},
                "curve": [{**report, "eval/accuracy": 0.995} for report in trial.curve],
            }
        )
        for trial in results.trials
    ]
    reports = sum(len(trial.curve) for trial in full)
    message = saturated(results.objective, full)
    assert message == (
        f"12 of 12 trials are within 0.01 of 1.000 in eval/accuracy ({reports} of {reports} "
        "reports), so it can't tell them apart; try `--set objective=eval/nll`"
    )
    assert saturated(results.objective, full[:3]) == ""
    assert saturated(simulated(12, objective="eval/nll").objective, full) == ""
    shown = results.model_copy(update={"trials": full})
    assert f"warning: {message}" in terminal.render(shown)
    assert "so it can&#39;t tell them apart" in page.render(shown)


def test_a_winner_far_from_the_base_is_reported_with_the_best_near_one() -> None:
    results = simulated(12)
    assert results.winner is not None
    near = LessDrift(trial="abc123-004", pairs_seen=128, value=0.81, drift=1.2)
    far = changed(results, eval={**results.winner.eval, "drift": 4.6})
    far = far.model_copy(update={"less_drift": near})
    assert "drift from the base is 4.6 nats per token" in joined(far)
    assert "abc123-004 at 128 pairs, eval/accuracy 0.810, drift 1.2" in joined(far)
    assert "constraints={eval/drift: {at_most: 1.5}}" in joined(far)
    bounded = simulated(12, constraints={"eval/drift": {"at_most": 9}})
    assert "drift from" not in joined(far.model_copy(update={"objective": bounded.objective}))


@pytest.mark.parametrize(
    ("numbers", "doubt"),
    [
        ({"failed": "loss is nan"}, "failed after the report that won, at"),
        ({"test": {"answer_tokens": 90.0}}, "have 90 tokens on average, the base's have 30"),
        ({"test": {"repeating": 0.5}}, "50% of the winner's answers repeat themselves"),
    ],
)
def test_other_doubts_about_a_winner(numbers: dict[str, Any], doubt: str) -> None:
    results = changed(simulated(12), **numbers)
    base = results.base["test"].model_copy(update={"answer_tokens": 30.0, "repeating": 0.0})
    assert doubt in joined(results.model_copy(update={"base": {"test": base}}))


def test_reports_beyond_a_bound_are_counted_and_none_of_them_wins() -> None:
    results = simulated(24, constraints={"eval/drift": {"at_most": 0.02}})
    allowed = [t for t in results.trials if t.metrics["eval/drift"] <= 0.02]
    beyond = len(results.trials) - len(allowed)
    assert beyond
    assert f"{beyond} of 24 trials have no report with eval/drift at most 0.02" in joined(results)
    assert results.winner is not None
    assert results.winner.trial in [trial.id for trial in allowed]
    assert "  no report has eval/drift at most 0.02" in terminal.render(results, rows=24)
    nothing = results.model_copy(update={"winner": None, "trials": [
        trial for trial in results.trials if trial not in allowed]})  # fmt: skip
    assert "there is no winner: no report has eval/drift at most 0.02" in terminal.render(nothing)


def test_the_luck_in_the_number_is_printed_beside_the_test_split() -> None:
    found = Luck(largest=0.983, chosen=0.975, expected=0.956, interval=[0.93, 0.98])
    results = simulated(12).model_copy(update={"luck": found})
    assert luck(results) == (
        "the largest eval/accuracy of the search was 0.983; on new prompts expect 0.956 (95 % "
        "interval 0.93 to 0.98); on the 99 test pairs it is 0.900"
    )
    assert luck(results) in terminal.render(results)
    assert "on new prompts expect 0.956" in page.render(results)


@pytest.mark.parametrize("text", ["air air air air", "Well, to do so to do so to do so to do so"])
def test_an_answer_that_repeats_itself_is_seen(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize("text", ["", "no no no", "It is had had had, he said.", "ha haha hahaha"])
def test_an_answer_that_does_not_repeat_itself_is_none(text: str) -> None:
    assert not repeats_itself(text)
