"""Compares many LoRA trials in one step with one trial after another, to find the gain of packing.

B1: a fresh process and a stock DPOTrainer with PEFT per trial. B2: four of them at once. B3: our
warm `trl` session. E: the packed engine. All sides have the same method, data, points and seeds,
and each trial the same pairs. Each part is a process of its own (`--only`) that ends within minutes
and writes its numbers into a folder; `--table` joins the existing ones. Models have the shape of
Qwen2-0.5B on a GPU and a tiny one on a CPU; each process has one torch thread.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packing_parts import BATCHES, DEVICE, DEVICE_NAME, PACKS, PARTS, ROOT


def table(found: dict[str, Any]) -> None:
    """Print the table of all parts."""

    def row(name: str, left: float, right: float, unit: str = "") -> None:
        print(f"{name:52} {left:10.1f} {right:10.1f} {left / right:8.2f} {unit}")

    print(f"\n{'':52} {'left':>10} {'right':>10} {'ratio':>8}")
    e, b3 = found.get("E"), found.get("B3")
    for name in ("B1", "B2"):
        if e and name in found:
            theirs = found[name]["trials_per_hour"]
            row(f"trials per hour, E / {name}", e["trials_per_hour"], theirs)
    if e and b3:
        theirs = b3["steps_per_second"]
        row("trial-steps per second, E / B3", e["steps_per_second"], theirs)
        row("trial-steps per second, E alone / B3", e["steps_per_second_alone"], theirs)
    if e:
        all_in_one, size = e["steps_per_second"], e["pack_size_found"]
        row("the same, pack size being tried / all in one", e["steps_per_second_tried"], all_in_one)
        row(f"the same, by {size}, as was found / all in one", e["steps_per_second_found"],
            all_in_one)  # fmt: skip
    if "embedded" in found:
        row("trial-steps per second, embedded model, E / B3", *found["embedded"].values())
    if "prefix" in found:
        p = found["prefix"]
        row("step, prompts twice / once", 1000 * p["plain"], 1000 * p["shared"], "ms")
    if "quality" in found:
        q = found["quality"]
        print(f"best eval/accuracy, E minus trl, 5 seeds: {q['difference']:+.4f} ± "
              f"{q['half_interval']:.4f}")  # fmt: skip
    if e and e["utilisation"] is not None:
        print(f"model FLOPs utilisation {100 * e['utilisation']:.1f} %")
    if e:
        print("\npairs per second by pack size; after the slash, times B3's")
        print(f"{'batch':>6} {'B3':>9}" + "".join(f"{pack:>15}" for pack in PACKS))
        for size in BATCHES:
            base = b3["pairs_per_second"][str(size)] if b3 else None
            rates = [e["pairs_per_second"][f"{size} {pack}"] for pack in PACKS]
            cells = "".join(f"{rate:9.0f} /{rate / base if base else 0:4.1f}" for rate in rates)
            print(f"{size:>6} {base or 0:9.0f}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--table", action="store_true", help="join what the folder holds")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "packing")
    options = parser.parse_args()
    folder = options.folder / DEVICE
    folder.mkdir(parents=True, exist_ok=True)
    if options.only:
        result = PARTS[options.only](folder)
        (folder / f"{options.only}.json").write_text(json.dumps(result, indent=1))
        return
    libraries = ("torch", "transformers", "trl", "peft")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {DEVICE_NAME};",
          ", ".join(f"{name} {version(name)}" for name in libraries))  # fmt: skip
    if not options.table:
        for name in PARTS:
            command = [sys.executable, __file__, "--only", name, "--folder", str(options.folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json") if p.stem in PARTS}
    table(found)


if __name__ == "__main__":
    main()
