"""Measures how good the winner of a search is, at equal budgets of pairs, on recorded DPO curves.

The curves of the sample (`record_curves.py sample`) are searched many times. Between the points of
the grid each pair follows one of the neighbouring points. So accuracies lie between theirs, and
pairs stay as correlated as they are. A search sees 120 of the pairs; the others show how good its
winner truly is. `--winner` sets the rule that chooses the winner: ours, or the largest accuracy.
winner_rules.py compares rules on all recorded sets.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from curves import load  # noqa: E402
from record_curves import BETAS, EVERY, RATES, SEEDS, TRAIN  # noqa: E402

from dpo_train.scoring.metrics import nll, share_right  # noqa: E402
from tune.run_folder.winner_rule import Candidates, best_first  # noqa: E402

SEEN = 120
"""Held-out pairs that a search compares its trials on."""
WORKERS = 4

# --- the curves as a search sees them -------------------------------------------------------


class World:
    """The recorded curves, with the held-out pairs dealt out anew by each seed."""

    def __init__(self, seed: int) -> None:
        curves = load("sample")
        shape = (len(RATES), len(BETAS), SEEDS, *curves.margin.shape[1:])
        self._margin = curves.margin.reshape(shape)
        self.pairs_seen = curves.pairs_seen.tolist()
        order = np.random.default_rng(seed).permutation(shape[-1])
        self._seen, self._hidden = order[:SEEN], order[SEEN:]
        self._share = np.random.default_rng(0).random(len(order))

    def curve(self, point: dict[str, float], seed: int) -> list[dict[str, Any]]:
        """Return a trial's reports with `margins`, and with `truth`, which no search reads."""
        margins = self._at(self._margin, point, seed)
        seen, hidden = margins[:, self._seen], margins[:, self._hidden]
        return [
            {
                "pairs_seen": pairs,
                "eval/accuracy": float(share_right(seen[report]).mean()),
                "eval/nll": float(nll(seen[report]).mean()),
                "margins": seen[report],
                "truth": float(share_right(hidden[report]).mean()),
            }
            for report, pairs in enumerate(self.pairs_seen)
        ]

    def best(self) -> float:
        """Return the best true accuracy on a fine grid of points, as a mean over the seeds."""
        means = []
        for rate in np.geomspace(RATES[0], RATES[-1], 29):
            for beta in BETAS:
                point = {"optim.learning_rate": rate, "dpo.beta": beta}
                curves = [self.curve(point, seed) for seed in range(SEEDS)]
                means += [np.mean([curve[n]["truth"] for curve in curves])
                          for n in range(len(self.pairs_seen))]  # fmt: skip
        return float(max(means))

    def _at(self, values: Any, point: dict[str, float], seed: int) -> Any:
        low, weight = _place(RATES, point["optim.learning_rate"])
        beta_low, beta_weight = _place(BETAS, point["dpo.beta"])
        # Each pair follows one neighbour; the distance decides how many follow each.
        rate = low + (self._share < weight)
        beta = beta_low + ((self._share * 7919) % 1 < beta_weight)
        return values[rate, beta, seed, :, np.arange(len(self._share))].T


def _place(grid: Any, value: float) -> tuple[int, float]:
    at = np.interp(np.log(value), np.log(grid), np.arange(len(grid)))
    low = min(int(at), len(grid) - 2)
    return low, float(at - low)


# --- searches -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to search."""

    sampler: str = "tpe"
    stopping: str = "eval/nll"
    stopped_as: str = "pruned"
    confirm: int = 0
    """Number of finalists, and of seeds of each."""
    grace: int = EVERY
    """The first rung, in pairs."""


WAYS = {
    "random, no early stopping": Way("random", "none"),
    "random, ASHA on nll": Way("random"),
    "stock: TPE told COMPLETE, ASHA on accuracy": Way("stock", "eval/accuracy", "complete"),
    "TPE told COMPLETE, ASHA on nll": Way(stopped_as="complete"),
    "ours: TPE told PRUNED, ASHA on nll": Way(),
    "TPE told PRUNED, ASHA on accuracy": Way(stopping="eval/accuracy"),
    "TPE told PRUNED, no early stopping": Way(stopping="none"),
    "ours, first rung at 120 pairs": Way(grace=2 * EVERY),
    "GP, ASHA on nll": Way("gp"),
    "CMA-ES, ASHA on nll": Way("cmaes"),
    "random, ASHA on nll, confirmed 3 x 3": Way("random", confirm=3),
    "ours, confirmed 2 x 2": Way(confirm=2),
    "ours, confirmed 3 x 3": Way(confirm=3),
}
OURS = "ours: TPE told PRUNED, ASHA on nll"


@dataclass
class Played:
    """A trial in a simulated search."""

    trial: Any
    point: dict[str, float]
    curve: list[dict[str, float]]
    seed: int
    reported: list[dict[str, Any]] = field(default_factory=list)


def chosen(reports: list[dict[str, Any]], rule: str) -> int:
    """Return the index of the best of some reports."""
    accuracies = np.array([report["eval/accuracy"] for report in reports])
    if rule == "largest":
        return int(np.argmax(accuracies))
    margins = np.stack([report["margins"] for report in reports])
    later = np.array([report["pairs_seen"] for report in reports])
    clusters = np.arange(margins.shape[1])
    return int(best_first(Candidates.of_margins(accuracies, later, margins, clusters))[0])


@lru_cache
def best_of(seed: int) -> float:
    """Return the best true accuracy in a seed's world, which is the same for all ways and
    budgets."""
    return World(seed).best()


def regret(job: tuple[str, str, int, int]) -> float:
    """Return how far the true accuracy of the winner is below the best possible one."""
    rule, name, budget, seed = job
    world = World(seed)
    won = winner(WAYS[name], world, budget * TRAIN, seed, rule)
    return best_of(seed) - float(won["truth"])


def winner(way: Way, world: World, budget: int, seed: int, rule: str) -> dict[str, Any]:
    """Return the report that wins a search with a budget of pairs: the best of each trial's best
    reports."""
    spare = way.confirm**2 * TRAIN
    played = search(way, world, budget - spare, seed)
    best = {id(trial): trial.reported[chosen(trial.reported, rule)] for trial in played}
    finalists: list[Played] = []
    for _ in range(max(1, way.confirm)):
        left = [trial for trial in played if trial not in finalists]
        if left:
            finalists.append(left[chosen([best[id(trial)] for trial in left], rule)])
    if not way.confirm:
        return best[id(finalists[0])]
    runs = []
    for finalist in finalists:
        others = [each for each in range(SEEDS) if each != finalist.seed][: way.confirm]
        curves = [world.curve(finalist.point, each) for each in others]
        runs.append([curve[chosen(curve, rule)] for curve in curves])
    # The runs of a finalist stand side by side: their pairs count as those of one report.
    together = [
        {
            "eval/accuracy": float(np.mean([run["eval/accuracy"] for run in own])),
            "pairs_seen": 0,
            "margins": np.concatenate([run["margins"] for run in own]),
        }
        for own in runs
    ]
    at = chosen(together, rule)
    own = [best[id(finalists[at])], *runs[at]]
    return own[chosen(own, rule)]


def search(way: Way, world: World, budget: int, seed: int) -> list[Played]:
    """Run trials on four equally fast workers until the pairs are spent."""
    import optuna

    from tune.config.schema import SearchConfig
    from tune.config.space import suggest
    from tune.search.early_stopping import TrialKey, make_stopping_rule
    from tune.search.study import make_sampler

    config = SearchConfig.model_validate(
        {
            "name": "x",
            "trials": 1,
            "space": {
                "optim.learning_rate": {"log_uniform": [float(RATES[0]), float(RATES[-1])]},
                "dpo.beta": {"log_uniform": [float(BETAS[0]), float(BETAS[-1])]},
            },
            "sampler": {"name": "tpe" if way.sampler == "stock" else way.sampler, "seed": seed},
            "stopping": {
                "name": "none" if way.stopping == "none" else "asha",
                "metric": "eval/accuracy" if way.stopping == "none" else way.stopping,
                "grace_pairs": way.grace,
            },
            "eval_every_pairs": EVERY,
        }
    )
    rungs = make_stopping_rule(config, TRAIN)
    draw = np.random.default_rng(seed)
    is_stock = way.sampler == "stock"
    sampler = optuna.samplers.TPESampler(seed=seed) if is_stock else make_sampler(config, 0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    running: list[Played] = []
    done: list[Played] = []
    spent = 0

    def start() -> Played:
        trial = study.ask()
        point = suggest(trial, config.space)
        of_seed = int(draw.integers(SEEDS))
        played = Played(trial, point, world.curve(point, of_seed), of_seed)
        rungs.on_trial_add(None, TrialKey(str(trial.number)))
        return played

    while spent < budget:
        running += [start() for _ in range(WORKERS - len(running))]
        for played in list(running):
            report = played.curve[len(played.reported)]
            before = played.reported[-1]["pairs_seen"] if played.reported else 0
            played.reported.append(report)
            spent += int(report["pairs_seen"] - before)
            played.trial.report(report["eval/accuracy"], int(report["pairs_seen"]))
            key = TrialKey(str(played.trial.number))
            is_whole = len(played.reported) == len(played.curve)
            if is_whole:
                rungs.on_trial_complete(None, key, report)
            elif rungs.on_trial_result(None, key, report) != "STOP":
                continue
            running.remove(played)
            done.append(played)
            if is_whole:
                value = max(report["eval/accuracy"] for report in played.reported)
                study.tell(played.trial, report["eval/accuracy"] if is_stock else value)
            elif way.stopped_as == "complete":
                study.tell(played.trial, report["eval/accuracy"])
            else:
                study.tell(played.trial, state=optuna.trial.TrialState.PRUNED)
    return done + [played for played in running if played.reported]


# --- comparing ------------------------------------------------------------------------------


def compare(seeds: int, budgets: list[int], only: list[str], processes: int, rule: str) -> None:
    """Print the regret of each way at each budget."""
    names = [name for name in WAYS if not only or any(word in name for word in [*only, OURS])]
    jobs = [(rule, name, b, seed) for name in names for b in budgets for seed in range(seeds)]
    with ProcessPoolExecutor(processes, initializer=_quietly) as pool:
        regrets = dict(zip(jobs, pool.map(regret, jobs, chunksize=5), strict=True))
    print(f"regret in points of accuracy, mean of {seeds} seeds [95 % interval]; below: against "
          f"ours, seed by seed, negative is better")  # fmt: skip
    print(f"{'':44}" + "".join(f"{f'{b} trials of pairs':>24}" for b in budgets))
    for name in names:
        cells, against = [], []
        for b in budgets:
            values = 100 * np.array([regrets[rule, name, b, seed] for seed in range(seeds)])
            ours = 100 * np.array([regrets[rule, OURS, b, seed] for seed in range(seeds)])
            cells.append(_interval(values))
            against.append("" if name == OURS else _interval(values - ours))
        print(f"{name:44}" + "".join(f"{cell:>24}" for cell in cells))
        print(f"{'':44}" + "".join(f"{cell:>24}" for cell in against), flush=True)


def _interval(values: Any) -> str:
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def _quietly() -> None:
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--winner", choices=["rule", "largest"], default="rule")
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--budgets", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--only", nargs="*", default=[], help="ways whose name holds this")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    compare(options.seeds, options.budgets, options.only, options.processes, options.winner)


if __name__ == "__main__":
    main()
