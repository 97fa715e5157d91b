"""The trials that each figure shows, and the ranges of its axes."""

import json
import math
from typing import Any

import pytest

from tests.helpers.report_page import drawn, names, numbers, parsed
from tests.helpers.simulated_results import SEARCH, many, simulated
from tune.report import scene as scenes
from tune.report.looks import LOOKS, SHADES, themes
from tune.report.scene import Scene
from tune.run_folder.results import Results


@pytest.fixture(scope="module")
def results() -> Results:
    return simulated(24)


@pytest.fixture(scope="module")
def figures(results: Results) -> dict[str, Any]:
    """Return the figures as the page has them."""
    return parsed(results).figures


def states(results: Results, some: set[int]) -> set[str]:
    return {results.trials[number].state for number in some}


def test_curves_show_rungs_and_where_trials_were_stopped(
    results: Results, figures: dict[str, Any]
) -> None:
    curves = figures["curves-0"]
    assert {shape["x0"] for shape in curves["layout"]["shapes"]} == {64, 192}
    assert names(curves) == {"stopped", "failed", "finished", "winner"}
    crosses = next(t for t in curves["data"] if t["name"] == "stopped" and t["mode"] == "markers")
    assert crosses["marker"]["symbol"] == "x"
    stopped = [record for record in results.trials if record.state == "stopped"]
    assert crosses["x"] == [record.pairs_seen for record in stopped]
    assert [results.trials[number] for number in crosses["customdata"]] == stopped


def test_no_point_lies_above_and_left_of_the_front(figures: dict[str, Any]) -> None:
    front, *others = figures["pareto-0"]["data"]
    corners = list(zip(front["x"], front["y"], strict=True))
    assert corners[0] == (0, 0.5)
    assert corners == sorted(corners)
    for trace in others:
        for drift, accuracy in zip(trace["x"], trace["y"], strict=True):
            assert accuracy <= max(y for x, y in corners if x <= drift)


@pytest.mark.parametrize("name", ["history", "parallel", "contour", "curves", "pareto", "timeline"])
def test_stopped_trials_are_in_every_figure(
    results: Results, figures: dict[str, Any], name: str
) -> None:
    measured = {number for number, trial in enumerate(results.trials) if trial.metrics}
    assert numbers(figures[f"{name}-0"]) == measured
    assert "stopped" in states(results, measured)


def test_slices_show_all_trials_that_have_the_axis(
    results: Results, figures: dict[str, Any]
) -> None:
    paths = list(SEARCH["space"])
    for index, path in enumerate(paths):
        having = {number for number, trial in enumerate(results.trials) if path in trial.config}
        assert numbers(figures[f"slices-{index}"]) == having


def test_importance_counts_the_stopped_trials(results: Results) -> None:
    stopped = [t.model_copy(update={"state": "stopped"}) for t in results.trials]
    (figure,) = drawn(results.model_copy(update={"trials": stopped}))["importance"]
    assert set(figure.data[0].y) == {"learning_rate", "beta", "batch_size", "lora", "r"}


def test_importance_is_left_out_where_nothing_can_be_compared(results: Results) -> None:
    one_axis = simulated(24, space={"dpo.beta": SEARCH["space"]["dpo.beta"]})
    assert "fewer than two axes" in str(drawn(one_axis)["importance"])
    few = [record for record in results.trials if record.state == "finished"][:3]
    of_few = drawn(results.model_copy(update={"trials": few, "winner": None}))
    assert of_few["importance"] == "This needs 4 measured trials; there are 3."
    alike = [record.model_copy(update={"metrics": few[0].metrics}) for record in few * 3]
    of_alike = drawn(results.model_copy(update={"trials": alike, "winner": None}))
    assert "too similar" in str(of_alike["importance"])


def test_axes_cover_the_searched_range(results: Results) -> None:
    narrow = [
        trial.model_copy(update={"config": {**trial.config, "dpo.beta": 0.3}})
        for trial in results.trials
    ]
    figures = parsed(results.model_copy(update={"trials": narrow})).figures
    by_title = {figures[f"slices-{n}"]["layout"]["xaxis"]["title"]["text"]: figures[f"slices-{n}"]
                for n in range(5)}  # fmt: skip
    low, high = by_title["beta"]["layout"]["xaxis"]["range"]
    assert low < 0.05
    assert high > 0.5
    rate = by_title["learning_rate"]["layout"]["xaxis"]
    assert rate["type"] == "log"
    assert rate["range"][0] < -5
    assert rate["range"][1] > math.log10(2)
    texts = [note["text"] for note in figures["parallel-0"]["layout"]["annotations"]]
    assert {"0.05", "0.5", "1e-05", "2", "4", "64"} <= set(texts)
    assert {"null", "alpha=32"} <= set(texts)
    assert "alpha': 32" not in json.dumps(figures)


def test_a_trial_without_an_axis_crosses_it_at_a_dash(
    results: Results, figures: dict[str, Any]
) -> None:
    without = next(n for n, trial in enumerate(results.trials) if "lora.r" not in trial.config)
    (trace,) = [t for t in figures["parallel-0"]["data"] if without in t["customdata"]]
    first = trace["customdata"].index(without)
    dash = next(n for n in figures["parallel-0"]["layout"]["annotations"] if n["text"] == "–")
    assert trace["y"][first + 5] == dash["y"]
    assert trace["x"][first + 5] == dash["x"] == 5


def test_the_best_lines_have_the_strongest_shade(results: Results, figures: dict[str, Any]) -> None:
    shade = {n: trace["meta"] for trace in figures["parallel-0"]["data"]
             for n in trace["customdata"] if n is not None}  # fmt: skip
    ranked = sorted(shade, key=lambda n: results.trials[n].metrics["eval/accuracy"])
    assert shade[ranked[0]] == 0
    assert shade[ranked[-1]] == SHADES - 1


def test_a_contour_needs_two_ranges() -> None:
    space = {"dpo.beta": {"uniform": [0.1, 0.5]}, "optim.batch_size": {"choice": [4, 8]}}
    assert drawn(simulated(12, space=space))["contour"] == (
        "This needs two axes that are ranges of numbers."
    )


def test_a_contour_is_blank_far_from_all_trials(figures: dict[str, Any]) -> None:
    surface = figures["contour-0"]["data"][0]["z"]
    flat = [value for row in surface for value in row]
    assert None in flat
    known = [value for value in flat if value is not None]
    assert 0.4 < min(known) < max(known) < 1


def test_losses_stand_side_by_side(results: Results, figures: dict[str, Any]) -> None:
    titles = [figures[f"losses-{n}"]["layout"]["yaxis"]["title"]["text"] for n in (0, 1)]
    assert titles == ["train/loss", "eval/loss"]
    old = [
        trial.model_copy(update={
            "metrics": {n: v for n, v in trial.metrics.items() if n != "train/loss"},
        })
        for trial in results.trials
    ]  # fmt: skip
    assert "losses" not in drawn(results.model_copy(update={"trials": old}))


def test_thousands_of_trials_are_thinned_to_the_best_and_others_evenly() -> None:
    results = many(3000)
    scene = Scene(results)
    assert len(scene.shown) == scenes.MOST_TRIALS
    best = {trial.id for trial in results.ranked()[:250]}
    assert best <= {trial.id for trial in scene.shown.values()}
    assert all(results.trials[number] is trial for number, trial in scene.shown.items())
    assert scene.omitted.startswith("the figures show 1,000 of 3,000 trials")
    assert Scene(simulated(24)).omitted == ""


def test_long_curves_keep_their_ends_and_say_that_they_are_thinned(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "MOST_POINTS", 24 * 3)
    monkeypatch.setattr(scenes, "_FEWEST_POINTS", 3)
    scene = Scene(results)
    longest = max((trial.curve for trial in results.trials), key=len)
    assert len(longest) > 3
    thin = scene.thin(longest)
    assert [thin[0], thin[-1]] == [longest[0], longest[-1]]
    assert len(thin) == 3
    assert "curves are drawn with at most 3 of their reports" in scene.omitted


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("look", LOOKS)
def test_marks_can_be_distinguished_from_the_page(look: str, scheme: str) -> None:
    ground = themes()[scheme]["template"]["layout"]["hoverlabel"]["bgcolor"]
    one, other = luminance(LOOKS[look][0]), luminance(ground)
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 3
