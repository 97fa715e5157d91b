"""Kills a process of a search's trials every few seconds, and compares it with an undisturbed
search.

Prints the states of the trials and the cost of the kills. `--trainer packed` and `trl` train the
embedded model. Processes of `trl` import for ten seconds, so kill them less often.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = str(ROOT)
sys.path.insert(0, str(ROOT))

from tune.run_folder.paths import RunFolder  # noqa: E402
from tune.run_folder.trial_record import read_records  # noqa: E402

SIMULATED = {
    "trainer": "simulated",
    "simulated": {"seconds_per_report": 0.25},
    "optim": {"epochs": 1},
    "resources": {"cpus": 0.25},
    "eval_every_pairs": 64,
}
TRAINED = {"data": {"limit": 200}, "lora": {"r": 4, "alpha": 8}, "eval_every_pairs": 32}


def search(trainer: str, trials: int) -> dict[str, Any]:
    """Return the search's configuration."""
    return {
        **(SIMULATED if trainer == "simulated" else {"trainer": trainer, **TRAINED}),
        "name": "soak",
        "trials": trials,
        "space": {"optim.learning_rate": {"log_uniform": [1e-5, 1e-3]}},
        # Every trial trains to its end, which shows what was lost.
        "stopping": {"name": "none"},
        "save_every_minutes": 0,
        "wandb": {"mode": "disabled"},
    }


def run(content: dict[str, Any], kill_every: float | None) -> dict[str, Any]:
    """Return the seconds from the command to the end, the number of kills, and the trials."""
    with tempfile.TemporaryDirectory() as folder:
        yaml = Path(folder) / "soak.yaml"
        yaml.write_text(json.dumps(content))  # JSON is YAML
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "tune", "run", str(yaml)], cwd=folder, stdout=subprocess.DEVNULL
        )
        kills = 0
        draw = random.Random(0)
        while process.poll() is None:
            time.sleep(kill_every or 1)
            training = trial_processes(Path(folder) / "runs" / "soak") if kill_every else []
            if training:
                os.kill(draw.choice(training), signal.SIGKILL)
                kills += 1
        seconds = time.perf_counter() - began
        results = json.loads((Path(folder) / "runs" / "soak" / "results.json").read_text())
    return {"seconds": seconds, "kills": kills, "code": process.returncode, **results}


def trial_processes(run: Path) -> list[int]:
    """Return the processes that have reported. Ray notices only after a minute that a process was
    killed before it had a trial (worker_register_timeout_seconds), so we kill none of those."""
    running = {
        record.id for record in read_records(RunFolder.at(run), print) if record.state == "running"
    }
    file = run / "places.jsonl"
    notes = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    last = {note["trial"]: int(note["pid"]) for note in notes}
    return [
        pid for trial, pid in last.items() if trial in running and Path(f"/proc/{pid}").exists()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--every", type=float, default=5, help="seconds between two kills")
    parser.add_argument("--trainer", choices=["simulated", "packed", "trl"], default="simulated")
    options = parser.parse_args()
    content = search(options.trainer, options.trials)
    alone = run(content, None)
    under_fire = run(content, options.every)
    whole = alone["trials"][0]["curve"][-1]["pairs_seen"]
    finished = [
        trial
        for trial in under_fire["trials"]
        if trial["state"] == "finished" and trial["curve"][-1]["pairs_seen"] == whole
    ]
    print(f"{options.trials} trials, {options.trainer}, a process killed every {options.every:g} s")
    print(f"finished           {len(finished)}")
    print(f"processes killed   {under_fire['kills']}")
    print(f"lost               {options.trials - len(finished)}")
    spent = under_fire["seconds"] / alone["seconds"]
    print(f"seconds            {under_fire['seconds']:.1f}, undisturbed {alone['seconds']:.1f}, "
          f"ratio {spent:.2f}")  # fmt: skip
    sys.exit(len(finished) != options.trials)


if __name__ == "__main__":
    main()
