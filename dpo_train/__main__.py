"""`python -m dpo_train CONFIG` trains one trial, without Ray."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dpo_train.config import TrainConfig, load_train
from dpo_train.config_base import parse_overrides
from dpo_train.errors import Diverged, InputError
from dpo_train.plain_output import show_control_characters
from dpo_train.quiet import quieten_libraries
from dpo_train.scoring.metrics import objectives


def main() -> int:
    """Run the command, and return its exit code: 0 done, 1 diverged, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m dpo_train", description=__doc__)
    parser.add_argument("yaml", type=Path, help="YAML file with one trial's configuration")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--prepared", type=Path, default=Path("runs/.prepared"),
                        help="where tokenised rows and reference log-probs are kept")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE",
                        help="override a value by its dotted path")  # fmt: skip
    show_control_characters()
    options = parser.parse_args()
    try:
        overrides = parse_overrides(options.set)
        if options.out.exists():
            raise InputError(f"--out: {options.out} exists; name a new folder")
        return train(load_train(options.yaml, overrides), options.out, options.prepared)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _take_the_first_gpu() -> None:
    """Hide all GPUs but the first, because trainers would use every visible one.

    It must be called before CUDA starts. Raises InputError if CUDA has counted the GPUs already.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = first
    import torch  # slow to import

    if torch.cuda.device_count() > 1:  # CUDA has counted already, and does not count again
        raise InputError(
            "one trial trains on one GPU, and several are visible; type "
            f"`export CUDA_VISIBLE_DEVICES={first}`"
        )
    print(f"one trial trains on one GPU: this one uses GPU {first}", flush=True)


def train(config: TrainConfig, out: Path, prepared_root: Path) -> int:
    """Train to the end, print every evaluation, and export the last weights.

    Returns the exit code: 0 done, 1 diverged.
    """
    from dpo_train import data, model_source, reference
    from dpo_train.reference_pass.tokens import read_summary
    from dpo_train.trainers.open import open_session

    # Prepare the data, unless the trainer needs none.
    prepared, device = Path(), "cpu"
    if config.trainer != "simulated":
        config = config.model_copy(update={"model": model_source.resolve(config.model)})
        pairs = data.load_pairs(config.data)
        print(pairs.summary(), flush=True)
        import torch  # slow to import, so errors of the data come first

        quieten_libraries()
        if torch.cuda.device_count() > 1:
            _take_the_first_gpu()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        prepared = reference.plan(config, pairs, prepared_root.absolute(), device)
        reference.prepare(prepared, Progress())
        if summary := read_summary(prepared):
            for note in summary.notes:
                print(note, flush=True)

    # Train from evaluation to evaluation.
    session = open_session(config, prepared, device)
    pairs_seen = 0.0
    try:
        while pairs_seen < session.pairs_total:
            report = session.advance().report
            pairs_seen = report["pairs_seen"]
            numbers = "  ".join(f"{name} {report[name]:.3f}" for name in objectives())
            print(f"{pairs_seen:6.0f} pairs  {numbers}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        session.export(out)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
        return 1
    finally:
        session.close()
    print(f"the model is in {out}")
    return 0


class Progress:
    """Takes every shard of the reference pass, and prints to stderr how far the pass is."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        """Start the clock, and print how many pairs there are."""
        self._pairs = pairs
        self._whole = set(whole)
        self._found = sum(pairs[shard] for shard in whole)
        self._began = self._printed = self._now()
        kept = f", {self._found} of them computed before" if self._found else ""
        _say(f"reference log-probs of {sum(pairs)} pairs{kept}")

    def take(self, shard: int) -> bool:
        """Take every shard: no other process shares this pass."""
        return True

    def give_up(self, shard: int) -> None:
        """Do nothing."""

    def done(self, shard: int) -> None:
        """Count the shard, and print the progress every 10 seconds."""
        self._whole.add(shard)
        now = self._now()
        if now - self._printed < _PROGRESS_EVERY_SECONDS:
            return
        self._printed = now
        done, total = sum(self._pairs[shard] for shard in self._whole), sum(self._pairs)
        computed = done - self._found
        left = ""
        if computed:
            left = f" ({_duration((now - self._began) * (total - done) / computed)} left)"
        _say(f"reference log-probs {done} of {total}{left}")


_PROGRESS_EVERY_SECONDS = 10


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units: 40 s, 1 min 40 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    sys.exit(main())
