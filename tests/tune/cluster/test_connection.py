"""Ray on a machine that is too busy to start it in time."""

from typing import Any

import pytest
import ray

from dpo_train.errors import InputError
from tune.cluster import connection


@pytest.mark.parametrize("slow_starts", [1, 2])
def test_a_ray_that_does_not_come_up_in_time_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, slow_starts: int
) -> None:
    """The slow machine is simulated: no test can produce the load that makes a start slow."""
    starts: list[str] = []

    def init(address: str, **_: Any) -> None:
        starts.append(address)
        if len(starts) <= slow_starts:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", init)
    if slow_starts == 1:
        connection._initialize("local")
    else:
        with pytest.raises(InputError, match="did not start within 30 seconds, twice"):
            connection._initialize("local")
    assert starts == ["local", "local"]


def test_other_errors_of_ray_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise RuntimeError("the session folder is not writable")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="session folder"):
        connection._initialize("local")
