"""A new metric is a function of pairs and an entry in the catalogue. It then appears everywhere."""

from typing import Any

import numpy as np
import pytest

from dpo_train.config_base import parse
from dpo_train.errors import InputError
from dpo_train.scoring import metrics
from dpo_train.scoring.metrics import Floats, Metric, PairLogps
from tests.helpers.simulated_results import SEARCH, simulated
from tests.test_docs import documented_metrics, metric_table
from tune.config.schema import SearchConfig
from tune.publish import model_card
from tune.report import page, tables, terminal
from tune.run_folder.results import Results
from tune.tracking import wandb_payload as payload

NAME = "eval/worst"
MEANING = "mean of the lower log-ratio of the two answers"


def worst(pairs: PairLogps) -> Floats:
    return np.minimum(metrics.chosen_shift(pairs), metrics.rejected_shift(pairs))


def search(**changes: Any) -> SearchConfig:
    return parse(SearchConfig, {**SEARCH, **changes}, {}, "sim.yaml")


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Metric:
    new = Metric(NAME, MEANING, "nats", direction="max", of_pairs=worst)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, new))
    return new


@pytest.fixture
def results(catalogue: Metric) -> Results:
    found = simulated(24, objective=catalogue.name)
    found.data = {"pairs": {"eval": 100}, "dropped": {}}
    assert found.winner is not None
    found.winner.test.metrics["worst"] = -1.25
    return found


def test_an_unknown_metric_is_refused() -> None:
    for field in ({"objective": NAME}, {"stopping": {"metric": NAME}}, {"constraints": {NAME: {}}}):
        with pytest.raises(InputError, match="there is no 'eval/worst'"):
            search(**field)


@pytest.mark.usefixtures("catalogue")
def test_it_can_be_an_objective_compared_at_the_rungs_and_bounded() -> None:
    bounds = {NAME: {"at_least": -2}}
    config = search(objective=[NAME, "eval/drift"], stopping={"metric": NAME}, constraints=bounds)
    assert config.goal.mode == "max"
    assert config.goal.bounds_text == "eval/worst at least -2"


def test_it_is_reported_and_stands_in_every_table_of_trials(results: Results) -> None:
    assert all(NAME in report for trial in results.trials for report in trial.curve)
    assert NAME in results.columns()
    assert NAME in terminal.to_csv(results).splitlines()[0].split(",")
    assert NAME in payload.table(search(objective=NAME), results).columns
    assert payload.definition(search(objective=NAME))["metric"]["name"] == NAME


def test_it_is_shown_and_explained_of_the_winner(results: Results) -> None:
    assert "  worst, nats                              -        -1.250" in terminal.render(results)
    rows = {row[0]: row for row in tables.numbers(results)[1]}
    assert rows["worst"][2] == "-1.250"
    assert rows["worst"][-1] == f"{MEANING}, in nats"
    assert f"{MEANING}, in nats" in page.render(results)
    publishing = model_card.Publishing(
        repo="me/x", base=None, dataset=None, license=model_card.License("mit"), kind="full",
        dtype="float32",
        pages={},
    )  # fmt: skip
    card = model_card.render(results, publishing)
    assert f"| worst: {MEANING}, in nats | – | -1.250 |" in str(card)
    assert "worst" in [each.metric_type for each in card.data.eval_results or []]


@pytest.mark.usefixtures("catalogue")
def test_the_documentation_is_found_to_lack_it() -> None:
    assert f"| `{NAME}` | max | nats | – | {MEANING} |" in metric_table()
    assert documented_metrics() != metric_table()
