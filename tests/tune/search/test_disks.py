"""Full disks and files that were cut short or altered are noticed, and nothing is lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.errors import InputError
from tests.conftest import ROOT


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
from dpo_train.trainers.open import open_session
from dpo_train.errors import DiskFull
from tune.run_folder import trial_state
from tune.run_folder.paths import RunFolder

trial = TrainConfig.model_validate(json.loads(sys.argv[1]))
session = open_session(trial, Path(sys.argv[2]), "cpu")
session.advance()
run, filler = RunFolder.at("runs/one"), Path("runs/filler")
trial_state.save_state(run, "a", 16, session.save)
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
    trial_state.save_state(run, "a", 32, session.save)
except DiskFull as error:
    print("DiskFull:", error)
print(trial_state.last_whole_state(run, "a"))
filler.unlink()
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_driver_session_and_keeps_what_was_saved(
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
    assert "DiskFull: no space left on disk in" in done.stdout, done.stderr
    assert "(16, '')" in done.stdout
    assert "first: 130" in done.stdout, first
    assert "second: 0" in done.stdout, second
    assert re.search("(no space left on disk|No space left on device).*; to go on: ", first)
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
