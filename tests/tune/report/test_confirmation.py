"""Terminal, report and model card describe finalists that were trained again."""

from __future__ import annotations

from dpo_train.evaluation.test_report import Difference
from tests.helpers.simulated_results import simulated
from tune.publish import model_card
from tune.report import page, terminal
from tune.run_folder.confirmation import Confirmation, Finalist
from tune.run_folder.confirmation import Run as SeedRun


def test_terminal_report_and_card_say_how_much_was_luck() -> None:
    results = simulated(6)
    assert results.winner is not None
    test = results.winner.test.with_others({"nll": 0.6, "margin": 2.0}).model_copy(update={
        "answer_tokens": 30.0,
        "over_base": {"ranking": Difference(difference=0.35, interval=[0.25, 0.45])},
    })  # fmt: skip
    runs = [SeedRun(id=f"abc123-00{n}", seed=n, value=v) for n, v in ((7, 0.71), (8, 0.77))]
    finalist = Finalist(trial=results.winner.trial, config={}, searched=0.91, runs=runs,
                        mean=0.74, drift=0.2)  # fmt: skip
    behind = Difference(difference=0.04, interval=[-0.01, 0.09])
    other = finalist.model_copy(update={"trial": "abc123-001", "behind": behind})
    confirmation = Confirmation(winner=results.winner.trial, searched="abc123-001", decided_by="x",
                                finalists=[finalist, other], searched_test=test)  # fmt: skip
    results = results.model_copy(update={
        "confirmation": confirmation,
        "winner": results.winner.model_copy(update={"test": test}),
        "base": {"test": results.base["test"].model_copy(update={"answer_tokens": 20.0})},
        "data": {"pairs": {"train": 9, "eval": 9, "test": 99}, "dropped": {}},
    })  # fmt: skip
    assert results.confirmation is not None
    shown = terminal.render(results)
    for phrase in ("search only", "confirmed", "0.710 0.770", "95 % -0.010 to +0.090",
                 "without the confirmation it would be abc123-001", "20.0", "30.0",
                 "that is +35.0 points (95 % interval +25.0 to +45.0): the winner is "
                 "better"):  # fmt: skip
        assert phrase in shown
    html = page.render(results)
    for phrase in ("winner of the search only, test", "0.710, 0.770", "0.040 [-0.010, +0.090]",
                 "Without the confirmation it would be abc123-001", "mean length"):  # fmt: skip
        assert phrase in html
    publishing = model_card.Publishing(
        "me/x", None, None, model_card.License("mit"), "full", "float32", {}
    )
    shown = str(model_card.render(results, publishing))
    assert "0.710, 0.770 (in the search: 0.910)" in shown
    assert "| tokens of a greedy answer, mean | 20.0 | 30.0 |" in shown
