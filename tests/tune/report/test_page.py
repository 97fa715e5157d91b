"""The report of a search, parsed like in a browser, with its figures loaded from their JSON."""

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from ruamel.yaml import YAML

from dpo_train.config import TrainConfig
from dpo_train.evaluation.test_report import Answer, Difference
from tests.conftest import ROOT, Run
from tests.helpers.driver import Driver
from tests.helpers.report_page import Page, names, parsed
from tests.helpers.simulated_results import many, simulated
from tests.helpers.simulated_search import children
from tune import load_results
from tune.config.schema import SearchConfig
from tune.report import page
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord
from tune.run_folder.yaml_file import write_yaml

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def results() -> Results:
    return simulated(24)


def test_every_figure_has_its_place_and_no_address_leads_outside(results: Results) -> None:
    shown = parsed(results)
    assert shown.addresses == []
    assert len(shown.scripts) == 3
    assert {name.rpartition("-")[0] for name in shown.figures} == {
        "history", "parallel", "importance", "curves", "compared", "losses", "pareto", "slices",
        "contour", "cost", "timeline",
    }  # fmt: skip
    others = {"data", "plotly", "recipe", "trials", "filter", "count", "more"}
    assert set(shown.figures) == set(shown.ids) - others
    assert sum(name.startswith("slices-") for name in shown.figures) == 5


def test_the_answer_comes_first_with_test_numbers_and_intervals(results: Results) -> None:
    text = parsed(results).text
    winner = results.winner
    assert winner is not None
    verdict = (
        "On 99 test pairs that the search never used, the winner prefers the chosen answer in "
        "85.0% (95 % interval 80.0–90.0) and the base in 50.0% (95 % interval 40.0–60.0)."
    )
    assert verdict in text
    assert "may be luck" not in text
    assert text.index(winner.trial) < text.index("Optimization history")
    assert "0.850\n[0.80" in text


@pytest.mark.parametrize(
    ("low", "high", "phrase"),
    [
        (
            -0.01,
            0.11,
            "Pair by pair, that is +5.0 points (95 % interval -1.0 to +11.0): the difference may",
        ),
        (0.02, 0.08, "the winner is better"),
        (-0.2, -0.1, "the winner is worse"),
    ],
)
def test_the_difference_pair_by_pair_is_the_verdict(
    results: Results, low: float, high: float, phrase: str
) -> None:
    assert results.winner is not None
    over = {"ranking": Difference(difference=0.05, interval=[low, high])}
    test = results.winner.test.model_copy(update={"over_base": over})
    winner = results.winner.model_copy(update={"test": test})
    assert phrase in parsed(results.model_copy(update={"winner": winner})).text


def test_the_yaml_on_the_page_is_the_winners_configuration(results: Results) -> None:
    winner = results.winner
    assert winner is not None
    html = page.render(results)
    recipe = unescape(re.search("<pre[^>]*>(.*?)</pre>", html, re.DOTALL)[1])  # type: ignore[index]
    wanted = SearchConfig.model_validate(results.search).trial(winner.config)
    assert TrainConfig.model_validate(YAML(typ="safe", pure=True).load(recipe)) == wanted


def test_what_stopping_saved_is_an_estimate_from_each_trials_own_speed(results: Results) -> None:
    stopped = [record for record in results.trials if record.state == "stopped"]
    pairs = sum(512 - record.pairs_seen for record in stopped)
    assert stopped
    shown = parsed(results)
    assert f"The saving is an estimate: the {pairs} pairs" in shown.text
    bar = next(t for t in shown.figures["cost-0"]["data"] if t["y"] == ["saved (estimate)"])
    minutes = sum((512 - record.pairs_seen) * 6 / record.pairs_seen for record in stopped) / 60
    assert bar["x"] == [pytest.approx(minutes)]


def test_failures_stand_with_their_errors(results: Results) -> None:
    failed = [record for record in results.trials if record.state == "failed"]
    text = parsed(results).text
    assert failed
    assert all(record.error and record.error in text for record in failed)


def hostile(results: Results) -> Results:
    """Put markup wherever text comes from outside."""
    failed = results.trials[0].model_copy(update={"state": "failed", "error": HOSTILE})
    lora = {"choice": [None, {"alpha": 32}, HOSTILE]}
    search = {**results.search, "space": {**results.search["space"], "lora": lora}}
    extreme = results.trials[1].model_copy(update={"config": {**results.trials[1].config,
                                                            "lora": HOSTILE}})  # fmt: skip
    return results.model_copy(
        update={
            "name": HOSTILE,
            "trials": [failed, extreme, *results.trials[2:]],
            "answers": [Answer(prompt=HOSTILE, base=HOSTILE, winner=HOSTILE, chosen=HOSTILE)],
            "ended": f"budget {HOSTILE}",
            "search": search,
            "data": {"pairs": {"train": 1}, "dropped": {HOSTILE: 1}},
        }
    )


def test_what_comes_from_the_search_is_text_and_never_markup(results: Results) -> None:
    html = page.render(hostile(results))
    assert "<script>alert" not in html
    assert "<img" not in html
    shown = Page(html)
    assert "img" not in shown.tags
    assert len(shown.scripts) == 3
    assert shown.text.count("alert(1)") >= 8
    assert "<" not in shown.scripts[0]
    assert HOSTILE in [row[-1] for row in shown.table["rows"]]
    for figure in shown.figures.values():
        words = json.dumps({name: figure["layout"][name] for name in figure["layout"]})
        assert "<script" not in words


def test_an_unfinished_search_says_how_it_stands(results: Results) -> None:
    running = [
        record.model_copy(update={"state": "running"}) if record.state == "stopped" else record
        for record in results.trials[:8]
    ]
    pending = TrialRecord(id="abc123-008", config=results.trials[8].config)
    update = {"trials": [*running, pending], "winner": None, "ended": "", "answers": []}
    shown = parsed(results.model_copy(update=update))
    assert "of 24 trials have ended" in shown.text
    assert "No winner yet. Best so far: abc123-" in shown.text
    assert "running" in names(shown.figures["curves-0"])


def test_a_search_that_has_just_begun_has_sentences_for_figures(results: Results) -> None:
    shown = parsed(results.model_copy(update={"trials": [], "winner": None, "ended": ""}))
    assert shown.figures == {}
    assert "No trial was measured" in shown.text


def test_a_search_without_axes_has_a_report() -> None:
    shown = parsed(simulated(3, space={}))
    assert "No axis was searched." in shown.text
    assert {"curves-0", "history-0", "timeline-0"} <= set(shown.figures)
    assert "slices-0" not in shown.figures


def test_the_page_renews_itself_until_the_search_has_ended(results: Results) -> None:
    running = page.render(results.model_copy(update={"ended": "", "winner": None}))
    assert "<body data-renews>" in running
    assert "refreshes itself every minute" in running
    assert "<body>" in page.render(results)


def test_what_was_searched_on_what_data_and_with_what_stands_at_the_end(results: Results) -> None:
    about = {
        "python": "3.11.9",
        "versions": {"trl": "1.16.0"},
        "hardware": {"CPU": 2.0, "GPU": 1.0, "kinds": ["H100"]},
    }
    data = {"pairs": {"train": 1200, "eval": 90}, "dropped": {"longer than 512 tokens": 3}}
    text = " ".join(
        parsed(results.model_copy(update={"environment": about, "data": data})).text.split()
    )
    for phrase in (
        "optim.learning_rate log_uniform 1e-05 to 2",
        "lora one of null, alpha=32",
        "lora.r int 4 to 64 lora: not null",
        "proposed by Optuna's tpe, seed 0",
        "early stopping ASHA on eval/nll, first rung at 64 pairs, one in 3 trials continues",
        "pairs, train 1,200 pairs, eval 90 rows left out: longer than 512 tokens 3",
        "hardware 2 CPU cores, 1 GPU H100 Python 3.11.9 trl 1.16.0",
    ):
        assert phrase in text


def test_answers_that_were_cut_say_so(results: Results) -> None:
    cut = Answer(prompt="Why?", base="No.", winner="Yes, be", chosen="", winner_is_cut=True)
    text = " ".join(parsed(results.model_copy(update={"answers": [cut]})).text.split())
    assert "Base No. Winner Yes, be … (cut here)" in text


def test_the_train_loss_stands_beside_the_held_out_metrics(results: Results) -> None:
    assert results.winner is not None
    run = next(trial for trial in results.trials if trial.id == results.winner.trial)
    (report,) = [r for r in run.curve if r["pairs_seen"] == results.winner.pairs_seen]
    text = " ".join(parsed(results).text.split())
    assert f"train loss {report['train/loss']:.3f} the trial's own loss on the pairs" in text


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
    assert set(shown.figures) == {
        "curves-0", "history-0", "losses-0", "losses-1", "pareto-0", "cost-0", "timeline-0",
    }  # fmt: skip
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


def test_a_hundred_trials_fit_in_2_3_megabytes() -> None:
    html = page.render(simulated(100))
    assert len(html.encode()) < 2_300_000
    shown = Page(html)
    assert "parallel-0" in shown.figures
    assert gzip.decompress(base64.b64decode(shown.scripts[1])).decode() == get_plotlyjs()


def test_ten_thousand_trials_fit_in_ten_megabytes_and_what_is_left_out_is_said() -> None:
    html = page.render(many(10_000))
    assert len(html.encode()) < 10_000_000
    shown = Page(html)
    assert "The figures show 1,000 of 10,000 trials" in shown.text
    assert len(shown.table["rows"]) == 10_000


def test_the_page_is_refreshed_beside_a_search_and_a_failure_only_warns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path)
    write_yaml(tmp_path / "search.yaml", driver.config)
    trial = driver.start()
    driver.report(trial, 64, 0.9)
    searched = tmp_path / "search.yaml"
    content = searched.read_text()
    searched.write_text("name: [")
    monkeypatch.setattr(page, "_PAUSE_FACTOR", 0)
    output, deadline = "", time.monotonic() + 120
    with page.keep_fresh(RunFolder.at(tmp_path), pause=0.01):
        while not (tmp_path / "report.html").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
            output += capfd.readouterr().out
            if "warning: the report could not be written (InputError: " in output:
                searched.write_text(content)
    assert searched.read_text() == content
    assert trial.config["task"].name in (tmp_path / "report.html").read_text()


def test_a_report_leaves_the_last_bytes_of_a_disk_to_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.at(tmp_path)
    monkeypatch.setattr(page, "free_bytes", lambda _: 2_000_000)
    page.write_or_warn(run, lambda: simulated(3).at(run))
    assert "(DiskFull: 2.0 MB are free, but the page needs " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_report_being_written_does_not_delay_the_end_of_a_search(tmp_path: Path) -> None:
    began = time.monotonic()
    with page.keep_fresh(RunFolder.at(tmp_path), pause=0.01):
        time.sleep(0.3)  # importing takes its process longer
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
    assert "3 of 3 trials have ended" in Page(path.read_text()).text
    path.unlink()
    again = dpo_tune("report", "sim")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{path}\n"
    assert path.exists()
