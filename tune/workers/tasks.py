"""TODO"""

from __future__ import annotations

JUDGING = "judging"
"""What stands where a trial's id would, in the task that Tune is given."""


EVALUATING = "evaluating-"
"""The same of an evaluation, before the id of the run."""


def is_task(name: str) -> bool:
    """Whether what Tune was given under that name is no trial."""
    return name == JUDGING or name.startswith(EVALUATING)
