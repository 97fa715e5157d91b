"""Reads and writes `run.json`, the facts of a run beside its trials. Without it there is no run."""

from __future__ import annotations

import random
import string
from pathlib import Path

from pydantic import Field

from dpo_train.storage import mirror
from dpo_train.storage.files import write_durably
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.document import Document, Name
from tune.run_folder.paths import RunFolder


class RunInfo(Document):
    """The content of `run.json`."""

    prefix: Name
    prepared: str
    """The path or URL of the prepared data, the same on every node."""
    device: str
    driver_sessions: list[tuple[float, float]] = Field([], alias="sittings")
    """Unix times at which each driver began and was last seen."""
    most_tokens: int | None = None
    """The most tokens of a pass, after a process ran out of memory; null before that."""
    evaluate_checksum: str | None = None
    """SHA-256 of the file of `confirm.evaluate` when it was last allowed to run."""
    times: int = 1
    """The factor by which an earlier version multiplied the YAML's epochs, when it let trials
    continue after their end."""

    @classmethod
    def read(cls, folder: RunFolder) -> RunInfo:
        """Reads the `run.json` of a run folder. Raises InputError for a damaged file."""
        try:
            return cls.model_validate_json(folder.run_json.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedFile(folder.run_json, error).refusal(
                "restore it from a copy, or start another search with `--name NEW`"
            ) from None

    @property
    def prepared_folder(self) -> Path:
        """The folder of the prepared data on this machine, whether it exists or not."""
        return mirror.local(self.prepared)

    @property
    def wall_seconds(self) -> float:
        """The time of all driver sessions together."""
        return sum(seen - began for began, seen in self.driver_sessions)


def create_run(folder: RunFolder, prepared: Path, device: str) -> None:
    """Creates a new run folder. `run.json` is written last, since it marks the run as complete."""
    folder.trials.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits
    prefix = "".join(random.SystemRandom().choice(letters) for _ in range(6))
    run = RunInfo(prefix=prefix, prepared=mirror.name(prepared), device=device)
    write_durably(folder.run_json, run.model_dump_json(indent=1, by_alias=True))
