"""Measures this project on one GPU in nine minutes, with random weights in Qwen2-0.5B's shape.

    python benchmarks/gpu.py --out FOLDER            # `make gpu-check`
    python benchmarks/gpu.py --out FOLDER --tiny     # on a CPU: whether every stage runs

Each stage has a time limit and its own process, forked from one that has imported everything but
has not used CUDA. So everything is imported once, and a crash, a hang or a broken CUDA context ends
only one stage. Each row is written to FOLDER/rows.jsonl when it is measured. FOLDER/table.txt is
made from the rows, and FOLDER/log.txt has the output of libraries. Needs no Ray.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Asking the driver for GPUs would start CUDA, which does not survive a fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_bench import Bench, Box, device, table  # noqa: E402

SECONDS = {
    "card": 12,
    "reference": 40,
    "packed": 75,
    "parts": 50,
    "profile": 25,
    "stock": 60,
    "trl": 30,
    "numerics": 45,
    "memory": 15,
    "broken": 20,
    "full": 30,
    "serve": 60,
}
"""The stages in order, with the most seconds of each. The functions `stage_card` and so on are in
gpu_stages.py and gpu_comparisons.py."""
_GRACE_SECONDS = 10


def main() -> None:
    options = _options()
    if device() == "cpu" and not options.tiny:
        sys.exit("no GPU is here; type `--tiny` to see on a CPU whether every stage runs")
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, options.work or Path(tempfile.mkdtemp()), options.tiny)
    began = time.monotonic()
    import gpu_comparisons
    import gpu_stages
    import peft  # noqa: F401
    import trl.trainer.dpo_trainer  # noqa: F401

    bench.row("imports", seconds=round(time.monotonic() - began, 1))
    for name in options.only or SECONDS:
        left = options.seconds - (time.monotonic() - began)
        seconds = min(SECONDS[name], left - _GRACE_SECONDS)
        if seconds < 5:
            bench.row(name, skipped="no time was left")
            continue
        stages = {**vars(gpu_stages), **vars(gpu_comparisons)}
        _run(bench, name, stages[f"stage_{name}"], seconds)
        (options.out / "table.txt").write_text(table(bench.rows()))
    print(table(bench.rows()))


def _run(bench: Bench, name: str, stage: Callable[[Bench, Box], None], seconds: float) -> None:
    """Run the stage in a fork, which is killed if it does not end in time."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        log = os.open(bench.out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            stage(bench, Box(seconds))
        except BaseException as error:
            bench.row(name, error=f"{type(error).__name__}: {str(error)[:300]}")
        finally:
            sys.stdout.flush()
            os._exit(0)
    end = time.monotonic() + seconds + _GRACE_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)  # with its own children
            os.waitpid(child, 0)
            bench.row(name, error=f"killed after {seconds + _GRACE_SECONDS:.0f} s")
            return
        time.sleep(0.05)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--work", type=Path, help="folder of the model and the prepared data")
    parser.add_argument("--seconds", type=float, default=500, help="for all stages together")
    parser.add_argument("--only", nargs="*", choices=SECONDS, help="these stages, in this order")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
