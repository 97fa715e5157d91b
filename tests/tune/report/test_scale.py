"""How figures draw an axis of the search."""

from typing import Any

import pytest

from tune.config.objective import Objective
from tune.report.scale import Scale, scales, whole_ticks
from tune.run_folder.results import Cost, Results
from tune.run_folder.trial_record import TrialRecord


def scale_of(tried: list[Any] | None = None, **axis: Any) -> Scale:
    trials = [
        TrialRecord(id=f"x-{n}", config={"a.b": value}) for n, value in enumerate(tried or [])
    ]
    results = Results(
        name="x", objective=Objective.of("eval/accuracy"), base={}, winner=None, trials=trials,
        cost=Cost(), search={"space": {"a.b": axis}},
    )  # fmt: skip
    (scale,) = scales(results)
    return scale


def test_a_logarithmic_axis_is_even_and_has_ticks_at_powers_of_ten() -> None:
    scale = scale_of(log_uniform=[1e-5, 1e-1])
    assert scale.unit(1e-3) == pytest.approx(0.5)
    assert scale.value(0.25) == pytest.approx(1e-4)
    assert [tick.text for tick in scale.ticks()] == ["1e-05", "0.001", "0.1"]
    assert scale.settings()["type"] == "log"
    assert scale.settings()["dtick"] == 1
    assert scale.settings()["range"] == pytest.approx([-5.16, -0.84])


def test_whole_numbers_have_whole_ticks() -> None:
    scale = scale_of(int=[1, 4])
    assert [tick.text for tick in scale.ticks()] == ["1", "2", "4"]
    assert scale.settings()["dtick"] == 1
    of_a_logarithm = scale_of(log_int=[4, 300])
    assert of_a_logarithm.settings()["tickvals"] == [5, 10, 20, 50, 100, 200]
    assert all(float(tick.text).is_integer() for tick in of_a_logarithm.ticks())


@pytest.mark.parametrize(
    ("span", "step"), [(1, 1), (4, 1), (9, 2), (23, 5), (60, 20), (9999, 2000)]
)
def test_ticks_of_whole_numbers_are_few(span: float, step: int) -> None:
    assert whole_ticks(span)["dtick"] == step


def test_choices_stand_side_by_side_as_people_read_them() -> None:
    scale = scale_of(choice=[None, {"alpha": 32}, True, "a<b" * 9])
    assert scale.texts[:3] == ("null", "alpha=32", "true")
    assert scale.texts[3].startswith("a&lt;b")
    assert scale.texts[3].endswith("…")
    assert scale.at({"alpha": 32}) == 1
    assert scale.unit(None) == 0.125
    assert scale.settings()["range"] == [-0.5, 3.5]


def test_a_requested_value_outside_the_space_widens_the_axis() -> None:
    assert scale_of([0.9], uniform=[0.1, 0.5]).high == 0.9
    assert scale_of([16], choice=[4, 8]).texts == ("4", "8", "16")
