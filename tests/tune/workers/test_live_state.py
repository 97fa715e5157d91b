"""What the driver learns from its workers between two reports, and who computes which shard."""

import pytest

from tune.workers import live_state
from tune.workers.live_state import Doing, LiveState


def test_a_trial_says_what_it_does_and_learns_that_it_should_stop() -> None:
    live = LiveState()
    assert live.tell("a", Doing("training", 8, 64)) is False
    seen = live.exchange(["a"], stops=["a"], all=False).trials["a"]
    assert (seen.what, seen.pairs_done, seen.next_report) == ("training", 8, 64)
    assert seen.since > 0
    assert live.tell("a", Doing("training", 16, 64)) is True
    assert live.tell("b", Doing("training")) is False
    later = live.exchange(["a"], stops=[], all=False).trials
    assert later.keys() == {"a"}  # nothing is kept of the others
    assert later["a"].since == seen.since  # it is still doing the same
    assert live.tell("a", Doing("training", 24, 64)) is False
    live.exchange(["a"], stops=[], all=True)
    assert live.tell("a", Doing("training", 32, 64)) is True


def test_a_device_computes_one_shard_at_a_time_and_no_two_the_same() -> None:
    live = LiveState()
    live.begin_reference("key", [64, 64, 32], whole=[])
    assert live.take_shard("key", 0, "gpu 0")
    assert not live.take_shard("key", 1, "gpu 0")  # this is another process of the same device
    assert not live.take_shard("key", 0, "gpu 1")
    assert live.take_shard("key", 1, "gpu 1")
    live.finish_shard("key", 0)
    assert live.take_shard("key", 2, "gpu 0")


def test_the_shard_of_a_dead_process_is_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(live_state.time, "time", lambda: now[0])
    live = LiveState()
    live.begin_reference("key", [64, 64], whole=[])
    assert live.take_shard("key", 0, "node a")
    now[0] += live_state.LEASE_SECONDS - 1
    live.hold_shard("key", 0, "node a")
    now[0] += live_state.LEASE_SECONDS - 1
    assert not live.take_shard("key", 0, "node b")  # its process has reported since
    now[0] += 2
    assert live.take_shard("key", 0, "node b")


def test_a_released_shard_goes_to_another_device() -> None:
    live = LiveState()
    live.begin_reference("key", [64], whole=[])
    assert live.take_shard("key", 0, "gpu 0")
    live.give_up_shard("key", 0, "gpu 1")  # the shard isn't theirs
    assert not live.take_shard("key", 0, "gpu 1")
    live.give_up_shard("key", 0, "gpu 0")
    assert live.take_shard("key", 0, "gpu 1")


def test_a_damaged_shard_may_be_computed_again() -> None:
    live = LiveState()
    live.begin_reference("key", [64, 64], whole=[0])
    assert live.take_shard("key", 0, "gpu 0")


def test_the_reference_pass_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(live_state.time, "time", lambda: now[0])
    live = LiveState()
    assert live.exchange([], [], False).reference is None
    # An earlier session computed shard 3.
    live.begin_reference("key", [100, 100, 50, 50], whole=[3])
    first = live.exchange([], [], False).reference
    assert first is not None
    assert (first.pairs_done, first.pairs_total, first.seconds_left) == (50, 300, None)
    now[0] += 20
    live.finish_shard("key", 0)
    second = live.exchange([], [], False).reference
    assert second is not None
    assert (second.pairs_done, second.seconds_left) == (150, pytest.approx(30))
    live.finish_shard("key", 1)
    live.finish_shard("key", 2)
    assert live.exchange([], [], False).reference is None
