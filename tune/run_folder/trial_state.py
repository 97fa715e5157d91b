"""The saved states of open trials in `state/`, from which they go on.

Every folder appears under its name only when it is complete. Of a run on a URL the states lie there
alone, and are brought where they are read.
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
"""In a saved state: the pairs_seen of the last report before it."""


def save_state(run: RunFolder, trial_id: str, reported: int, save: Callable[[Path], int]) -> int:
    """Writes `state/<trial>/<pairs_seen>/`, and leaves it and the one before.

    `save` writes a session's state and returns its pairs_seen, 0 if it wrote none. `reported`: the
    pairs_seen of the trial's last report. Returns the pairs_seen of the state, 0 if there is no new
    one. Raises DiskFull.
    """
    folder = run.states_of(trial_id)
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    with discarding_partial(part):
        part.mkdir(parents=True)
        pairs_seen = save(part / "session")
        if not pairs_seen or pairs_seen in saved_pairs(run, trial_id):
            shutil.rmtree(part)
            return 0
        (part / _REPORTED).write_text(str(reported))
        write_checksums(part)
    # What a death left there, which is no state.
    shutil.rmtree(folder / str(pairs_seen), ignore_errors=True)
    part.replace(folder / str(pairs_seen))
    mirror.hand_over(folder / str(pairs_seen))
    for pairs in saved_pairs(run, trial_id)[:-2]:
        mirror.remove(folder / str(pairs))
    return pairs_seen


def saved_pairs(run: RunFolder, trial_id: str) -> list[int]:
    """The pairs_seen of a trial's saved states, ascending."""
    found = mirror.find(run.states_of(trial_id), f"[0-9]*/{CHECKSUMS}")
    return sorted(int(path.parent.name) for path in found)


def reported_pairs(run: RunFolder, trial_id: str, pairs_seen: int) -> int:
    """The pairs_seen of the last report before a saved state. Earlier versions saved right after a
    report only."""
    try:
        text = mirror.read_text(run.state(trial_id, pairs_seen) / _REPORTED)
    except FileNotFoundError:
        return pairs_seen
    return int(text)


def last_whole_state(run: RunFolder, trial_id: str) -> tuple[int, str]:
    """The pairs_seen of the last saved state whose files are as they were written, 0 for none, and
    what to say of those that are not, which it removes. Of a URL that state is brought here."""
    told = ""
    for pairs in reversed(saved_pairs(run, trial_id)):
        folder = run.state(trial_id, pairs)
        if checksums_match(mirror.pull(folder)):
            return pairs, told
        told = f"its state at {pairs} pairs is damaged; it goes on from the one before"
        mirror.remove(folder)
    return 0, told


def last_state(run: RunFolder, trial_id: str, recorded: int) -> tuple[int, str]:
    """The same for the driver, of the states that are not ahead of the record, as a driver's death
    may leave them at a URL and a power cut here. It removes those that are, and brings none here:
    of a URL it is the worker who looks whether a state is whole."""
    saved = {pairs: reported_pairs(run, trial_id, pairs) for pairs in saved_pairs(run, trial_id)}
    for pairs, reported in saved.items():
        if reported > recorded:
            mirror.remove(run.state(trial_id, pairs))
    if run.url is None:
        return last_whole_state(run, trial_id)
    return max((pairs for pairs in saved if saved[pairs] <= recorded), default=0), ""


def saved_session(run: RunFolder, trial_id: str, pairs_seen: int) -> Path:
    return run.state(trial_id, pairs_seen) / "session"


def drop_state(run: RunFolder, trial_id: str) -> None:
    mirror.remove(run.states_of(trial_id))


def drop_ended_states(run: RunFolder, ended: Collection[str]) -> None:
    """What a driver's death left of trials that had just ended."""
    complete = mirror.find(run.states, f"*/[0-9]*/{CHECKSUMS}")
    for trial_id in {path.parents[1].name for path in complete}.intersection(ended):
        drop_state(run, trial_id)


def forget_state(run: RunFolder, trial_id: str) -> None:
    """What a process brought here of its trial's state, once it needs it no more."""
    mirror.forget(run.states_of(trial_id))
