"""Makes the results of a search of any size from simulated sessions, without Ray."""

import random
from typing import Any

from dpo_train.errors import Diverged
from dpo_train.evaluation.test_report import Answer, Numbers
from dpo_train.trainers.simulated import SimulatedSession
from tune.config.checks import check
from tune.config.objective import Objective
from tune.config.schema import SearchConfig
from tune.run_folder.results import Cost, Results, Winner
from tune.run_folder.trial_record import TrialRecord

SEARCH: dict[str, Any] = {
    "name": "sim",
    "trainer": "simulated",
    "trials": 24,
    "space": {
        "optim.learning_rate": {"log_uniform": [1e-5, 2]},
        "dpo.beta": {"uniform": [0.05, 0.5]},
        "optim.batch_size": {"choice": [4, 8]},
        "lora": {"choice": [None, {"alpha": 32}]},
        "lora.r": {"int": [4, 64], "when": {"lora": "not null"}},
    },
    "stopping": {"grace_pairs": 64, "reduction": 3},
    "eval_every_pairs": 64,
}


def simulated(count: int, **changes: Any) -> Results:
    """Return the results of a search with random points, which stops a fixed share of trials."""
    config = check(SearchConfig.model_validate({**SEARCH, "trials": count, **changes}))
    objective = config.goal
    trials = [trial(config, objective, number) for number in range(count)]
    ranked = [trials[n] for n in objective.by_value([record.metrics for record in trials])]
    fronts = objective.front_numbers([record.metrics for record in ranked])
    front = [record.id for record, number in zip(ranked, fronts, strict=True) if number == 0]
    best = ranked[0]
    winner = Winner(
        trial=best.id,
        config=best.config,
        eval={
            name.removeprefix("eval/"): value
            for name, value in best.metrics.items()
            if name.startswith("eval/")
        },
        pairs_seen=int(best.metrics["pairs_seen"]),
        test=Numbers(
            metrics={"accuracy": 0.9, "ranking": 0.85, "drift": 0.1}, interval=[0.8, 0.9], pairs=99
        ),
    )
    base = Numbers(metrics={"ranking": 0.5}, interval=[0.4, 0.6], pairs=99)
    return Results(
        name="sim",
        objective=objective,
        base={"eval": base, "test": base},
        winner=winner,
        trials=trials,
        cost=Cost(wall_seconds=100, pairs_seen=sum(record.pairs_seen for record in trials)),
        answers=[Answer(prompt="Why?", base="No.", winner="Yes.", chosen="Because.")],
        ended=f"all {count} trials",
        search=config.model_dump(mode="json", by_alias=True),
        ranking=[record.id for record in ranked],
        front=front if objective.second else [],
    )


def many(count: int) -> Results:
    """Return the results of a search of thousands of trials, made from a few hundred."""
    few = simulated(300)
    trials = [
        few.trials[number % 300].model_copy(update={
            "id": f"abc123-{number:03d}",
            "config": {**few.trials[number % 300].config, "dpo.beta": 0.05 + 0.45 * number / count},
        })
        for number in range(count)
    ]  # fmt: skip
    ranked = [trials[n].id for n in few.objective.by_value([trial.metrics for trial in trials])]
    return few.model_copy(update={"trials": trials, "ranking": ranked})


def trial(config: SearchConfig, objective: Objective, number: int) -> TrialRecord:
    """Return a trial that trains to its end, is stopped after three reports, or diverges."""
    draw = random.Random(number)
    point: dict[str, Any] = {
        "optim.learning_rate": 10 ** draw.uniform(-5, 0.3),
        "dpo.beta": draw.uniform(0.05, 0.5),
        "optim.batch_size": draw.choice([4, 8]),
    }
    point |= draw.choice([{"lora": None}, {"lora": {"alpha": 32}, "lora.r": draw.randint(4, 64)}])
    point = {path: value for path, value in point.items() if path in config.space}
    session = SimulatedSession(config.trial(point))
    curve: list[dict[str, float]] = []
    state, error = "finished", None
    stops = draw.random() < 0.5
    while not curve or curve[-1]["pairs_seen"] < session.pairs_total:
        try:
            report = session.advance().report
            curve.append({**report, "train/loss": 0.9 * report["eval/loss"]})
        except Diverged as diverged:
            state, error = "failed", str(diverged)
            break
        if stops and len(curve) == 3:
            state = "stopped"
            break
    return TrialRecord.model_validate(
        {
            "id": f"abc123-{number:03d}",
            "state": state,
            "config": point,
            "metrics": max(
                curve, key=lambda report: (objective.worth(report), report["pairs_seen"])
            ),
            "curve": curve,
            "error": error,
            "began": 1.7e9 + number,
            "ended": 1.7e9 + number + 2.0 * len(curve),
            "seconds": 2.0 * len(curve),
        }
    )
