"""Connects a search to an existing Ray cluster, or starts a Ray of its own on this machine."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator

from dpo_train.errors import InputError, one_line
from tune.config.schema import SearchConfig

# With these, Tune writes no files of its own and no snapshots, leaves workers in our folder, and
# starts all processes at once instead of one after the other. Ray starts no processes in advance,
# since they would fit no trial.
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
"""Part of Ray's message when its daemons did not start in time; the error is a plain Exception."""


@contextlib.contextmanager
def connected(config: SearchConfig, import_meanwhile: str) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start a Ray on this machine.

    A connection that exists already is used, and stays. Ray's daemons take seconds to start, so the
    module `import_meanwhile` is imported in that time. Raises InputError if no cluster answers, or
    if this machine has too little for a trial.
    """
    os.environ.update(_ENVIRONMENT)
    import ray  # it reads that environment when it is imported, and takes a second

    if ray.is_initialized():
        yield
        return
    importing = threading.Thread(target=importlib.import_module, args=[import_meanwhile])
    importing.start()
    # Without an address Ray would join any cluster that runs here, or whose address is left from an
    # earlier one, so we say "local".
    address = os.environ.get("RAY_ADDRESS") or "local"
    _initialize(address)
    importing.join()
    try:
        from tune.cluster.capacity import refuse_or_wait  # it imports Ray, so it comes after that

        refuse_or_wait(config)
        yield
    finally:
        ray.shutdown()


def _initialize(address: str) -> None:
    """Start Ray or connect to a cluster. Raises InputError if there is none.

    Ray gives its daemons 30 seconds to start, too few on a busy machine, so we try twice.
    """
    import ray  # it takes a second

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
                    "Ray's processes did not start within 30 seconds, twice; this machine is too "
                    "busy: try again later, or set RAY_ADDRESS to a cluster"
                ) from None
