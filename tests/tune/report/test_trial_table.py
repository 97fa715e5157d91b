"""The table of all trials."""

from tests.helpers.simulated_results import simulated
from tune.report.trial_table import Cell, TrialTable, trial_table


def values(table: TrialTable, kind: str) -> list[list[Cell]]:
    """Return the cells of each column of a kind."""
    indices = [n for n, column in enumerate(table["columns"]) if column["kind"] == kind]
    return [[row[index] for row in table["rows"]] for index in indices]


def test_each_trial_has_a_row_in_the_order_of_the_records() -> None:
    results = simulated(12)
    table = trial_table(results)
    (ids,) = values(table, "trial")
    assert ids == [trial.id for trial in results.trials]
    (ranks,) = values(table, "rank")
    assert sorted(ranks) == list(range(1, 13))  # type: ignore[type-var]
    assert ids[ranks.index(1)] == results.ranking[0]


def test_the_objectives_stand_first_and_the_training_loss_among_the_metrics() -> None:
    table = trial_table(simulated(6, objective=["eval/nll", "eval/drift"]))
    metrics = [column["name"] for column in table["columns"] if column["kind"] == "metric"]
    assert metrics[:2] == ["nll", "drift"]
    assert metrics[-1] == "train loss"
    assert {"accuracy", "ranking", "loss"} < set(metrics)
    axes = [column["name"] for column in table["columns"] if column["kind"] == "axis"]
    assert axes == ["learning_rate", "beta", "batch_size", "lora", "r"]


def test_values_are_as_people_read_them_and_inactive_axes_empty() -> None:
    results = simulated(12)
    *_, lora, rank = values(trial_table(results), "axis")
    assert set(lora) == {"null", "alpha=32"}
    for trial, cell in zip(results.trials, rank, strict=True):
        assert cell == trial.config.get("lora.r")
