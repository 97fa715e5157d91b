"""How a search grows with its cluster.

Trials per hour on 1, 2 and 4 logical nodes, where training is a fixed sleep so that this machine's
cores do not bound it; and what the one driver spends on each report and each trial, at 4, 16 and 64
trials at once. That is its own CPU time, which other processes here do not change. A line through
it says at how many reports a second one driver is full; beyond 64 it is extrapolated. RESULTS.md
keeps what was measured.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ |= {
    "PYTHONPATH": str(ROOT),
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}

from ray.cluster_utils import Cluster  # noqa: E402

SLEEP = 2.0
"""Seconds of a report in the first table; a trial has four."""
REPORTS = (2, 12)
"""Of each trial in the second table: the difference is what reports cost."""
AT_ONCE = (4, 16, 64)


def search(cluster: Cluster, **settings: Any) -> dict[str, float]:
    """Runs a simulated search on the cluster: seconds from the first trial's begin to the last
    one's end, trials per hour in them, and the driver's CPU seconds, start and end included."""
    asked = {"trainer": "simulated", "optim.epochs": 1, "stopping.name": "none", "trials": 1,
             "wandb.mode": "disabled", **settings}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        yaml = Path(folder) / "scaling.yaml"
        yaml.write_text("space: {dpo.beta: {uniform: [0.1, 0.2]}}")
        changes = [word for path, value in {**asked, "runs_dir": folder}.items()
                   for word in ("--set", f"{path}={value}")]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "tune", "run", str(yaml), *changes], check=True,
                       stdout=subprocess.DEVNULL,
                       env={**os.environ, "RAY_ADDRESS": cluster.address})  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        results = json.loads((Path(folder) / "scaling" / "results.json").read_text())
    trials = results["trials"]
    assert {trial["state"] for trial in trials} == {"finished"}
    seconds = max(trial["ended"] for trial in trials) - min(trial["began"] for trial in trials)
    spent = (getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    return {"seconds": seconds, "per_hour": 3600 * len(trials) / seconds, "cpu": sum(spent)}


def nodes(trials: int) -> None:
    print(
        f"{'nodes':>6} {'at once':>8} {'trials':>7} {'seconds':>8} {'trials/h':>9} {'of linear':>9}"
    )
    one = 0.0
    for count in (1, 2, 4):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=2)
            done = search(cluster, **{"simulated.pairs": 256, "trials": trials,
                                      "simulated.seconds_per_report": SLEEP})  # fmt: skip
        finally:
            cluster.shutdown()
        one = one or done["per_hour"]
        print(f"{count:6} {2 * count:8} {trials:7} {done['seconds']:8.1f} {done['per_hour']:9.0f} "
              f"{done['per_hour'] / one / count:9.2f}", flush=True)  # fmt: skip


def driver(at_once: list[int]) -> None:
    print(f"{'at once':>8} {'ms a report':>12} {'ms a trial':>11}")
    points = []
    for count in at_once:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            # As many reports a second whatever the number of trials: about twenty.
            pause = {"resources.cpus": 0.01, "resources.at_once": count,
                     "simulated.seconds_per_report": count / 20}  # fmt: skip
            alone = search(cluster, **pause, **{"simulated.pairs": 64 * REPORTS[0]})
            few, many = (
                search(cluster, **pause, **{"simulated.pairs": 64 * reports, "trials": 2 * count})
                for reports in REPORTS
            )
        finally:
            cluster.shutdown()
        trials = 2 * count
        report = (many["cpu"] - few["cpu"]) / (trials * (REPORTS[1] - REPORTS[0]))
        trial = (few["cpu"] - alone["cpu"]) / (trials - 1) - REPORTS[0] * report
        points.append((count, report, trial))
        print(f"{count:8} {1000 * report:12.1f} {1000 * trial:11.0f}", flush=True)
    if len(points) > 1:
        extrapolate(points)


def extrapolate(points: list[tuple[int, float, float]]) -> None:
    """Least squares through (at once, seconds a report), and what the line says for 1,024."""
    mean_x = sum(x for x, _, _ in points) / len(points)
    mean_y = sum(y for _, y, _ in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y, _ in points) / sum(
        (x - mean_x) ** 2 for x, _, _ in points
    )
    constant = mean_y - slope * mean_x
    at = constant + slope * 1024
    print(
        f"ms a report = {1000 * constant:.2f} + {1000 * slope:.4f} × trials at once\n"
        f"extrapolated to 1,024 at once: {1000 * at:.1f} ms a report, so one driver takes "
        f"{1 / at:.0f} reports a second: one of each trial every {1024 * at:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["nodes", "driver"], help="run one part")
    parser.add_argument("--trials", type=int, default=32, help="of each search on nodes")
    parser.add_argument("--at-once", type=int, nargs="+", default=list(AT_ONCE))
    options = parser.parse_args()
    if options.only in (None, "nodes"):
        nodes(options.trials)
    if options.only in (None, "driver"):
        driver(options.at_once)


if __name__ == "__main__":
    main()
