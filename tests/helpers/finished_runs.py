"""Makes a run folder with a trained winner, without Ray, for tests that use a winner.

Imports nothing that reads HF_ENDPOINT before `make_run`: its callers set their own Hub first.
"""

import time
from pathlib import Path
from typing import Any

from tune.run_folder.paths import RunFolder

POINTS = ({"dpo.beta": 0.1}, {"dpo.beta": 0.3})


def make_run(root: Path, name: str, **content: Any) -> Path:
    """Make a finished search of two trials on 60 of the sample's pairs, without Ray."""
    from dpo_train import data, model_source, reference
    from dpo_train.config_base import parse
    from dpo_train.evaluation import test_split
    from dpo_train.evaluation.test_report import TestFolders
    from dpo_train.trainers.open import open_session
    from tune.cluster import environment
    from tune.config.checks import check
    from tune.config.schema import SearchConfig
    from tune.run_folder import exports, yaml_file
    from tune.run_folder.assemble import SearchEnd, assemble
    from tune.run_folder.folder import open_run
    from tune.run_folder.held_out import HeldOut
    from tune.run_folder.results import write_results
    from tune.run_folder.run_info import create_run
    from tune.run_folder.step import Step

    space = {"dpo.beta": {"uniform": [0.05, 0.5]}}
    content = {
        "name": name,
        "runs_dir": str(root / "runs"),
        "trials": len(POINTS),
        "space": space,
        "data": {"limit": 60},
        "optim": {"learning_rate": 2e-3, "warmup_pairs": 8},
        "eval_every_pairs": 40,
        "stopping": {"name": "none"},
        **content,
    }
    config = check(parse(SearchConfig, content, {}, name))
    config = config.model_copy(update={"model": model_source.resolve(config.model)})
    pairs = data.load_pairs(config.data)
    prepared = reference.plan(config.base_trial(), pairs, root / "prepared", "cpu")
    folder = config.folder
    folder.mkdir(parents=True)
    yaml_file.write_yaml(folder / "search.yaml", config)
    create_run(RunFolder.at(folder), prepared, "cpu")
    records = open_run(RunFolder.at(folder)).records
    records.begin_driver_session()
    for point in POINTS:
        trial_id = records.next_id()
        records.add(trial_id, point)
        records.begin(trial_id)
        session = open_session(config.trial(point), prepared, "cpu")
        found = session.advance()
        step = Step(found.report, time.time(), 1.0, HeldOut.of(found.held_out))
        records.report(trial_id, step)
        stamp = exports.ExportStamp(trial=trial_id, config=point, report=found.report)
        exports.offer_export(
            RunFolder.at(folder), stamp, exports.Rivals(records.objective, 3), session.export
        )
        session.close()
        records.end(trial_id, "finished")
    won = exports.promote_to_winner(records)
    test = test_split.evaluate_on_test(
        TestFolders(folder / "winner", prepared, "cpu"), config.model
    )
    results = assemble(config, records, SearchEnd("all 2 trials", won, test))
    ran_on = environment.describe({"CPU": 2})
    write_results(folder / "results.json", results.model_copy(update={"environment": ran_on}))
    return folder
