"""Two processes give the numbers of one at the same global batch: gloo on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dpo_train import data, reference
from dpo_train.config import LoraConfig, OptimConfig, TrainConfig
from dpo_train.config_base import override
from tests.conftest import ROOT
from tests.helpers.ports import free_port

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
"""Absolute and relative. Sums have another order; measured: 4e-6 nats of a margin of 4."""


def train(config: TrainConfig, prepared: Path, out: Path, count: int, sharded: bool) -> Any:
    """Return the reports of both trials from every rank."""
    out.mkdir()
    port = free_port()
    request = {"config": config.model_dump(mode="json"), "prepared": str(prepared), "out": str(out)}
    ranks = []
    for rank in range(count):
        peers = {"rank": rank, "count": count, "host": "127.0.0.1", "port": port,
                 "sharded": sharded}  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.helpers.peer_process",
                    json.dumps({**request, "peers": peers}),
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(outputs)
    return [json.loads((out / f"reports{rank}.json").read_text()) for rank in range(count)]


LONG = pytest.mark.cluster
OPTIM = OptimConfig(batch_size=8, learning_rate=1e-3, epochs=2, warmup_pairs=16)


@pytest.mark.parametrize(
    ("lora", "sharded"),
    [
        pytest.param(None, False, id="all weights, DDP"),
        pytest.param(LoraConfig(r=4), False, id="LoRA, DDP", marks=LONG),
        pytest.param(None, True, id="all weights, FSDP2", marks=LONG),
    ],
)
def test_two_processes_give_the_numbers_of_one(
    lora: LoraConfig | None, sharded: bool, small_config: TrainConfig, small_prepared: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = small_config.model_copy(update={"optim": OPTIM, "lora": lora})
    compare(config, small_prepared, sharded, tmp_path)


@LONG
def test_two_processes_over_a_base_in_4_bits_do_too(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    config = override(small_config, {"lora.r": 4, "model.quantization": "nf4"})
    config = config.model_copy(update={"optim": OPTIM})
    prepared = reference.plan(config, data.load_pairs(config.data), tmp_path, "cpu")
    reference.prepare(prepared)
    compare(config, prepared, False, tmp_path)


def compare(config: TrainConfig, prepared: Path, sharded: bool, tmp_path: Path) -> None:
    ((alone, _),) = train(config, prepared, tmp_path / "one", 1, False)
    both = train(config, prepared, tmp_path / "two", 2, sharded)
    assert [report["pairs_seen"] for report in alone] == [16, 32, 48, 64, 80]
    names = [name for name in alone[0] if name.startswith(("eval/", "train/loss", "pairs_seen"))]
    for trials in both:  # each rank has two: the second went on from a saved state
        for reports in trials:
            for then, now in zip(alone, reports, strict=True):
                expected = pytest.approx(
                    {name: then[name] for name in names}, rel=TOLERANCE, abs=TOLERANCE
                )
                assert {name: now[name] for name in names} == expected
    file = "adapter_model.safetensors" if config.lora else "model.safetensors"
    for trial in ("first", "second"):
        one, other = (load_file(tmp_path / side / trial / file) for side in ("one", "two"))
        assert one.keys() == other.keys()
        for name, weight in one.items():
            assert other[name].sub(weight).abs().max() < 1e-4
