"""One rank of a trial that several processes train: `python -m tests.helpers.peer_process JSON`.

Trains two trials, one after the other, and writes what each `advance` returned. The second trial is
saved, closed and restored after two reports.
"""

import json
import sys
from pathlib import Path
from typing import Any

from dpo_train.config import TrainConfig
from dpo_train.trainers.open import open_session
from dpo_train.trainers.process_group import ProcessGroup
from dpo_train.trainers.session import Session


def train(request: dict[str, Any]) -> list[list[dict[str, float]]]:
    """Train both trials and return their reports."""
    config, out = TrainConfig.model_validate(request["config"]), Path(request["out"])
    peers = ProcessGroup(**request["peers"])

    def begin() -> Session:
        return open_session(config, Path(request["prepared"]), "cpu", peers)

    trials = []
    for trial in ("first", "second"):
        session, reports = begin(), list[dict[str, float]]()
        while not reports or reports[-1]["pairs_seen"] < session.pairs_total:
            if trial == "second" and len(reports) == 2:
                session.save(out / "state")
                session.close()
                session = begin()
                session.restore(out / "state")
            reports.append(session.advance().report)
        session.export(out / trial)
        session.close()
        trials.append(reports)
    return trials


def _as_if_on_gpus() -> None:
    """Let accelerate shard on CPUs. It shards on accelerators only, as this state says, but torch's
    FSDP2 itself also runs on a CPU."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def begin_on_gpus(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_on_gpus


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    if request["peers"]["sharded"]:
        _as_if_on_gpus()
    rank = request["peers"]["rank"]
    (Path(request["out"]) / f"reports{rank}.json").write_text(json.dumps(train(request)))
