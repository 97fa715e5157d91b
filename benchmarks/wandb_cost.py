"""Measures what W&B costs a search: simulated trials with wandb disabled and offline, in turn.

The trials wait more than they compute, so the searches differ only in the child process that reads
the records, and the client. Wall-clock time is from the command to the prompt. The CPU time of all
processes that the search waited for is more reliable on a machine with other work.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = str(ROOT)


def seconds(mode: str, trials: int, at_once: int) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of one search, including its start and end."""
    content = {
        "trainer": "simulated",
        "trials": trials,
        "space": {"optim.learning_rate": {"log_uniform": [1e-5, 1e-2]}},
        "simulated": {"seconds_per_report": 0.5},
        "resources": {"cpus": (os.cpu_count() or 1) / at_once, "at_once": at_once},
        "wandb": {"mode": mode},
    }
    with tempfile.TemporaryDirectory() as folder:
        yaml = Path(folder) / "cost.yaml"
        yaml.write_text(json.dumps(content))  # JSON is YAML
        began, before = time.perf_counter(), _cpu_seconds()
        subprocess.run([sys.executable, "-m", "tune", "run", "cost.yaml"], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        return time.perf_counter() - began, _cpu_seconds() - before


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, wandb {version('wandb')},",
          f"{options.trials} trials, {options.at_once} at once")  # fmt: skip
    spent: dict[str, list[tuple[float, float]]] = {"disabled": [], "offline": []}
    for number in range(options.rounds):
        for mode in sorted(spent, reverse=number % 2 == 1):
            spent[mode].append(seconds(mode, options.trials, options.at_once))
            print("{:9} {:7.1f} s, {:6.1f} s of CPU".format(mode, *spent[mode][-1]), flush=True)
    wall, cpu = (
        {mode: median(pair[index] for pair in spent[mode]) for mode in spent} for index in (0, 1)
    )
    each = (cpu["offline"] - cpu["disabled"]) / options.trials
    ratio = wall["offline"] / wall["disabled"]
    print(f"wall-clock ratio {ratio:.3f}; telling of one trial takes {each:.3f} s of CPU")


if __name__ == "__main__":
    main()
