"""The names of the tasks that workers are given beside trials: they end a search."""

from __future__ import annotations

TEST_TASK = "test-split"
"""What stands where a trial's id would, in the task that Tune is given."""


EVALUATE_TASK = "evaluating-"
"""The same of an evaluation, before the id of the run."""


def is_task(name: str) -> bool:
    """Whether what Tune was given under that name is no trial."""
    return name == TEST_TASK or name.startswith(EVALUATE_TASK)
