"""The Ray that a search runs on: a cluster that is there, or one of its own on this machine."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator

from dpo_train.errors import InputError, one_line
from tune.config.schema import SearchConfig

# Tune leaves no files but ours, writes no snapshots, keeps the workers in our folder, and starts
# all processes at once, where it would wait for each before the next; those that Ray starts in
# advance fit no trial.
_ENVIRONMENT = {
    "TUNE_MAX_PENDING_TRIALS_PG": "256",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_SLOW_START = "timed out during startup"
"""In what Ray says of daemons that did not come up in time; the error is a plain Exception."""


@contextlib.contextmanager
def connected(config: SearchConfig, import_meanwhile: str) -> Iterator[None]:
    """Connects to the cluster that RAY_ADDRESS names, or starts a Ray on this machine.

    A Ray that is connected already stays.

    Ray's daemons take seconds to come up, in which the module `import_meanwhile` is imported.
    Raises InputError if no cluster answers, or if this machine lacks what a trial wants.
    """
    os.environ.update(_ENVIRONMENT)
    import ray  # It reads that environment when it is imported, and it takes a second.

    if ray.is_initialized():
        yield
        return
    importing = threading.Thread(target=importlib.import_module, args=[import_meanwhile])
    importing.start()
    # Never a cluster that only happens to run here, or whose address an earlier one left behind.
    address = os.environ.get("RAY_ADDRESS") or "local"
    _initialize(address)
    importing.join()
    try:
        from tune.cluster.capacity import refuse_or_wait  # imports Ray, so not before the above

        refuse_or_wait(config)
        yield
    finally:
        ray.shutdown()


def _initialize(address: str) -> None:
    """Starts Ray or connects to a cluster. Raises InputError if there is none.

    Ray gives its own daemons 30 seconds to come up, which are too few on a busy machine: then they
    are started once more.
    """
    import ray  # It takes a second.

    for is_last in (False, True):
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            return
        except ConnectionError as error:
            if address == "local":
                raise
            raise InputError(
                f"RAY_ADDRESS: no Ray cluster answers at {address} ({one_line(error, 300)}); start "
                "it with `ray start --head`, or unset RAY_ADDRESS to use this machine alone"
            ) from None
        except Exception as error:
            if _SLOW_START not in str(error):
                raise
            ray.shutdown()
            if is_last:
                raise InputError(
                    "Ray's processes did not come up within 30 seconds, twice; this machine is too "
                    "busy: try again later, or name a cluster by RAY_ADDRESS"
                ) from None
