"""The report of a search, read as a browser would: parsed, its figures loaded from their JSON."""

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dpo_train.config import TrainConfig
from dpo_train.evaluation.test_report import Difference
from tests.conftest import ROOT, Run
from tests.helpers.driver import Driver
from tests.helpers.simulated_results import SEARCH, simulated
from tests.helpers.simulated_search import children
from tune import load_results
from tune.config.schema import SearchConfig
from tune.report import page
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results
from tune.run_folder.yaml_file import write_yaml

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What stands in a page: ids, addresses, running text, the content of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(html)
        self.figures: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in = tag
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data


@pytest.fixture(scope="module")
def results() -> Results:
    return simulated(24)


def parsed(results: Results) -> Page:
    return Page(page.render(results))


def names(figure: dict[str, Any]) -> set[str]:
    return {trace.get("name", "") for trace in figure["data"]}


def test_every_figure_has_its_place_and_no_address_leads_outside(results: Results) -> None:
    shown = parsed(results)
    assert shown.addresses == []
    assert len(shown.scripts) == 3
    assert {name.rpartition("-")[0] for name in shown.figures} == {
        "history", "parallel", "importance", "curves", "compared", "pareto", "slices", "cost",
    }  # fmt: skip
    assert set(shown.figures) == set(shown.ids) - {"figures", "recipe"}
    assert sum(name.startswith("slices-") for name in shown.figures) == 5


def test_the_answer_comes_first_with_test_numbers_and_intervals(results: Results) -> None:
    text = parsed(results).text
    winner = results.winner
    assert winner is not None
    verdict = (
        "On 99 test pairs that decided nothing, the winner finds the chosen answer likelier in "
        "85.0% (95 % interval 80.0–90.0) and the base in 50.0% (95 % interval 40.0–60.0)."
    )
    assert verdict in text
    assert "do not count on a difference" not in text
    assert text.index(winner.trial) < text.index("Optimization history")
    assert "0.850\n[0.80" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (
            -0.01,
            0.11,
            "Pair by pair that is +5.0 points (95 % interval -1.0 to +11.0): do not count",
        ),
        (0.02, 0.08, "the winner is better"),
        (-0.2, -0.1, "the winner is worse"),
    ],
)
def test_the_difference_pair_by_pair_is_the_verdict(
    results: Results, low: float, high: float, said: str
) -> None:
    assert results.winner is not None
    over = {"ranking": Difference(difference=0.05, interval=[low, high])}
    test = results.winner.test.model_copy(update={"over_base": over})
    winner = results.winner.model_copy(update={"test": test})
    assert said in parsed(results.model_copy(update={"winner": winner})).text


def test_the_yaml_on_the_page_is_the_winners_configuration(results: Results) -> None:
    winner = results.winner
    assert winner is not None
    html = page.render(results)
    recipe = Page(html[html.index("<pre") : html.index("</pre>")] + "<script>{}</script>").text
    wanted = SearchConfig.model_validate(results.search).trial(winner.config)
    assert TrainConfig.model_validate(YAML(typ="safe", pure=True).load(recipe)) == wanted


def test_curves_show_rungs_and_where_trials_were_stopped(results: Results) -> None:
    curves = parsed(results).figures["curves-0"]
    assert {shape["x0"] for shape in curves["layout"]["shapes"]} == {64, 192}
    assert names(curves) == {"stopped", "failed", "finished", "winner"}
    crosses = next(t for t in curves["data"] if t["name"] == "stopped" and t["mode"] == "markers")
    assert crosses["marker"]["symbol"] == "x"
    stopped = [record for record in results.trials if record.state == "stopped"]
    assert crosses["x"] == [record.pairs_seen for record in stopped]


def test_no_point_lies_above_and_left_of_the_front(results: Results) -> None:
    front, *others = parsed(results).figures["pareto-0"]["data"]
    corners = list(zip(front["x"], front["y"], strict=True))
    assert corners[0] == (0, 0.5)
    assert corners == sorted(corners)
    for trace in others:
        for drift, accuracy in zip(trace["x"], trace["y"], strict=True):
            assert accuracy <= max(y for x, y in corners if x <= drift)


def test_what_stopping_saved_is_an_estimate_from_each_trials_own_speed(results: Results) -> None:
    stopped = [record for record in results.trials if record.state == "stopped"]
    pairs = sum(512 - record.pairs_seen for record in stopped)
    assert stopped
    shown = parsed(results)
    assert f"Saved is an estimate: the {pairs} pairs" in shown.text
    bar = next(t for t in shown.figures["cost-0"]["data"] if t["y"] == ["saved (estimate)"])
    minutes = sum((512 - record.pairs_seen) * 6 / record.pairs_seen for record in stopped) / 60
    assert bar["x"] == [pytest.approx(minutes)]


def test_failures_stand_with_their_errors(results: Results) -> None:
    failed = [record for record in results.trials if record.state == "failed"]
    text = parsed(results).text
    assert failed
    assert all(record.error and record.error in text for record in failed)


def test_what_comes_from_the_search_is_text_and_never_markup(results: Results) -> None:
    failed = results.trials[0].model_copy(update={"state": "failed", "error": HOSTILE})
    hostile = results.model_copy(
        update={
            "name": HOSTILE,
            "trials": [failed, *results.trials[1:]],
            "answers": [dict.fromkeys(("prompt", "base", "winner", "chosen"), HOSTILE)],
            "ended": f"budget {HOSTILE}",
        }
    )
    html = page.render(hostile)
    assert "<script>alert" not in html
    assert "<img" not in html
    shown = parsed(hostile)
    assert "img" not in shown.tags
    assert len(shown.scripts) == 3
    assert shown.text.count("alert(1)") >= 6
    hovers = re.findall(r'"text":\[.*?\]', shown.scripts[0])
    assert any("alert(1)" in hover for hover in hovers)
    assert not any("<script" in hover for hover in hovers)


def test_an_unfinished_search_says_how_it_stands(results: Results) -> None:
    running = [
        record.model_copy(update={"state": "running"}) if record.state == "stopped" else record
        for record in results.trials[:8]
    ]
    pending = TrialRecord(id="abc123-008", config=results.trials[8].config)
    update = {"trials": [*running, pending], "winner": None, "ended": "", "answers": []}
    shown = parsed(results.model_copy(update=update))
    assert "of 24 trials ended" in shown.text
    assert "No winner yet. Best so far: abc123-" in shown.text
    assert "running" in names(shown.figures["curves-0"])


def test_a_search_that_has_just_begun_has_sentences_for_figures(results: Results) -> None:
    shown = parsed(results.model_copy(update={"trials": [], "winner": None, "ended": ""}))
    assert shown.figures == {}
    assert "No trial was measured" in shown.text


def test_importance_is_left_out_where_nothing_can_be_compared(results: Results) -> None:
    one_axis = simulated(24, space={"dpo.beta": SEARCH["space"]["dpo.beta"]})
    assert "fewer than two axes" in parsed(one_axis).text
    few = [record for record in results.trials if record.state == "finished"][:3]
    shown = parsed(results.model_copy(update={"trials": few, "winner": None}))
    assert "This needs 4 finished trials; there are 3." in shown.text
    assert "importance-0" not in shown.figures
    alike = [record.model_copy(update={"metrics": few[0].metrics}) for record in few * 3]
    assert "too alike" in parsed(results.model_copy(update={"trials": alike, "winner": None})).text


def test_results_from_before_search_was_kept_still_make_a_page(
    results: Results, tmp_path: Path
) -> None:
    content = json.loads(results.to_json())
    del content["search"]
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps(content))
    old = load_results(tmp_path)
    assert old.search == {}
    shown = parsed(old)
    assert {"curves-0", "pareto-0", "cost-0"} == set(shown.figures)
    assert "does not say what was searched" in shown.text


def test_a_report_needs_no_ray_and_no_torch() -> None:
    script = (
        "import sys, tune.report.page, tune.report.figures; "
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout == "set()\n", done.stderr


def test_five_hundred_trials_fit_in_ten_megabytes() -> None:
    html = page.render(simulated(500))
    assert len(html.encode()) < 10_000_000
    assert "parallel-0" in Page(html).figures


def test_the_page_is_refreshed_beside_a_search_and_a_failure_only_warns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path)
    write_yaml(tmp_path / "search.yaml", driver.config)
    trial = driver.start()
    driver.report(trial, 64, 0.9)
    record = tmp_path / "trials" / f"{trial.config['task'].name}.json"
    content = record.read_text()
    record.write_text("cut off")
    monkeypatch.setattr(page, "_SHARE", 0)
    said, deadline = "", time.monotonic() + 120
    with page.keep_fresh(RunFolder.at(tmp_path), pause=0.01):
        while not (tmp_path / "report.html").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
            said += capfd.readouterr().out
            if "warning: the report could not be written (InputError: " in said:
                record.write_text(content)
    assert record.read_text() == content
    assert trial.config["task"].name in (tmp_path / "report.html").read_text()


def test_a_page_in_the_making_does_not_hold_up_the_end_of_a_search(tmp_path: Path) -> None:
    began = time.monotonic()
    with page.keep_fresh(RunFolder.at(tmp_path), pause=0.01):
        time.sleep(0.3)  # its process imports for longer
    assert time.monotonic() - began < 5
    assert not any("tune.report.page" in command for _, command in children(os.getpid()))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_search_ends_with_its_report(tmp_path: Path, dpo_tune: Run) -> None:
    yaml = tmp_path / "sim.yaml"
    yaml.write_text(
        "trainer: simulated\ntrials: 3\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
        "resources: {cpus: 0.5}\n"
    )
    done = dpo_tune("run", yaml)
    assert done.returncode == 0, done.stderr
    assert "the report: runs/sim/report.html" in done.stdout
    path = tmp_path / "runs" / "sim" / "report.html"
    assert load_results(path.parent).search["space"]["dpo.beta"]["uniform"] == [0.1, 0.2]
    assert "3 of 3 trials ended" in Page(path.read_text()).text
    path.unlink()
    again = dpo_tune("report", "sim")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{path}\n"
    assert path.exists()
