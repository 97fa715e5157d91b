"""The trackers that there are, which of them a search wants, and what others ask of each.

The driver, the doctor and the publisher know this file and no tracker.
"""

from __future__ import annotations

from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.tracking import wandb_client, wandb_files
from tune.tracking.tensorboard_tracker import TensorboardTracker
from tune.tracking.tracker import Say, Tracker
from tune.tracking.wandb_tracker import WandbTracker


def wanted(folder: RunFolder, config: SearchConfig, say: Say) -> list[Tracker]:
    """The trackers that a search wants. None does anything before it is told to begin."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorboardTracker(folder, config))
    if config.wandb.mode != "disabled":
        trackers.append(WandbTracker(folder, config, say))
    return trackers


def environment() -> dict[str, str]:
    """This process's environment, without what would change what a tracker does; for the child."""
    return wandb_client.environment()


def mark_unsent(folder: RunFolder) -> None:
    """Marks what a child that was ended left unsent in a run folder."""
    wandb_files.mark_unsent(folder)


def how_to_send(folder: RunFolder) -> str:
    """Says what waits on disk and the command that sends it; empty if nothing waits."""
    return wandb_files.how_to_send(folder)


def public_pages(folder: RunFolder) -> dict[str, str]:
    """The addresses at which everyone may see a search, by what is seen there."""
    sweep = wandb_files.Memory.of(folder).public_page
    return {"W&B sweep": sweep} if sweep else {}


def logins(config: SearchConfig | None) -> dict[str, str]:
    """Whether one is logged in to each service, by its name, and what a search does with it."""
    return {WandbTracker.name: wandb_client.describe_login(config)}
