"""Manages the saved states in `state/`, from which open trials continue.

A folder gets its name only when it is complete. For a run at a URL, states are stored only there
and are downloaded where they are read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from dpo_train.storage import mirror
from dpo_train.storage.disk import discarding_partial
from dpo_train.storage.files import checksums_match, write_checksums
from dpo_train.storage.mirror import CHECKSUMS
from tune.run_folder.paths import RunFolder

_REPORTED = "reported"
"""The file in a saved state that has the pairs_seen of the last report before it."""


def save_state(run: RunFolder, trial_id: str, reported: int, save: Callable[[Path], int]) -> int:
    """Writes `state/<trial>/<pairs_seen>/`, and removes all earlier states but the last one.

    `save` writes a session's state and returns its pairs_seen, 0 if it wrote none. `reported` is
    the pairs_seen of the trial's last report. Returns the pairs_seen of the new state, 0 if there
    is none. Raises DiskFull.
    """
    folder = run.states_of(trial_id)
    partial = folder / ".part"
    shutil.rmtree(partial, ignore_errors=True)
    with discarding_partial(partial):
        partial.mkdir(parents=True)
        pairs_seen = save(partial / "session")
        if not pairs_seen or pairs_seen in saved_pairs(run, trial_id):
            shutil.rmtree(partial)
            return 0
        (partial / _REPORTED).write_text(str(reported))
        write_checksums(partial)
    # A process that died may have left an incomplete folder of this name, so we remove it.
    shutil.rmtree(folder / str(pairs_seen), ignore_errors=True)
    partial.replace(folder / str(pairs_seen))
    mirror.hand_over(folder / str(pairs_seen))
    for pairs in saved_pairs(run, trial_id)[:-2]:
        mirror.remove(folder / str(pairs))
    return pairs_seen


def saved_pairs(run: RunFolder, trial_id: str) -> list[int]:
    """Returns the pairs_seen of a trial's saved states, ascending."""
    found = mirror.find(run.states_of(trial_id), f"[0-9]*/{CHECKSUMS}")
    return sorted(int(path.parent.name) for path in found)


def reported_pairs(run: RunFolder, trial_id: str, pairs_seen: int) -> int:
    """Returns the pairs_seen of the last report before a saved state.

    Earlier versions did not store it: they saved only right after a report.
    """
    try:
        text = mirror.read_text(run.state(trial_id, pairs_seen) / _REPORTED)
    except FileNotFoundError:
        return pairs_seen
    return int(text)


def last_whole_state(run: RunFolder, trial_id: str) -> tuple[int, str]:
    """Returns the pairs_seen of the last undamaged state, 0 for none, and a message, maybe empty.

    Damaged states are removed, and the message says so. A state at a URL is downloaded.
    """
    message = ""
    for pairs in reversed(saved_pairs(run, trial_id)):
        folder = run.state(trial_id, pairs)
        if checksums_match(mirror.pull(folder)):
            return pairs, message
        message = f"its state at {pairs} pairs is damaged; it goes on from the one before"
        mirror.remove(folder)
    return 0, message


def last_state(run: RunFolder, trial_id: str, recorded: int) -> tuple[int, str]:
    """Returns the last state that is not ahead of the record, and a message; for the driver.

    A driver's death or a power cut may leave states that are ahead of the record, so we remove
    them. A state at a URL is not downloaded here: the worker checks whether it is damaged.
    """
    saved = {pairs: reported_pairs(run, trial_id, pairs) for pairs in saved_pairs(run, trial_id)}
    for pairs, reported in saved.items():
        if reported > recorded:
            mirror.remove(run.state(trial_id, pairs))
    if run.url is None:
        return last_whole_state(run, trial_id)
    return max((pairs for pairs in saved if saved[pairs] <= recorded), default=0), ""


def saved_session(run: RunFolder, trial_id: str, pairs_seen: int) -> Path:
    """Returns the folder of the session in a saved state."""
    return run.state(trial_id, pairs_seen) / "session"


def drop_state(run: RunFolder, trial_id: str) -> None:
    """Removes all saved states of a trial."""
    mirror.remove(run.states_of(trial_id))


def drop_ended_states(run: RunFolder, ended: Collection[str]) -> None:
    """Removes the states of ended trials, which a driver that died may have left."""
    complete = mirror.find(run.states, f"*/[0-9]*/{CHECKSUMS}")
    for trial_id in {path.parents[1].name for path in complete}.intersection(ended):
        drop_state(run, trial_id)


def forget_state(run: RunFolder, trial_id: str) -> None:
    """Removes this machine's copy of a trial's state at a URL, once it is no longer needed."""
    mirror.forget(run.states_of(trial_id))
