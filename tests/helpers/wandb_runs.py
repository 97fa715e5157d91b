"""Runs of a search as the real W&B client left them on disk, and their records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def wandb(run: Path, *arguments: object) -> str:
    """What the client's command line prints; it leaves a log in the folder where it is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *map(str, arguments)],
        cwd=run.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def reports(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Rows without what the client adds to each."""
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
