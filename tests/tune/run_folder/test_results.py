"""How a notebook and an interpreter show results."""

import html

from tests.helpers.simulated_results import simulated


def test_results_are_a_line_in_an_interpreter() -> None:
    results = simulated(24)
    assert results.winner is not None
    text = repr(results)
    assert text == str(results)
    assert text.startswith("<Results of sim in ")
    assert f"winner {results.winner.trial}: " in text
    assert len(text.splitlines()) == 1
    assert len(text) < 300


def test_a_notebook_shows_the_best_trials_as_a_table_and_escapes_them() -> None:
    results = simulated(24)
    best = results.ranked()[0]
    hostile = best.model_copy(update={"config": {"lora.r": "<script>alert(1)</script>"}})
    trials = [hostile if trial.id == best.id else trial for trial in results.trials]
    shown = results.model_copy(update={"trials": trials})._repr_html_()
    assert shown.count("<tr>") == 11
    assert "… and 14 more" in shown
    assert best.id in shown
    assert "<script>" not in shown
    assert html.escape("r=<script>alert(1)</script>") in shown


def test_a_trial_has_the_pairs_it_trained_on_and_those_of_its_best_report() -> None:
    results = simulated(24)
    rows = {row["id"]: row for row in results.rows()}
    for trial in results.trials:
        row = rows[trial.id]
        assert row["pairs_trained"] == trial.curve[-1]["pairs_seen"]
        assert row["pairs_at_best_report"] == trial.metrics["pairs_seen"]
    assert any(row["pairs_trained"] > row["pairs_at_best_report"] for row in rows.values())
