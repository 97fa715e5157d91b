"""The report in a browser: the table, the figures, and how they are linked."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.helpers.browser import Open
from tests.helpers.simulated_results import simulated
from tests.tune.report.test_page import hostile
from tune.report import page as report
from tune.run_folder.results import Results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results() -> Results:
    return simulated(24)


@pytest.fixture
def page(open_page: Open, results: Results, tmp_path: Path) -> Page:
    return opened(open_page, results, tmp_path)


def opened(open_page: Open, results: Results, folder: Path) -> Page:
    (folder / "report.html").write_text(report.render(results))
    return open_page((folder / "report.html").as_uri())


def rows(page: Page) -> Locator:
    return page.locator("#trials tbody tr")


def column(page: Page, name: str) -> list[str]:
    heads = page.locator("#trials thead th").all_inner_texts()
    index = [head.split()[0] for head in heads].index(name)
    return [row.locator("td").nth(index).inner_text() for row in rows(page).all()]


def drawn(page: Page, name: str) -> Locator:
    """Return a figure after it has been drawn."""
    figure = page.locator(f"#{name}")
    figure.scroll_into_view_if_needed()
    expect(figure.locator(".main-svg").first).to_be_visible()
    return figure


def test_the_best_trial_stands_first_and_a_click_sorts(page: Page, results: Results) -> None:
    assert column(page, "trial") == [trial.id for trial in results.ranked()]
    page.get_by_role("button", name="beta", exact=True).click()
    ascending = [float(text) for text in column(page, "beta")]
    assert ascending == sorted(ascending)
    page.get_by_role("button", name="beta", exact=True).click()
    assert [float(text) for text in column(page, "beta")] == ascending[::-1]
    # Trials without the axis come last in both directions.
    for _ in range(2):
        page.get_by_role("button", name="r", exact=True).click()
        texts = column(page, "r")
        assert "" in texts
        assert all(not text for text in texts[texts.index("") :])


def test_every_word_of_the_filter_must_be_in_a_row(page: Page, results: Results) -> None:
    page.get_by_label("Filter the trials").fill("STOPPED alpha=32")
    wanted = [
        trial.id
        for trial in results.ranked()
        if trial.state == "stopped" and trial.config["lora"] is not None
    ]
    assert wanted
    assert column(page, "trial") == wanted
    expect(page.locator("#count")).to_have_text(f"{len(wanted)} of 24 trials")
    page.get_by_label("Filter the trials").fill("batch_size=4")
    assert set(column(page, "batch_size")) == {"4"}


def test_a_row_under_the_pointer_lights_its_curve_and_a_click_keeps_it(page: Page) -> None:
    figure = drawn(page, "curves-0")
    rows(page).nth(2).hover()
    expect(figure.locator(".mark path:not(.halo)")).to_have_count(1)
    drawn_path = figure.locator(".mark path:not(.halo)").get_attribute("d")
    rows(page).nth(3).hover()
    assert figure.locator(".mark path:not(.halo)").get_attribute("d") != drawn_path
    page.locator("h1").hover()
    expect(figure.locator(".mark")).to_have_count(0)
    rows(page).nth(2).click()
    page.locator("h1").hover()
    figure.scroll_into_view_if_needed()
    assert figure.locator(".mark path:not(.halo)").get_attribute("d") == drawn_path
    expect(page.locator("#trials .pinned")).to_have_count(1)


def test_a_point_in_a_figure_lights_its_row_and_names_its_trial(page: Page) -> None:
    figure = drawn(page, "pareto-0")
    point = figure.locator(".trace").nth(1).locator("path.point").first
    box = point.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = figure.locator(".hoverlayer")
    expect(hover).to_contain_text("learning_rate=")
    lit = page.locator("#trials .lit button").inner_text()
    expect(hover).to_contain_text(lit)
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#trials .pinned button")).to_have_text(lit)


def test_the_tooltip_has_readable_values(page: Page, results: Results) -> None:
    number = next(n for n, trial in enumerate(results.trials) if trial.config["lora"])
    trial = results.trials[number]
    lines = page.evaluate(f"hoverText({number})").split("<br>")
    assert lines[0] == f"{trial.id}, {trial.state}"
    assert lines[1].startswith("learning_rate=")
    assert lines[4:6] == ["alpha=32", f"r={trial.config['lora.r']}"]


def test_a_click_on_a_point_brings_a_row_that_was_filtered_out(page: Page) -> None:
    page.get_by_label("Filter the trials").fill("nothing like this")
    expect(rows(page)).to_have_count(0)
    figure = drawn(page, "pareto-0")
    box = figure.locator(".trace").nth(1).locator("path.point").first.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#trials .pinned")).to_have_count(1)
    expect(page.get_by_label("Filter the trials")).to_have_value("")


def test_the_keyboard_is_enough_for_the_table(page: Page) -> None:
    page.get_by_label("Filter the trials").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#trials [aria-sort=descending]")).to_have_text("rank")
    rows(page).first.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#trials .pinned")).to_have_count(1)


def test_hostile_texts_are_text_beside_the_pointer_too(
    open_page: Open, results: Results, tmp_path: Path
) -> None:
    dialogs: list[str] = []
    page = opened(open_page, hostile(results), tmp_path)
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    rows(page).filter(has_text="onerror").first.hover()
    for name in ("curves-0", "slices-3", "parallel-0"):
        drawn(page, name)
    assert "<script>alert(1)" in page.evaluate("hoverText(0)").replace("&lt;", "<")
    assert "<" not in page.evaluate("hoverText(0)").replace("<br>", "")
    assert page.locator("img").count() == 0
    assert dialogs == []


def test_figures_change_with_the_colour_scheme(page: Page) -> None:
    figure = drawn(page, "curves-0")
    title = figure.locator(".xtitle")
    fill = "node => getComputedStyle(node).fill"
    assert title.evaluate(fill) == "rgb(26, 26, 26)"
    page.emulate_media(color_scheme="dark")
    expect(title).to_have_css("fill", "rgb(232, 232, 232)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    page.emulate_media(color_scheme="light")
    expect(title).to_have_css("fill", "rgb(26, 26, 26)")


def test_paper_is_white_and_has_all_trials_and_figures(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator(".figure .main-svg .xtitle").last).to_be_attached()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    title = page.locator("#curves-0 .xtitle")
    expect(title).to_have_css("fill", "rgb(26, 26, 26)")
    ids = page.locator("#trials tbody button")
    expect(ids).to_have_count(24)
    expect(ids.last).to_be_visible()
    expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(title).to_have_css("fill", "rgb(232, 232, 232)")


def test_a_running_searchs_page_renews_itself_and_keeps_what_was_chosen(
    open_page: Open, results: Results, tmp_path: Path
) -> None:
    running = results.model_copy(update={"ended": "", "winner": None})
    page = opened(open_page, running, tmp_path)
    page.clock.install()
    page.reload()
    page.get_by_label("Filter the trials").fill("stopped")
    page.evaluate("getSelection().removeAllRanges()")
    (tmp_path / "report.html").write_text(
        report.render(running.model_copy(update={"name": "renewed"}))
    )
    page.clock.fast_forward(30_000)
    assert page.locator("h1").inner_text() == "sim"
    page.clock.fast_forward(40_000)
    expect(page.locator("h1")).to_have_text("renewed")
    expect(page.get_by_label("Filter the trials")).to_have_value("stopped")
    assert set(column(page, "state")) == {"stopped"}


def test_a_finished_searchs_page_stays(page: Page) -> None:
    page.clock.install()
    page.reload()
    page.evaluate("window.isTheSame = true")
    page.clock.fast_forward(300_000)
    assert page.evaluate("window.isTheSame")


def test_many_trials_are_shown_on_request(open_page: Open, tmp_path: Path) -> None:
    page = opened(open_page, simulated(150), tmp_path)
    expect(rows(page)).to_have_count(100)
    page.get_by_role("button", name="Show 50 more").click()
    expect(rows(page)).to_have_count(150)
    expect(page.locator("#more")).to_be_hidden()
