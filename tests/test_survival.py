"""What a search survives, each fault done for real: processes killed, disks full, bytes flipped.

Sessions are simulated where training is not the point. More of the same at length: `make soak`.
"""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.errors import InputError
from dpo_train.files import write_atomically
from dpo_train.parts import override
from dpo_train.session import OutOfMemory, open_session, with_less_at_once
from tests.conftest import ROOT, Run, Start
from tests.test_search import (
    YAML,
    _trial_processes,
    children,
    ended,
    hurry,
    wait_for_ended,
    wait_until,
)
from tune import load_results, search
from tune.__main__ import main
from tune.checkpoints import saved_pairs
from tune.config import SearchConfig
from tune.records import read_records
from tune.search import Interrupted, _ray


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "sim.yaml"
    path.write_text(YAML)
    return path


# --- the driver is killed -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments", [3, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_a_driver_killed_at_any_moment_loses_and_repeats_nothing(
    tmp_path: Path, yaml: Path, dpo_tune: Run, start: Start, moments: int
) -> None:
    """Each sitting's reports last another time, so that one sees which sitting trained them. After
    the first kill a saved state is damaged too: its trial goes on from the one before."""
    run, trials = tmp_path / "runs" / "sim", 3 + 2 * moments
    draw = random.Random(moments)
    command: tuple[object, ...] = ("run", yaml, "--set", f"trials={trials}", "--set",
                                   "simulated.seconds_per_report=0.15")  # fmt: skip
    before: dict[str, Any] = {}
    said, damaged = "", ""
    for moment in range(moments):
        process = start(*command)
        wait_for_ended(run, len(before) + 1, process)
        if moment == 0:
            wait_until(lambda: twice_saved(run), process)
        time.sleep(draw.uniform(0, 0.4) if moment else 0)
        process.kill()
        said += process.communicate()[0]
        now = ended(run)
        assert {trial: now[trial] for trial in before} == before
        before = now
        saved = {record.id: max(saved_pairs(run, record.id), default=0)
                 for record in read_records(run)}  # fmt: skip
        if moment == 0:
            damaged = twice_saved(run)
            saved[damaged], newest = saved_pairs(run, damaged)
            state = run / "state" / damaged / str(newest) / "session" / "simulated.json"
            state.write_text(state.read_text().replace(str(newest), "999"))
        kept = {
            record.id: [r for r in record.curve if r["pairs_seen"] <= saved[record.id]]
            for record in read_records(run)
        }
        slower = f"seconds_per_report: {0.15 + (moment + 1) / 1000}"
        text = re.sub(r"seconds_per_report: .*", slower, (run / "search.yaml").read_text())
        write_atomically(run / "search.yaml", text)
        command = ("resume", run)
    hurry(run)
    done = dpo_tune("resume", run)
    assert done.returncode == 0, done.stderr
    assert re.search(f"{damaged}: its state at .* is damaged; it goes on from the one", said)
    after = ended(run)
    records = list(read_records(run))
    assert [record.id.split("-")[1] for record in records] == [f"{n:03d}" for n in range(trials)]
    assert len({record.id.split("-")[0] for record in records}) == 1
    assert len(after) == trials
    assert {trial: after[trial] for trial in before} == before
    for record in records:
        # What was saved when the last driver died was not trained again.
        assert record.curve[: len(kept.get(record.id, []))] == kept.get(record.id, [])
        pairs = [point["pairs_seen"] for point in record.curve]
        assert pairs == sorted(set(pairs))
        if record.state == "finished":
            assert pairs == list(range(64, 513, 64))
    winner = load_results(run).winner
    assert winner is not None
    assert winner.eval["accuracy"] == max(r.metrics["eval/accuracy"] for r in records)


def twice_saved(run: Path) -> str:
    """A trial of which two saved states lie on disk; empty if there is none."""
    return next((r.id for r in read_records(run) if len(saved_pairs(run, r.id)) == 2), "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_within_20_seconds_whatever_a_trial_is_at(
    tmp_path: Path, yaml: Path, start: Start, kind: signal.Signals
) -> None:
    process = start("run", yaml, "--set", "trials=2", "--set", "simulated.seconds_per_report=3600")
    wait_until(lambda: len(_trial_processes(process.pid)) >= 2, process)
    time.sleep(1)
    process.send_signal(kind)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, output
    assert "interrupted; to go on: dpo-tune resume" in output
    assert "Traceback" not in output
    records = list(read_records(tmp_path / "runs" / "sim"))
    assert [record.state for record in records] == ["running"] * 2


# --- what is under it is killed -------------------------------------------------------------


@pytest.mark.slow
def test_when_rays_own_processes_end_the_search_ends_and_can_go_on(
    tmp_path: Path, yaml: Path, start: Start
) -> None:
    """The raylet shares the fate of the dashboard's agent, and a driver would wait for ever."""
    run = tmp_path / "runs" / "sim"
    process = start("run", yaml, "--set", "simulated.seconds_per_report=0.5", "--set", "trials=3")
    wait_until(lambda: any(record.curve for record in read_records(run)), process)
    (raylet,) = (pid for pid, command in children(process.pid) if "raylet/raylet" in command)
    agent = next(pid for pid, command in children(raylet) if "DashboardAgent" in command)
    before = ended(run)
    os.kill(agent, signal.SIGKILL)
    began = time.monotonic()
    output, _ = process.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert process.returncode == 130, output
    assert "Ray's processes on this machine ended; to go on: dpo-tune resume" in output
    assert not [r for r in read_records(run) if r.state == "failed"]
    assert {trial: ended(run)[trial] for trial in before} == before


@pytest.mark.parametrize("named", [None, "127.0.0.1:6379"])
def test_only_ray_address_names_a_cluster_to_search_on(
    monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    """With no address Ray would look for one that `ray start` left behind, and wait for it."""
    asked = []

    def init(address: str, **_: Any) -> None:
        asked.append(address)
        raise ConnectionError

    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named:
        monkeypatch.setenv("RAY_ADDRESS", named)
    config = SearchConfig(name="x", trainer="simulated", trials=1)
    with pytest.raises((ConnectionError, InputError)) as raised, _ray(config):
        pass
    assert ("RAY_ADDRESS: no Ray cluster answers" in str(raised.value)) == bool(named)
    assert asked == [named or "local"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE, errno.EACCES])
def test_only_a_disk_that_failed_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: Path) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(search, "_to_the_end", fail)
    expected = PermissionError if number == errno.EACCES else Interrupted
    with pytest.raises(expected):
        search._go_on(Path("x"))


@pytest.mark.slow
# Ray's own test cluster leaves the handles of what it killed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_dies_costs_its_trials_nothing_but_the_way_to_another(
    tmp_path: Path, yaml: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    run = tmp_path / "runs" / "sim"
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        other = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        process = start(
            "run", yaml, "--set", "trials=2", "--set", "resources.cpus=1", "--set",
            "stopping.name=none", "--set", "simulated.seconds_per_report=1",
        )  # fmt: skip
        wait_until(
            lambda: [len(record.curve) >= 4 for record in read_records(run)] == [True] * 2, process
        )
        cluster.remove_node(other, allow_graceful=False)
        output, _ = process.communicate(timeout=120)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    assert "its process died; it goes on in another" in output
    assert "Traceback" not in output
    records = list(read_records(run))
    assert [record.state for record in records] == ["finished"] * 2
    for record in records:
        assert [point["pairs_seen"] for point in record.curve] == list(range(64, 513, 64))
        # Eight reports of a second each, and one that was not saved yet: none began anew.
        assert record.seconds < 11


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_without_memory_goes_on_with_less_at_once_or_fails_and_the_search_goes_on(
    tmp_path: Path, yaml: Path, dpo_tune: Run
) -> None:
    space = "{optim.batch_size: {choice: [2, 5, 16]}, dpo.loss: {choice: [sigmoid, aot]}}"
    points = ", ".join(
        f"{{optim.batch_size: {batch}, dpo.loss: {loss}}}"
        for batch, loss in ((16, "sigmoid"), (2, "sigmoid"), (5, "sigmoid"), (16, "aot"))
    )
    done = dpo_tune(
        "run", yaml, "--set", f"space={space}", "--set", f"points=[{points}]", "--set", "trials=4",
        "--set", "stopping.name=none", "--set", "simulated.memory_pairs=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *records, coupled = read_records(tmp_path / "runs" / "sim")
    assert [record.state for record in records] == ["finished"] * 3
    assert [record.micro_batch for record in records] == [4, None, 1]
    assert "-000: out of memory: it goes on with 4 pairs at once" in done.stdout
    for record in records:
        pairs = [report["pairs_seen"] for report in record.curve]
        assert len(pairs) == 8
        assert pairs == sorted(set(pairs))
    assert coupled.state == "failed"
    assert coupled.error == (
        "out of memory with a batch of 16, which aot does not allow to be split; lower "
        "optim.batch_size"
    )


def test_half_at_once_is_half_the_batch_that_divides_it() -> None:
    def parts(batch: int) -> list[int]:
        trial, seen = override(TrainConfig(), {"optim.batch_size": batch}), []
        while trial.optim.pairs_at_once > 1:
            trial = with_less_at_once(trial)
            assert trial.optim.batch_size == batch
            seen.append(trial.optim.pairs_at_once)
        with pytest.raises(OutOfMemory, match="out of memory with one pair at once"):
            with_less_at_once(trial)
        return seen

    assert parts(16) == [8, 4, 2, 1]
    assert parts(6) == [3, 1]
    assert parts(5) == [1]
    four = override(TrainConfig(), {"optim.batch_size": 12, "optim.micro_batch_size": 6})
    assert with_less_at_once(four, members=3).optim.pairs_at_once == 3
    with pytest.raises(OutOfMemory, match="out of memory with one pair at once"):
        with_less_at_once(four, members=4)  # each has one of the six already
    with pytest.raises(InputError, match="sft couples the rows of a batch"):
        override(TrainConfig(), {"dpo.loss": ["sigmoid", "sft"], "optim.micro_batch_size": 4})


@pytest.mark.parametrize(("batch", "at_once"), [(16, 4), (12, 5)])
def test_a_batch_in_parts_trains_as_the_whole_does(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path, batch: int, at_once: int
) -> None:
    """Of 40 pairs the last batch is smaller, and its parts are unequal."""
    basics = {"optim.batch_size": batch, "optim.epochs": 2, "optim.learning_rate": 1e-3,
              "optim.warmup_pairs": 16}  # fmt: skip
    whole = override(small_config, basics)
    parts = override(whole, {"optim.micro_batch_size": at_once})
    curves = []
    for trial in (whole, parts):
        session = open_session(trial, small_prepared, "cpu")
        curve = [session.advance()]
        while curve[-1]["pairs_seen"] < session.pairs_total:
            curve.append(session.advance())
            if trial is parts and len(curve) == 2:  # and after a restart with parts
                session.save(tmp_path / "state")
                session.close()
                session = open_session(trial, small_prepared, "cpu")
                session.restore(tmp_path / "state")
        session.close()
        curves.append(curve)
    assert len(curves[0]) == len(curves[1]) > 3
    for one, other in zip(*curves, strict=True):
        assert one["pairs_seen"] == other["pairs_seen"]
        for name in ("train/loss", "eval/margin", "eval/drift", "eval/nll"):
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name


LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from dpo_train.config import TrainConfig
from dpo_train.session import OutOfMemory, open_session, with_less_at_once
trial = TrainConfig.model_validate(json.loads(sys.argv[1]))
session = open_session(trial, Path(sys.argv[2]), "cpu")
session.advance()  # what is allocated once is there now
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), -1))
try:
    session.advance()
    print("enough")
except OutOfMemory as error:
    print(error)
    session.close()
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    session = open_session(with_less_at_once(trial), Path(sys.argv[2]), "cpu")
    print(session.advance()["pairs_seen"])
"""


def test_an_allocator_that_gives_nothing_more_is_told_as_that(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = override(small_config, {"optim.batch_size": 16})
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, trial.model_dump_json(), str(small_prepared), "0"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said, pairs = done.stdout.strip().splitlines()[-2:]
    assert "allocate memory" in said or "MemoryError" in said, done.stdout
    assert float(pairs) == 16


# --- disks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "rows"])
def test_damaged_prepared_data_is_made_anew(
    small_config: TrainConfig, tmp_path: Path, damage: str
) -> None:
    pairs = data.load_pairs(small_config.data)
    folder = reference.plan(small_config, pairs, tmp_path, "cpu")
    first = reference.prepare(folder)
    assert first.computed_pairs == 60
    assert reference.prepare(folder).computed_pairs == 0
    file = folder / "train.arrow"
    content = file.read_bytes()
    if damage == "rows":
        (folder / "manifest.json").unlink()
        text = (folder / "rows.jsonl").read_text()
        (folder / "rows.jsonl").write_text(text.replace("the", "teh", 1))
        with pytest.raises(InputError, match="type the same command again"):
            reference.prepare(folder)
        assert reference.plan(small_config, pairs, tmp_path, "cpu") == folder
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(flipped if damage == "flipped" else content[:-100])
    assert reference.prepare(folder).computed_pairs == 60
    assert file.read_bytes() == content


FULL = """
import json, os, subprocess, sys
from pathlib import Path

os.environ["TMPDIR"] = "runs"  # the trainer's own scratch too
from dpo_train.config import TrainConfig
from dpo_train.session import open_session
from tune import checkpoints
from tune.room import NoRoom

trial = TrainConfig.model_validate(json.loads(sys.argv[1]))
session = open_session(trial, Path(sys.argv[2]), "cpu")
session.advance()
run, filler = Path("runs/one"), Path("runs/filler")
checkpoints.save_state(run, "a", 16, session.save)
def fill():
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError:
            pass
fill()
session.advance()
try:
    checkpoints.save_state(run, "a", 32, session.save)
except NoRoom as error:
    print("NoRoom:", error)
print(checkpoints.last_whole_state(run, "a"))
filler.unlink()
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_sitting_and_leaves_what_was_saved(
    tmp_path: Path, yaml: Path, small_config: TrainConfig, small_prepared: Path
) -> None:
    (tmp_path / "full.py").write_text(FULL)
    trial = small_config.model_dump_json()
    tune = f"{sys.executable} -m tune"
    script = f"""
set -u; mkdir runs; mount -t tmpfs -o size=16m none runs
{sys.executable} full.py '{trial}' {small_prepared}
rm -rf runs/one
{tune} run {yaml} --set trials=5 --set simulated.seconds_per_report=0.3 > first.txt 2>&1 &
driver=$!
while [ $(ls runs/sim/trials 2>/dev/null | wc -l) -lt 3 ]; do sleep 0.2; done
cat /dev/zero > runs/filler 2>/dev/null
wait $driver; echo "first: $?"
cp -r runs/sim/trials before
rm runs/filler
{tune} resume sim > second.txt 2>&1; echo "second: $?"
cp -r runs/sim/trials after
"""
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    first, second = ((tmp_path / f"{name}.txt").read_text() for name in ("first", "second"))
    assert "NoRoom: no room on disk to save in" in done.stdout, done.stderr
    assert "(16, '')" in done.stdout
    assert "first: 130" in done.stdout, first
    assert "second: 0" in done.stdout, second
    assert re.search("(no room on disk|No space left on device).*; to go on: dpo-tune", first)
    assert "Traceback" not in first
    before, after = (
        {path.name: json.loads(path.read_text()) for path in (tmp_path / name).glob("*.json")}
        for name in ("before", "after")
    )
    assert {trial["state"] for trial in after.values()} <= {"finished", "stopped"}
    assert len(after) == 5
    for name, record in before.items():
        if record["state"] in ("finished", "stopped"):
            assert after[name] == record
        assert record["state"] != "failed"


# --- broken input ---------------------------------------------------------------------------

GOOD = {
    "trainer": "simulated",
    "trials": 2,
    "space": {"dpo.beta": {"uniform": [0.1, 0.2]}},
    "points": [{"dpo.beta": 0.15}],
}
VALUES: dict[str, Any] = {
    "a word": "many", "empty": "", "a list": [1, 2], "a mapping": {"a": 1}, "NaN": float("nan"),
    "infinite": float("inf"), "negative": -1, "huge": 10**40, "true": True, "null": None,
}  # fmt: skip
PLACES = ("trials", "trainer", "seed", "space", "points", "objective", "optim.learning_rate",
          "optim.batch_size", "dpo.beta", "stopping.grace_pairs", "resources.cpus", "confirm",
          "select", "keep_best", "budget.hours")  # fmt: skip
TEXTS = {
    "nothing": "", "only a comment": "# later\n", "a list": "- trials: 2\n", "no YAML": "a: [1\n",
    "tabs": "\ttrials: 2\n", "a key twice": "trials: 2\ntrials: 3\n", "bytes": "\0\1\2",
    "two documents": "trials: 2\n---\ntrials: 3\n", "an alias of nothing": "trials: *two\n",
    "a tag": "trials: !!python/object:os.system ls\n", "a merge": "<<: 3\ntrials: 2\n",
    "a number for a key": "1: 2\n", "itself": "a: &a\n  b: *a\n",
}  # fmt: skip


def broken() -> dict[str, str]:
    """A corpus of files that are wrong, each in one way."""
    cases = {f"file of {name}": text for name, text in TEXTS.items()}
    for place in PLACES:
        for name, value in VALUES.items():
            content = json.loads(json.dumps(GOOD))
            part, _, field = place.rpartition(".")
            (content.setdefault(part, {}) if part else content)[field] = value
            cases[f"{place} is {name}"] = json.dumps(content)
    for unknown in ("trails", "model.ids", "optim.lr", "stopping.rungs", "hub.token"):
        content = json.loads(json.dumps(GOOD))
        part, _, field = unknown.rpartition(".")
        (content.setdefault(part, {}) if part else content)[field] = 1
        cases[f"unknown {unknown}"] = json.dumps(content)
    for axis in ({}, {"uniform": [1]}, {"uniform": [2, 1]}, {"log_uniform": [0, 1]}, 3, None,
                 {"choice": []}, {"int": [1.5, 2]}, {"uniform": [0, 1], "choice": [1]},
                 {"uniform": [0.1, 0.2], "when": {"lora.r": 1}}):  # fmt: skip
        cases[f"axis {axis}"] = json.dumps({**GOOD, "space": {"dpo.beta": axis}, "points": []})
    for wrong in ("./nothing", "/nowhere/at/all", "~/none.jsonl", "x.jsonl", "../.."):
        cases[f"data at {wrong}"] = json.dumps({**GOOD, "trainer": "trl", "data": {"id": wrong}})
        cases[f"model at {wrong}"] = json.dumps({**GOOD, "trainer": "trl", "model": {"id": wrong}})
    return cases


FINE = {"confirm is null", "budget.hours is null"}


def test_a_hundred_broken_yamls_are_each_answered_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tune.search._search", lambda *_: pytest.fail("it began"))
    cases = {name: text for name, text in broken().items() if name not in FINE}
    wrong = {}
    for name, text in cases.items():
        Path("x.yaml").write_text(text)
        try:
            code = main(["run", "x.yaml"])
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        shown = capsys.readouterr()
        if (code, shown.err.count("\n"), shown.out) != (2, 1, "") or "Traceback" in shown.err:
            wrong[name] = (code, shown.err, shown.out)
        left = sorted(path.name for path in tmp_path.iterdir())
        if left != ["x.yaml"]:
            wrong.setdefault(name, left)
            shutil.rmtree("runs", ignore_errors=True)
    assert wrong == {}
    assert len(cases) >= 100
