"""The search space: axes, conditions and points."""

import random

import optuna
import pytest

from dpo_train.config import TrainConfig
from dpo_train.config_base import parse
from dpo_train.errors import InputError
from tune.config.checks import check
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.config.searchable import check_space
from tune.config.space import (
    Axis,
    PointKey,
    check_point,
    grid,
    point_key,
    suggest,
    untried_point,
)

WITH_LORA = {
    "lora": Axis(choice=[None, {"alpha": 8}]),
    "lora.r": Axis(int=(2, 4), when={"lora": "not null"}),
}


def search(**content: object) -> SearchConfig:
    return check(parse(SearchConfig, {"name": "x", "trials": 3, **content}, {}, "x.yaml"))


def test_each_kind_is_drawn_within_its_bounds() -> None:
    space = {
        "optim.learning_rate": Axis(log_uniform=(1e-6, 1e-4)),
        "dpo.beta": Axis(uniform=(0.1, 0.5)),
        "optim.epochs": Axis(int=(1, 3)),
        "optim.micro_batch_size": Axis(log_int=(2, 32)),
        "optim.batch_size": Axis(choice=[4, 8]),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [suggest(study.ask(), space) for _ in range(50)]
    for path, axis in space.items():
        values = {point[path] for point in points}
        assert all(axis.contains(value) for value in values)
        assert len(values) > 1


def test_a_conditional_axis_is_drawn_only_where_its_condition_holds() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [suggest(study.ask(), WITH_LORA) for _ in range(30)]
    assert {("lora.r" in point) == (point["lora"] is not None) for point in points} == {True}
    assert {point["lora"] is None for point in points} == {True, False}


def test_a_grid_lists_every_point_once_and_knows_conditions() -> None:
    assert grid(WITH_LORA) == [
        {"lora": None},
        {"lora": {"alpha": 8}, "lora.r": 2},
        {"lora": {"alpha": 8}, "lora.r": 3},
        {"lora": {"alpha": 8}, "lora.r": 4},
    ]


def keys(points: list[dict[str, object]]) -> set[PointKey]:
    return {point_key(point) for point in points}


def test_untried_points_are_found_until_none_is_left() -> None:
    tried: list[dict[str, object]] = []
    while (point := untried_point(WITH_LORA, keys(tried), random.Random(len(tried)))) is not None:
        assert point not in tried
        tried.append(point)
    assert len(tried) == 4
    assert all(point in tried for point in grid(WITH_LORA))


def test_a_large_space_has_an_untried_point_at_once() -> None:
    space = {"seed": Axis(int=(0, 10**9)), "optim.warmup_pairs": Axis(log_int=(1, 10**9))}
    tried = [{"seed": number, "optim.warmup_pairs": 1} for number in range(100)]
    point = untried_point(space, keys(tried), random.Random(0))
    assert point is not None
    assert point not in tried
    check_point(point, space)


def test_a_range_of_reals_has_always_an_untried_point() -> None:
    space = {"lora": Axis(choice=[None, {}]),
             "lora.alpha": Axis(log_uniform=(1, 64), when={"lora": "not null"})}  # fmt: skip
    tried = [{"lora": None}, {"lora": {}, "lora.alpha": 64.0}]
    points = [untried_point(space, keys(tried), random.Random(seed)) for seed in range(20)]
    for point in points:
        assert point is not None
        assert point["lora"] == {}
        check_point(point, space)
    assert len({str(point) for point in points}) == 20


def test_a_grid_over_a_range_of_reals_is_refused() -> None:
    with pytest.raises(InputError, match="dpo.beta is uniform; a grid needs choice or int"):
        grid({"dpo.beta": Axis(uniform=(0.1, 0.2))})


@pytest.mark.parametrize(
    ("path", "axis", "message"),
    [
        ("optim.lr", {"uniform": [0, 1]}, "unknown path 'optim.lr'"),
        ("model.id", {"choice": ["a"]}, "changes the reference"),
        ("data.chars", {"choice": [[1, 2]]}, "changes the reference"),
        ("trainer", {"choice": ["trl"]}, "must be the same for all trials"),
        ("lora.r", {"int": [2, 4]}, "but lora may be null"),
        (
            "optim.batch_size",
            {"log_uniform": [1, 16]},
            "is a whole number, but log_uniform draws fractions; type "
            "`optim.batch_size: {log_int: [1, 16]}`",
        ),
        ("optim.micro_batch_size", {"uniform": [1, 16]}, "{int: [1, 16]}"),
        ("optim.batch_size", {"log_int": [0, 16]}, "a logarithmic axis needs low above 0"),
        ("optim", {"choice": [{"epochs": 5}]}, "is a section, not a field"),
        ("dpo.beta", {"uniform": [-1, 0.1]}, "a number above 0"),
        ("dpo.loss", {"choice": ["sigmoid", "sigmiod"]}, "sigmiod"),
        ("optim.batch_size", {"choice": [8, 65]}, "larger than the first evaluation, at 64"),
        ("dpo.beta", {"uniform": [0.2, 0.1]}, "low must be below high"),
        ("dpo.beta", {"uniform": [0.1, 0.2], "choice": [1]}, "exactly one of"),
        ("dpo.beta", {"log_uniform": [0, 0.1]}, "needs low above 0"),
        ("dpo.beta", {"uniform": [0.1, 0.2], "when": {"lora": 1}}, "not an axis listed before it"),
    ],
)
def test_an_axis_that_cannot_be_searched_is_refused(
    path: str, axis: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        search(space={path: axis})
    assert message in str(caught.value)
    assert path in str(caught.value)


def test_a_point_outside_is_refused_with_the_axis_and_its_bounds() -> None:
    space = {"dpo.beta": Axis(uniform=(0.1, 0.5))}
    check_point({"dpo.beta": 0.1}, space)
    with pytest.raises(InputError, match=r"dpo.beta = 0.6 lies outside the space \(uniform 0.1 to"):
        check_point({"dpo.beta": 0.6}, space)
    with pytest.raises(InputError, match="'seed' is not an axis"):
        check_point({"seed": 1}, space)
    with pytest.raises(InputError, match="lora.r has no effect here"):
        check_point({"lora": None, "lora.r": 2}, WITH_LORA)


def test_true_is_not_the_number_one() -> None:
    assert not Axis(choice=[1, 2]).contains(True)
    assert not Axis(int=(0, 1)).contains(True)


def test_a_loss_that_differs_between_trials_is_no_objective() -> None:
    beta = {"dpo.beta": {"uniform": [0.1, 0.2]}}
    with pytest.raises(InputError, match="objective: eval/loss can't be compared"):
        search(space=beta, objective="eval/loss")
    with pytest.raises(InputError, match="stopping.metric: eval/loss"):
        search(space=beta, stopping={"metric": "eval/loss"})
    rate = {"optim.learning_rate": {"log_uniform": [1e-6, 1e-4]}}
    assert search(space=rate, objective="eval/loss").goal.mode == "min"


def test_rungs_off_the_evaluations_are_refused_with_the_nearest_that_fit() -> None:
    with pytest.raises(InputError, match="the nearest that fit: 64 or 128"):
        search(stopping={"grace_pairs": 100}, eval_every_pairs=64)


def test_annealing_with_epochs_under_asha_warns_once() -> None:
    with pytest.warns(UserWarning, match="different points of their learning rate") as caught:
        search(optim={"schedule": "cosine"}, space={"optim.epochs": {"int": [1, 2]}})
    assert len(caught) == 1


def test_every_yaml_of_the_repository_loads() -> None:
    from tests.conftest import ROOT

    found = sorted((ROOT / "searches").glob("*.yaml"))
    assert len(found) >= 3
    for path in found:
        config = load_search(path)
        assert config.name == path.stem.replace("_", "-") or config.name == path.stem
        check_space(config.space, config.base_trial())


def test_more_trials_than_a_grid_has_points_are_refused() -> None:
    with pytest.raises(InputError, match="trials: 5 is more than the 2 points"):
        search(trials=5, sampler={"name": "grid"}, space={"seed": {"choice": [0, 1]}})
    with pytest.raises(InputError, match=r"dpo\.beta is uniform; a grid needs"):
        search(sampler={"name": "grid"}, space={"dpo.beta": {"uniform": [0.1, 0.2]}})


def test_the_users_own_grid_is_all_its_points() -> None:
    config = search(
        trials=None,
        sampler={"name": "grid"},
        space={
            "optim.learning_rate": {"choice": [1e-5, 1e-4]},
            "optim.batch_size": {"choice": [4, 5]},
            "optim.epochs": {"choice": [1, 5]},
            "dpo.beta": {"choice": [0.1, 0.3]},
        },
    )
    assert config.total_trials == 16
    assert isinstance(config.trial(config.first_points[15]), TrainConfig)


def test_the_frozen_base_of_a_lora_is_bfloat16_on_a_gpu_by_default() -> None:
    gpu = {"gpus": 0.25}
    assert search(lora={}, resources=gpu).model.dtype == "bfloat16"
    assert search(lora={}, resources=gpu, model={"dtype": "float32"}).model.dtype == "float32"
    assert search(lora={}).model.dtype == "float32"
    axis = {"lora": {"choice": [None, {"r": 8}]}}  # all weights too, which must be float32
    assert search(lora={}, resources=gpu, space=axis).model.dtype == "float32"
    assert search(resources=gpu).model.dtype == "float32"


def test_packed_trials_share_a_cpu_by_default() -> None:
    packed = {"trainer": "packed", "lora": {}, "space": {"dpo.beta": {"uniform": [0.1, 0.2]}}}
    assert search(**packed).resources.cpus == 0.25
    assert search(**packed, resources={"gpus": 0.25}).resources.cpus == 0.25
    assert search(**packed, resources={"cpus": 0.5}).resources.cpus == 0.5
    assert search(space=packed["space"]).resources.cpus == 1


def test_a_lora_is_packed_by_default_where_packed_trains_all_its_trials() -> None:
    assert search(lora={}).trainer == "packed"
    assert search(lora={}, resources={"gpus": 0.25}).trainer == "packed"
    assert search(lora={}, trainer="trl").trainer == "trl"
    assert search().trainer == "trl"
    for other in (
        {"resources": {"gpus": 2}},
        {"optim": {"name": "adamw_8bit"}, "resources": {"gpus": 1}},
        {"model": {"attention": "eager"}},
        {"dpo": {"loss": "aot"}},
        {"space": {"dpo.loss": {"choice": ["sigmoid", "aot"]}}},
        {"space": {"optim.name": {"choice": ["adamw", "adamw_8bit"]}}},
        {"space": {"lora": {"choice": [None, {"r": 8}]}}},
    ):
        assert search(lora={}, **other).trainer == "trl", other
