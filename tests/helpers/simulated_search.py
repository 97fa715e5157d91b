"""A search with simulated sessions on real Ray processes: its YAML, and how tests observe it."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_train.storage.files import write_atomically
from tests.helpers.run_records import records_of

YAML = """
name: sim
trainer: simulated
trials: 12
space:
  optim.learning_rate: {log_uniform: [1e-5, 1e-2]}
  dpo.beta: {log_uniform: [0.05, 0.5]}
stopping: {grace_pairs: 64, reduction: 3}
eval_every_pairs: 64
save_every_minutes: 0
resources: {cpus: 0.5}
wandb: {mode: disabled}
"""


def ended(run: Path) -> dict[str, Any]:
    """Return the records of ended trials, by id."""
    return {
        record.id: record.model_dump()
        for record in records_of(run)
        if record.state in ("finished", "stopped", "failed")
    }


def wait_for_ended(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many trials have ended."""
    wait_until(lambda: len(ended(run)) >= count, process)


def wait_until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until `holds` is true while a search runs; the deadline suits slow machines."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.05)


def hurry(run: Path) -> None:
    """Let the processes that start from now on report without a pause.

    A test that must see a search half done makes it slow enough for slow machines first.
    """
    yaml = run / "search.yaml"
    text = re.sub(r"seconds_per_report: .*", "seconds_per_report: 0.0", yaml.read_text())
    write_atomically(yaml, text)


def children(parent: int) -> list[tuple[int, str]]:
    """Return the children of a process with their commands."""
    found = subprocess.run(
        # Without -ww ps cuts lines to COLUMNS, which pytest sets, and with them long paths.
        ["ps", "-ww", "--ppid", str(parent), "-o", "pid=,args="],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = (line.split(maxsplit=1) for line in found.stdout.splitlines())
    return [(int(pid), command) for pid, command in lines]


def trial_processes(driver: int) -> list[int]:
    """Return the Ray workers below a driver with its own Ray, which starts none in advance.

    Where process titles can't be seen, the first one is the search's coordinator.
    """

    raylets = [pid for pid, command in children(driver) if "raylet/raylet" in command]
    # Some sandboxes hide the title that Ray gives a worker and show only its command.
    return [
        pid
        for raylet in raylets
        for pid, command in children(raylet)
        if "default_worker.py" in command
        or (command.startswith("ray::") and not re.match("ray::(.*Agent|Coordinator)", command))
    ]
