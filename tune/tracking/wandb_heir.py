"""Runs a `WandbTracker` that writes to disk, after its parent process lost the server.

`python -m tune.tracking.wandb_heir RUN ID …`: the ids are those of the runs that the parent keeps
open. It shares its parent's stdin, so it ends with the parent.
"""

from __future__ import annotations

import sys

from tune.run_folder.paths import RunFolder
from tune.tracking import follower
from tune.tracking.wandb_tracker import WandbTracker

if __name__ == "__main__":
    follower.main(
        RunFolder.at(sys.argv[1]),
        lambda folder, config, say: [WandbTracker(folder, config, say, sys.argv[2:])],
        is_only_child=False,
    )
