"""Measures how a search scales with its cluster.

The first table has trials per hour on 1, 2 and 4 logical nodes. Training is a fixed sleep there, so
that this machine's cores are no limit. The second has the CPU time that the one driver spends on
each report at 4, 16 and 64 trials at once, while no process starts; other processes do not change
it. A line through these values gives the reports per second that one driver can take. Values beyond
64 are extrapolated. RESULTS.md has the measurements.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ |= {
    "PYTHONPATH": str(ROOT),
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}

import psutil  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from tune.run_folder.paths import RunFolder  # noqa: E402
from tune.run_folder.trial_record import read_records  # noqa: E402

SLEEP = 2.0
"""Seconds of a report in the first table; a trial has four."""
REPORTS = 12
"""Reports of each trial in the second table, its beginning and end included."""
AT_ONCE = (4, 16, 64)


@contextlib.contextmanager
def searching(cluster: Cluster, **settings: Any) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a simulated search on the cluster. Yield its driver and its temporary run folder."""
    fixed = {"trainer": "simulated", "optim.epochs": 1, "stopping.name": "none",
             "wandb.mode": "disabled", **settings}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        yaml = Path(folder) / "scaling.yaml"
        yaml.write_text("space: {dpo.beta: {uniform: [0.1, 0.2]}}")
        changes = [word for path, value in {**fixed, "runs_dir": folder}.items()
                   for word in ("--set", f"{path}={value}")]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "tune", "run", str(yaml), *changes],
            stdout=subprocess.DEVNULL, env={**os.environ, "RAY_ADDRESS": cluster.address},
        )  # fmt: skip
        yield process, Path(folder) / "scaling"
        assert process.wait() == 0


def nodes(trials: int) -> None:
    """Print trials per hour by the number of nodes."""
    print(
        f"{'nodes':>6} {'at once':>8} {'trials':>7} {'seconds':>8} {'trials/h':>9} {'of linear':>9}"
    )
    one = 0.0
    for count in (1, 2, 4):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=2)
            settings = {"simulated.pairs": 256, "simulated.seconds_per_report": SLEEP}
            with searching(cluster, trials=trials, **settings) as (process, run):
                process.wait()
                records = list(read_records(RunFolder.at(run), print))
        finally:
            cluster.shutdown()
        # The time from the first trial's beginning to the last one's end.
        seconds = max(r.ended or 0 for r in records) - min(r.began or 0 for r in records)
        per_hour = 3600 * len(records) / seconds
        one = one or per_hour
        print(f"{count:6} {2 * count:8} {trials:7} {seconds:8.1f} {per_hour:9.0f} "
              f"{per_hour / one / count:9.2f}", flush=True)  # fmt: skip


def driver(at_once: list[int]) -> None:
    """Print the driver's CPU time per report."""
    print(f"{'at once':>8} {'reports':>8} {'a second':>9} {'ms a report':>12}")
    points = []
    for count in at_once:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            reports, seconds, cpu = steady(cluster, count)
        finally:
            cluster.shutdown()
        points.append((count, cpu / reports))
        print(f"{count:8} {reports:8} {reports / seconds:9.1f} {1000 * cpu / reports:12.1f}",
              flush=True)  # fmt: skip
    if len(points) > 1:
        extrapolate(points)


def steady(cluster: Cluster, count: int) -> tuple[int, float, float]:
    """Return reports, seconds and the driver's CPU seconds while all slots are in use and no
    process starts: from every process's first report until no trial is left to propose."""
    trials = 3 * count
    with searching(cluster, **{
        "resources.cpus": 0.01, "resources.at_once": count, "trials": trials,
        # The number of reports per second is the same for all numbers of trials: about twenty.
        "simulated.seconds_per_report": count / 20, "simulated.pairs": 64 * REPORTS,
    }) as (process, run):  # fmt: skip
        seen: list[tuple[float, float, int]] = []
        while process.poll() is None:
            time.sleep(0.5)
            curves = [record.curve for record in read_records(RunFolder.at(run), print)]
            if sum(map(bool, curves)) < count or len(curves) == trials:
                continue
            spent = psutil.Process(process.pid).cpu_times()
            seen.append((time.monotonic(), spent.user + spent.system, sum(map(len, curves))))
    (began, before, reported), (ended, after, more) = seen[0], seen[-1]
    return more - reported, ended - began, after - before


def extrapolate(points: list[tuple[int, float]]) -> None:
    """Print a least-squares line through (at once, seconds a report), and its value for 1,024."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
        (x - mean_x) ** 2 for x, _ in points
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
