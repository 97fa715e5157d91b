"""`run.json`: what a run folder knows beside its trials. A folder without it is no run."""

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
    """The prepared data, as every node knows it: a path or a URL."""
    device: str
    driver_sessions: list[tuple[float, float]] = Field([], alias="sittings")
    """Unix times at which a driver began and was last seen."""
    most_tokens: int | None = None
    """The most tokens of a pass since a process ended for lack of memory; null before."""
    evaluate_checksum: str | None = None
    """SHA-256 of the file of `confirm.evaluate` when it was last allowed to run."""
    times: int = 1
    """By how much an earlier version multiplied the epochs of the YAML, when it let trials train
    on after their end."""

    @classmethod
    def read(cls, folder: RunFolder) -> RunInfo:
        """Raises InputError for a file that can't be read."""
        try:
            return cls.model_validate_json(folder.run_json.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedFile(folder.run_json, error).refusal(
                "restore it from a copy, or start another search with `--name NEW`"
            ) from None

    @property
    def prepared_folder(self) -> Path:
        """Where this machine has it, or would."""
        return mirror.local(self.prepared)

    @property
    def wall_seconds(self) -> float:
        return sum(seen - began for began, seen in self.driver_sessions)


def create_run(folder: RunFolder, prepared: Path, device: str) -> None:
    """Lays out a new run folder; run.json comes last, so a folder without it is no run."""
    folder.trials.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits
    prefix = "".join(random.SystemRandom().choice(letters) for _ in range(6))
    run = RunInfo(prefix=prefix, prepared=mirror.name(prepared), device=device)
    write_durably(folder.run_json, run.model_dump_json(indent=1, by_alias=True))
