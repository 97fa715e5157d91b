"""The view of a search's runs, saved by the real client to a server on loopback."""

import json
import re
from pathlib import Path

from tests.conftest import Run
from tests.helpers.wandb_server import WandbServer
from tests.tune.tracking.test_follower import Search


def test_one_call_lays_out_the_panels_of_a_search(
    tmp_path: Path, server: WandbServer, dpo_tune: Run
) -> None:
    folder = Search(tmp_path / "runs").folder
    (folder / "wandb.json").write_text(json.dumps({"sweep": "acme/dpo-tune/1234"}))
    done = dpo_tune("dashboard", "x")
    assert done.returncode == 0, done.stderr
    assert re.search(r"/acme/dpo-tune\?nw=\w+$", done.stdout.strip())
    view = server.views["x"]
    assert (view["entityName"], view["projectName"]) == ("acme", "dpo-tune")
    kinds = set(re.findall(r'"viewType":"([^"]+)"', view["spec"]))
    assert {"Run History Line Plot", "Scatter Plot", "Parallel Coordinates Plot"} <= kinds
    assert "Parameter Importance" in kinds
    for part in ("optim.learning_rate", "eval/accuracy", "pairs_seen", '"x"'):
        assert part in view["spec"]


def test_a_search_that_wandb_never_saw_has_no_dashboard(tmp_path: Path, dpo_tune: Run) -> None:
    Search(tmp_path / "runs", mode="offline")
    refused = dpo_tune("dashboard", "x")
    assert refused.returncode == 2
    assert "run it with `--set wandb.mode=online`" in refused.stderr
    assert refused.stderr.count("\n") == 1
