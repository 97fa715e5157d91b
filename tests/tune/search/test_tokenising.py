"""The process that tokenises a search's rows while Ray starts."""

import json
import os
import signal
from pathlib import Path

import pytest

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from dpo_train.reference_pass.tokens import SUMMARY, read_summary
from dpo_train.storage import mirror
from tests.helpers.object_store import LOGIN, ObjectStore
from tune.search.signs_of_life import SignsOfLife
from tune.search.tokenising import Tokenising

pytestmark = pytest.mark.slow


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Which number follows {n}?", "chosen": f"It is {n + 1}.", "rejected": "None."}
        for n in range(30)
    ]
    rows[20]["chosen"] = "It is <|im_end|>."
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    config = override(TrainConfig(), {"data.id": str(path), "data.on_bad_row": "skip"})
    return reference.plan(config, data.load_pairs(config.data), tmp_path / "prepared", "cpu")


def test_it_says_what_is_left_out(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenising = Tokenising(planned)
    tokenising.finish("x", SignsOfLife(), "skip")
    assert tokenising._line() == "tokenised 30 of 30 rows"
    assert capsys.readouterr().out.endswith(
        " x: left out after tokenising: a special token in the text (1)\n"
    )
    summary = read_summary(planned)
    assert summary is not None
    assert (summary.rows, summary.bad) == (30, 1)


def test_a_row_that_is_refused_ends_the_search(planned: Path) -> None:
    plan = json.loads((planned / "plan.json").read_text())
    (planned / "plan.json").write_text(json.dumps({**plan, "on_bad_row": "refuse"}))
    with pytest.raises(InputError, match="line 21: chosen holds"):
        Tokenising(planned).finish("x", SignsOfLife(), "refuse")


def test_data_that_is_finished_needs_no_process(planned: Path) -> None:
    reference.prepare(planned)
    tokenising = Tokenising(planned)
    assert tokenising._process is None
    tokenising.finish("x", SignsOfLife(), "skip")
    with pytest.raises(InputError, match="line 21: chosen holds"):
        tokenising.finish("x", SignsOfLife(), "refuse")


def test_data_that_another_machine_finished_needs_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(mirror.CACHE, str(tmp_path / "first"))
    config = override(TrainConfig(), {"data.limit": 30})
    with ObjectStore(tmp_path) as store:
        root = mirror.local(store.url) / ".prepared"
        folder = reference.plan(config, data.load_pairs(config.data), root, "cpu")
        url = mirror.name(folder)
        reference.prepare(folder)
        monkeypatch.setenv(mirror.CACHE, str(tmp_path / "second"))
        tokenising = Tokenising(mirror.local(url))
        assert tokenising._process is None
        tokenising.finish("x", SignsOfLife(), "refuse")


def test_a_process_that_is_killed_is_said(planned: Path) -> None:
    tokenising = Tokenising(planned)
    assert tokenising._process is not None
    os.kill(tokenising._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="tokenising ended with -9"):
        tokenising.finish("x", SignsOfLife(), "skip")
    assert not (planned / SUMMARY).exists()


def test_it_ends_with_the_driver(planned: Path) -> None:
    tokenising = Tokenising(planned)
    assert tokenising._process is not None
    tokenising.close()
    assert tokenising._process.poll() is not None
