"""Reads the runs of a search that the real W&B client left on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def wandb(run: Path, *arguments: object) -> str:
    """Run the client's command line and return its output. It leaves a log in its folder."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *map(str, arguments)],
        cwd=run.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def reports(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return rows without the fields that the client adds."""
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
