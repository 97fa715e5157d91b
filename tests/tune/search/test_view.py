"""The live display of a running search fits into the window."""

import pytest

from tune.search.view import RunningTrial, View

BEST = "best eval/accuracy 0.950 eval/drift 0.312 (91qjec-018)"


def view(trials: int, **changes: object) -> View:
    running = tuple(
        RunningTrial(f"91qjec-{number:03d}", "training", 384, 1364, "eval/accuracy 0.917", 21.3)
        for number in range(trials)
    )
    shown = View(
        ended=7, total=24, share=0.4, seconds_left=734, counts=f"{trials} running · 7 stopped",
        best=BEST, running=running,
    )  # fmt: skip
    return View(**{**vars(shown), **changes})


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10), (200, 8)])
@pytest.mark.parametrize("trials", [0, 1, 8, 200])
def test_no_line_is_as_wide_as_the_window_and_no_picture_as_high(
    width: int, height: int, trials: int
) -> None:
    lines = view(trials, doing="reference log-probs " * 9).picture(width, height).split("\n")
    assert max(line.cell_len for line in lines) < width
    assert len(lines) < height


def test_trials_without_a_place_are_counted() -> None:
    lines = view(100).picture(80, 24).plain.splitlines()
    shown = [line for line in lines if line.startswith("91qjec")]
    assert lines[-1] == f"… and {100 - len(shown)} more"
    assert len(shown) >= 15


def test_the_time_left_comes_first_then_a_bar_then_the_count_and_the_best() -> None:
    wide = view(1).picture(140, 24).plain.splitlines()
    assert wide[0].startswith("about 12 min left  ━━")
    assert wide[0].endswith(f"─  7 of 24 trials  {BEST}")
    assert view(1).picture(80, 24).plain.splitlines()[1] == BEST


def test_a_running_trial_says_how_far_it_is_its_last_metric_and_its_pace() -> None:
    line = view(1).picture(120, 24).plain.splitlines()[-1]
    assert line == "91qjec-000  384 of 1364 pairs  eval/accuracy 0.917  21.3 pairs/s"
    loading = RunningTrial("91qjec-001", "loading the model")
    assert view(0, running=(loading,)).picture(120, 24).plain.endswith("loading the model")


def test_before_the_first_trial_it_says_what_is_done() -> None:
    before = View(doing="starting Ray (3 s)")
    assert before.picture(80, 24).plain == before.line() == "starting Ray (3 s)"


def test_a_log_line_has_all_values_in_short_form() -> None:
    assert view(5).line() == (
        f"about 12 min left · 7 of 24 trials · 5 running · 7 stopped · {BEST} · 91qjec-000 at 384 "
        "of 1364 pairs, 91qjec-001 at 384 of 1364 pairs, 91qjec-002 at 384 of 1364 pairs, 2 more"
    )
