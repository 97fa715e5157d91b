"""The reference pass in shards: which process computes which shard, and what a death costs."""

import multiprocessing
import os
import signal
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest

from dpo_train import data, model, reference
from dpo_train.config import TrainConfig
from dpo_train.errors import OutOfMemory
from dpo_train.reference_pass import tokens
from dpo_train.scoring import logps
from dpo_train.storage import mirror
from tests.helpers.object_store import LOGIN, ObjectStore


def plan(config: TrainConfig, root: Path) -> Path:
    return reference.plan(config, data.load_pairs(config.data), root, "cpu")


class Recorded:
    """Takes the shards that it is allowed to take and records all calls."""

    def __init__(self, allowed: Collection[int] = range(1000)) -> None:
        self.allowed = allowed
        self.pairs: Sequence[int] = ()
        self.whole: Collection[int] = ()
        self.taken: list[int] = []
        self.seen: set[int] = set()
        self.given_up: list[int] = []

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        self.pairs, self.whole = pairs, whole

    def take(self, shard: int) -> bool:
        if shard in self.allowed:
            self.taken.append(shard)
        return shard in self.allowed

    def done(self, shard: int) -> None:
        self.seen.add(shard)

    def give_up(self, shard: int) -> None:
        self.given_up.append(shard)


class Stopped(Exception):
    pass


class Stopping(Recorded):
    """Ends the pass when it gets its fourth shard."""

    def take(self, shard: int) -> bool:
        if len(self.taken) == 3:
            raise Stopped
        return super().take(shard)


class Dying(Recorded):
    """Dies when it gets its third shard, like a process that is killed."""

    def take(self, shard: int) -> bool:
        if len(self.taken) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().take(shard)


def _prepare_in_a_process(folder: Path, turns: Recorded) -> tuple[int, Recorded]:
    tokens._FEWEST_PAIRS = 10
    return reference.prepare(folder, turns).computed_pairs, turns


@pytest.fixture
def shards_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the 60 rows into six shards."""
    monkeypatch.setattr(tokens, "_FEWEST_PAIRS", 10)


def splits(folder: Path) -> list[bytes]:
    return [(folder / f"{name}.arrow").read_bytes() for name in ("train", "eval", "test")]


@pytest.mark.usefixtures("shards_of_ten")
def test_a_pass_is_cut_into_shards_that_depend_on_the_rows(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    folder = plan(small_config, tmp_path)
    summary = tokens.tokenised(folder)
    file = tokens.TokenFile(folder, summary.pad_token_id)
    assert [len(shard) for shard in file.shards] == [10] * 6
    assert sorted(index for shard in file.shards for index in shard) == list(range(60))
    lengths = [
        [
            len(prompt) + max(len(chosen), len(rejected))
            for prompt, chosen, rejected in zip(*file.columns(shard).values(), strict=True)
        ]
        for shard in file.shards
    ]
    flat = [length for shard in lengths for length in shard]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.usefixtures("shards_of_ten")
def test_one_process_takes_each_shard_once(small_config: TrainConfig, tmp_path: Path) -> None:
    folder, turns = plan(small_config, tmp_path), Recorded()
    assert reference.prepare(folder, turns).computed_pairs == 60
    assert turns.pairs == [10] * 6
    assert turns.whole == frozenset()
    assert turns.taken == [0, 1, 2, 3, 4, 5]
    assert turns.seen == set(range(6))
    assert not (folder / "shards").exists()


@pytest.mark.slow
def test_two_processes_share_the_shards(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    folder = plan(small_config, tmp_path)
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        # Both processes may take shards 3 and 4. The locks make sure that only one of them does.
        work = [(folder, Recorded({0, 1, 3, 4})), (folder, Recorded({2, 5, 3, 4}))]
        (first, one), (second, two) = pool.starmap(_prepare_in_a_process, work, chunksize=1)
    assert first + second == 60
    assert min(first, second) >= 20
    assert sorted(one.taken + two.taken) == list(range(6))
    assert one.seen == two.seen == set(range(6))
    shared, alone = reference.prepare(folder), reference.prepare(small_prepared)
    assert shared.base == alone.base
    for name in ("train", "eval", "test"):
        ours, theirs = shared.split(name)[:], alone.split(name)[:]
        for column, values in ours.items():
            if column.endswith("_logps"):
                assert values == pytest.approx(theirs[column], rel=1e-5)
            else:
                assert values == theirs[column]


@pytest.mark.slow
@pytest.mark.usefixtures("shards_of_ten")
def test_a_pass_that_was_killed_goes_on(small_config: TrainConfig, tmp_path: Path) -> None:
    folder = plan(small_config, tmp_path / "killed")
    process = multiprocessing.get_context("spawn").Process(
        target=_prepare_in_a_process, args=(folder, Dying())
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    turns = Recorded()
    assert reference.prepare(folder, turns).computed_pairs == 40
    assert turns.whole == {0, 1}
    assert turns.taken == [2, 3, 4, 5]
    whole = plan(small_config, tmp_path / "whole")
    reference.prepare(whole)
    assert splits(folder) == splits(whole)


@pytest.mark.usefixtures("shards_of_ten")
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_shard_is_computed_anew(
    small_config: TrainConfig, tmp_path: Path, damage: str
) -> None:
    folder = plan(small_config, tmp_path)
    with pytest.raises(Stopped):
        reference.prepare(folder, Stopping())
    file = folder / "shards" / "0001.json"
    content = file.read_bytes()
    damaged = {"cut": content[:-9], "flipped": content.replace(b"1", b"2", 1), "empty": b""}
    file.write_bytes(damaged[damage])
    turns = Recorded()
    assert reference.prepare(folder, turns).computed_pairs == 40
    assert turns.taken == [1, 3, 4, 5]


def test_a_process_that_only_merges_loads_no_model(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppingAtTheEnd(Recorded):
        def done(self, shard: int) -> None:
            if shard == len(self.pairs) - 1:
                raise Stopped

    folder = plan(small_config, tmp_path)
    with pytest.raises(Stopped):
        reference.prepare(folder, StoppingAtTheEnd())
    monkeypatch.setattr(model, "load_base", None)
    assert reference.prepare(folder).computed_pairs == 0


@pytest.mark.slow
@pytest.mark.usefixtures("shards_of_ten")
def test_another_machine_goes_on_from_the_shards_on_the_url(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(mirror.CACHE, str(tmp_path / "first"))
    with ObjectStore(tmp_path) as store:
        folder = plan(small_config, mirror.local(store.url) / ".prepared")
        url = mirror.name(folder)
        with pytest.raises(Stopped):
            reference.prepare(folder, Stopping())
        assert sum("/shards/" in path for path in store.read(".prepared")) == 3
        monkeypatch.setenv(mirror.CACHE, str(tmp_path / "second"))
        turns = Recorded()
        assert reference.prepare(mirror.local(url), turns).computed_pairs == 30
        assert turns.seen == set(range(6))
        left = {path.rpartition("/")[2] for path in store.read(".prepared")}
    arrows = {"train.arrow", "eval.arrow", "test.arrow"}
    assert left == {"rows.jsonl", "plan.json", "tokens.json", "manifest.json", *arrows}


def test_a_pass_without_memory_is_made_in_smaller_batches(
    small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(logps, "_tokens_per_batch", {"cpu": 2048})
    sizes = []

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError
        return batch["input_ids"].sum(1)

    columns = reference.prepare(small_prepared).split("eval")[:]
    fits = 1000
    chosen, rejected = logps.score_with(forward, columns, 0, "cpu")
    fits = 4
    assert np.array_equal(logps.score_with(forward, columns, 0, "cpu"), [chosen, rejected])
    assert sizes[-1] <= 4
    fits = 1
    with pytest.raises(OutOfMemory, match="log-probs of one pair"):
        logps.score_with(forward, columns, 0, "cpu")


@pytest.mark.usefixtures("shards_of_ten")
def test_a_shard_that_could_not_be_computed_is_released(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search would otherwise wait for ever, because the process that took it may go on."""

    def full(*_: object) -> None:
        raise OutOfMemory("out of memory with one pair at once")

    monkeypatch.setattr(logps, "score_with", full)
    turns = Recorded()
    with pytest.raises(OutOfMemory):
        reference.prepare(plan(small_config, tmp_path), turns)
    assert turns.given_up == turns.taken == [0]
