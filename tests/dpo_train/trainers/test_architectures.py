"""A model of any architecture is trained as a stock DPOTrainer trains it, or refused.

benchmarks/architectures.py has seven times as many architectures and 20 steps.
"""

import fcntl
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.architectures import (
    COMMON,
    RUNS,
    Failure,
    Result,
    compare,
    make,
    ours,
    stock,
)

pytestmark = [
    pytest.mark.slow,
    # PEFT warns that it handles GPT-2's transposed layers and experts by itself.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not:RuntimeWarning"),
]

PAIRS = 12
"""Enough pairs for three steps."""
TESTED = {name: run for name, run in RUNS.items() if run.adapted != "attention"}
PACKED = {"llama", "qwen3", "phi3", "granite", "cohere"}
"""Architectures that `packed` must train and not refuse."""


@pytest.fixture(scope="module")
def trained_by_stock(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Any]:
    """Return the case of each architecture and the results of one stock process for all of them.
    The workers of a test run share them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "architectures"
    folder.mkdir(exist_ok=True)
    known = folder / "results.pickle"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not known.exists():
            cases = [make(config, folder / name, PAIRS, 1) for name, config in COMMON.items()]
            adapted = list(dict.fromkeys(run.adapted for run in TESTED.values()))
            pairs = zip(cases, stock(cases, adapted), strict=True)
            known.write_bytes(pickle.dumps(dict(zip(COMMON, pairs, strict=True))))
    return pickle.loads(known.read_bytes())


@pytest.mark.parametrize("name", COMMON)
def test_an_architecture_is_trained_as_by_a_stock_trainer_or_refused(
    trained_by_stock: dict[str, Any], name: str, tmp_path: Path
) -> None:
    case, theirs = trained_by_stock[name]
    for title, run in TESTED.items():
        verdict = compare(ours(case, run, tmp_path), theirs[run.adapted])
        may_be_refused = run.trainer == "packed" and name not in PACKED
        wanted = ("equal", "refused") if may_be_refused else ("equal",)
        assert verdict.kind in wanted, f"{title}: {verdict}"


RESULT = Result([0.69, 0.5], [[-2.0, -3.0]], [[0.1, -0.4]], ["q_proj.lora_A.weight"])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"losses": [0.69, 0.50005]}, "equal"),
        ({"losses": [0.69, 0.5002]}, "DIFFERENT"),
        ({"losses": [0.69, float("nan")]}, "DIFFERENT"),
        ({"logps": [[-2.0, -3.0002]]}, "DIFFERENT"),
        ({"shifts": [[0.1002, -0.4]]}, "DIFFERENT"),
        ({"matrices": []}, "DIFFERENT"),
    ],
)
def test_what_is_compared_may_be_a_ten_thousandth_apart(change: dict[str, Any], kind: str) -> None:
    assert compare(Result(**{**vars(RESULT), **change}), RESULT).kind == kind


def test_a_refusal_is_told_from_an_error_from_inside() -> None:
    assert compare(Failure("InputError", "trainer: no"), RESULT).kind == "refused"
    assert compare(Failure("KeyError", "'rope'"), RESULT).kind == "ERROR"
    assert compare(RESULT, Failure("ValueError", "no")).kind == "no oracle"
