"""Lists the trackers, and answers questions about them for the driver, doctor and publisher.

These know this file and no single tracker.
"""

from __future__ import annotations

from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.tracking import wandb_client, wandb_files
from tune.tracking.tensorboard_tracker import TensorboardTracker
from tune.tracking.tracker import Say, Tracker
from tune.tracking.wandb_tracker import WandbTracker


def wanted(folder: RunFolder, config: SearchConfig, say: Say) -> list[Tracker]:
    """Returns the trackers that a configuration has. They do nothing before `begin_search`."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorboardTracker(folder, config))
    if config.wandb.mode != "disabled":
        trackers.append(WandbTracker(folder, config, say))
    return trackers


def environment() -> dict[str, str]:
    """Returns the environment for the child, without variables that change what a tracker does."""
    return wandb_client.environment()


def mark_unsent(folder: RunFolder) -> None:
    """Marks the runs that a killed child did not send."""
    wandb_files.mark_unsent(folder)


def how_to_send(folder: RunFolder) -> str:
    """Returns a line on what waits on disk and the command that sends it; empty if nothing does."""
    return wandb_files.how_to_send(folder)


def public_pages(folder: RunFolder) -> dict[str, str]:
    """Returns the public addresses that show a search, by what each shows."""
    sweep = wandb_files.Memory.of(folder).public_page
    return {"W&B sweep": sweep} if sweep else {}


def logins(config: SearchConfig | None) -> dict[str, str]:
    """Returns for each service whether the user is logged in, and what a search sends there."""
    return {WandbTracker.name: wandb_client.describe_login(config)}
