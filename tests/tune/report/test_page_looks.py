"""Every text of the report can be read, and none is cut off or overlaps another, on a phone and on
a desktop, on a light page and on a dark one."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dpo_train.evaluation.test_report import Answer, Difference
from tests.helpers.browser import Open
from tests.helpers.page_looks import CUT, IN_FIGURES, LOW_CONTRAST
from tests.helpers.simulated_results import many, simulated
from tune.report import page as report
from tune.run_folder.results import Results

pytestmark = pytest.mark.slow


INKS = {"light": "rgb(26, 26, 26)", "dark": "rgb(232, 232, 232)"}
IS_DRAWN_IN = """ink => [...document.querySelectorAll(".figure .xtitle")]
    .every((title) => getComputedStyle(title).fill === ink)"""


def finished() -> Results:
    """Return results like those of the quickstart."""
    results = simulated(24)
    assert results.winner is not None
    over = {"ranking": Difference(difference=0.35, interval=[0.25, 0.45])}
    test = results.winner.test.model_copy(update={"over_base": over, "answer_tokens": 31.5})
    cut = Answer(prompt="Why? " * 40, base="No. " * 60, winner="Yes, because " * 40, chosen="",
                 base_is_cut=True)  # fmt: skip
    return results.model_copy(
        update={
            "winner": results.winner.model_copy(update={"test": test}),
            "answers": [cut, *results.answers],
            "data": {
                "pairs": {"train": 1200, "eval": 100, "test": 99},
                "dropped": {"longer than 512 tokens": 12},
            },
            "environment": {
                "python": "3.11.9",
                "versions": {"torch": "2.13.0", "trl": "1.16.0"},
                "hardware": {"CPU": 2.0, "GPU": 0.0, "kinds": []},
            },
        }
    )


def with_two_objectives() -> Results:
    return simulated(24, objective=["eval/accuracy", "eval/drift"])


def with_failures() -> Results:
    results = simulated(24)
    failed = {
        "state": "failed",
        "error": "OutOfMemory: no memory for 64 pairs at once: " + "x" * 90,
    }
    trials = [
        trial.model_copy(update=failed) if number % 3 == 0 else trial
        for number, trial in enumerate(results.trials)
    ]
    return results.model_copy(update={"trials": trials})


def running() -> Results:
    results = simulated(24)
    trials = [
        trial.model_copy(update={"state": "running", "ended": None})
        if trial.state == "stopped"
        else trial
        for trial in results.trials[:9]
    ]
    update = {"trials": trials, "winner": None, "ended": "", "answers": []}
    return results.model_copy(update=update)


def of_a_thousand() -> Results:
    return many(1000)


SEARCHES = [finished, with_two_objectives, with_failures, running, of_a_thousand]


def draw_all(page: Page) -> None:
    """Scroll through the page, so that every figure is drawn."""
    for figure in page.locator(".figure").all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator(".main-svg").first).to_be_visible()


@functools.cache
def rendered(search: Callable[[], Results]) -> str:
    return report.render(search())


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("search", SEARCHES)
def test_every_text_can_be_read(
    open_page: Open, tmp_path: Path, search: Callable[[], Results], width: int
) -> None:
    (tmp_path / "report.html").write_text(rendered(search))
    page = open_page((tmp_path / "report.html").as_uri(), width)
    draw_all(page)
    wrong = page.evaluate(IN_FIGURES)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(IS_DRAWN_IN, arg=INKS[scheme])
        count, low = page.evaluate(LOW_CONTRAST)
        assert count > 100
        wrong += [f"{scheme}: {text!r} has a contrast of {ratio:.2f}" for text, ratio in low]
    wider, cut = page.evaluate(CUT)
    assert wider == 0
    assert [*wrong, *cut] == []


def test_a_phone_shows_what_each_metric_means(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report.render(simulated(8)))
    page = open_page((tmp_path / "report.html").as_uri(), 390)
    meaning = page.get_by_text("share of pairs whose chosen answer the model itself finds likelier")
    box = meaning.first.bounding_box()
    assert box
    assert box["width"] > 250
    assert box["x"] + box["width"] <= 390
