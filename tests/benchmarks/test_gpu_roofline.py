"""gpu_roofline.py counts a packed step on fake tensors, which hold no data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_fused_kernels_move_and_keep_less_for_the_same_products(tmp_path: Path) -> None:
    """This runs in a process of its own, because Liger changes transformers' modules."""
    out, layers = tmp_path / "counts.json", 4
    benchmark = ROOT / "benchmarks" / "gpu_roofline.py"
    done = subprocess.run(
        [sys.executable, benchmark, "2", "2", "--layers", str(layers), "--out", out],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(out.read_text())
    assert after["teraoperations"] == pytest.approx(before["teraoperations"], rel=0.01)
    for name in ("milliseconds", "launches", "gigabytes_moved", "gigabytes_kept"):
        assert 0 < after[name] < before[name], name
    # Two norms, a gated MLP and a rotary embedding in each layer, and the last norm; both ways, but
    # nothing goes back through the first norm.
    assert after["launches_by_kind"]["Liger's kernels"] == 2 * (4 * layers + 1) - 1
