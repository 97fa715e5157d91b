"""Processes that Ray's memory monitor ends cost a search only the work since the last save."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.conftest import Start
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import wait_until

# This test fills some gigabytes of memory, which tests beside it would need.
pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(400)]

YAML = """
data: {limit: 60}
lora: {r: 4, alpha: 8}
optim: {learning_rate: 1e-3, batch_size: 8, epochs: 24}
space: {dpo.beta: {log_uniform: [0.05, 0.5]}}
stopping: {name: none}
eval_every_pairs: 80
save_every_minutes: 0
wandb: {mode: disabled}
"""
_FREE_BYTES = 4_000_000_000
"""Bytes that the search may take; it stops a tenth below the threshold of Ray's monitor."""


def ray_workers(driver: int) -> dict[int, str]:
    """Map each process to the name that Ray gives it."""
    found = {}
    for process in psutil.Process(driver).children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if title.startswith("ray::"):
            found[process.pid] = title.split(".")[0]
    return found


def fill_memory_until_one_dies(threshold_bytes: float, driver: int) -> Counter[str]:
    """Return the names of the workers that Ray's monitor ended meanwhile."""
    before = ray_workers(driver)
    memory = psutil.virtual_memory()
    ballast = bytearray(int(threshold_bytes - (memory.total - memory.available)) + 300_000_000)
    ballast[::4096] = b"1" * len(ballast[::4096])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not before.keys() - ray_workers(driver).keys():
        time.sleep(0.05)
    del ballast
    time.sleep(1)
    return Counter(before[process] for process in before.keys() - ray_workers(driver).keys())


@pytest.mark.parametrize(
    ("trainer", "victims"),
    [
        ("packed", {"ray::EngineActor", "ray::ResourceTrainable"}),
        ("trl", {"ray::ResourceTrainable"}),
    ],
)
def test_a_search_goes_on_when_the_memory_monitor_ends_its_processes(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, trainer: str, victims: set[str]
) -> None:
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + _FREE_BYTES) / memory.total / 0.9
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.4f}")
    yaml, run = tmp_path / "search.yaml", tmp_path / "runs" / "search"
    yaml.write_text(YAML + f"trainer: {trainer}\ntrials: {4 if trainer == 'packed' else 2}\n")
    process = start("run", yaml)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or []), daemon=True)
    reader.start()
    wait_until(lambda: [bool(r.curve) for r in records_of(run)].count(True) >= 2, process)
    ended = fill_memory_until_one_dies(threshold * memory.total, process.pid)
    assert ended.keys() & victims, ended
    assert process.wait(timeout=240) == 0, "".join(lines)
    reader.join(timeout=10)
    process.stdout.close()
    assert "memory" in "".join(lines)
    for record in records_of(run):
        assert record.state == "finished", record.error
        assert [report["pairs_seen"] for report in record.curve] == list(range(80, 961, 80))
    assert os.path.exists(run / "winner" / "adapter_model.safetensors")
