"""Measures how good the winner of a search is under each rule that might choose it, on four sets of
recorded trainings, and how true the printed number is.

    python benchmarks/winner_rules.py gains       each rule against the largest number
    python benchmarks/winner_rules.py luck        the expectation and its interval
    python benchmarks/winner_rules.py saturated   the winner where every trial has all pairs right

A search draws trainings at random or by TPE under ASHA, on some of the held-out pairs. The other
pairs show how good its winner truly is. A `±` over splits says nothing about other trainings, so a
jackknife leaves out a tenth of the trainings at a time.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from curves import SETS, Curves, load  # noqa: E402

from dpo_train.scoring.metrics import share_right  # noqa: E402
from tune.run_folder import luck  # noqa: E402
from tune.run_folder.winner_rule import Candidates, best_first, soft_shares  # noqa: E402

WORKERS = 4
REDUCTION = 3
GROUPS = 10
BASE = "largest, ties to the lower drift"
RULES = (
    BASE,
    "largest, ties to the later",
    "lowest nll",
    "largest soft share",
    "the rule",
    "the rule, last reports alone",
    "the best that there is",
)

# --- searches over recorded trainings ---------------------------------------------------------


class Split:
    """The held-out pairs that a search sees, and the true values on the other pairs."""

    def __init__(self, curves: Curves, seen: Any, hidden: Any) -> None:
        self.margins = curves.margin[:, :, seen]
        self.right = curves.right[:, :, seen].mean(axis=-1)
        self.nll = curves.nll[:, :, seen].mean(axis=-1)
        self.drift = curves.drift
        self.truth = curves.right[:, :, hidden].mean(axis=-1)
        self.pairs_seen = curves.pairs_seen.astype(float)
        ranking = curves.ranking
        self.true_ranking = None if ranking is None else ranking[:, :, hidden].mean(axis=-1)
        # The rule uses only the sign of these margins per token.
        self.others = None if ranking is None else ranking[:, :, seen] - 0.5


def halves(curves: Curves, seed: int) -> Split:
    """Deal out the held-out pairs to a search and to the truth."""
    order = np.random.default_rng(seed).permutation(curves.margin.shape[-1])
    size = 120 if len(order) >= 240 else len(order) // 2
    return Split(curves, order[:size], order[size:])


def search(
    curves: Curves, split: Split, sampler: str, seed: int, trials: int, runs: Any
) -> list[tuple[int, int]]:
    """Return the trainings that a search drew, each with its number of reports. None is drawn
    twice. The list is empty if there are fewer trainings than `trials`."""
    if trials > len(runs):
        return []
    draw = np.random.default_rng(seed)
    left = list(draw.permutation(runs))
    study: Any = None
    if sampler == "tpe":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        chooser = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(direction="maximize", sampler=chooser)
    points = np.stack([np.log(curves.rates), np.log(curves.betas)], axis=1)
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    rungs: dict[int, list[float]] = {0: [], 2: []}
    running: list[list[Any]] = []
    begun: list[list[Any]] = []

    def start() -> None:
        proposal = study.ask() if study else None
        at = 0
        if proposal is not None:
            point = np.array([proposal.suggest_float(axis, 0, 1) for axis in ("rate", "beta")])
            at = int(np.argmin(((points[left] - point) ** 2).sum(axis=1)))
        begun.append([left.pop(at), 0, proposal])
        running.append(begun[-1])

    def end(trial: list[Any], is_whole: bool) -> None:
        import optuna

        running.remove(trial)
        if trial[2] is not None and is_whole:
            study.tell(trial[2], split.right[trial[0]].max())
        elif trial[2] is not None:
            study.tell(trial[2], state=optuna.trial.TrialState.PRUNED)

    while len(begun) < trials or running:
        while len(running) < WORKERS and len(begun) < trials:
            start()
        for trial in list(running):
            run, report, proposal = trial
            trial[1] += 1
            if proposal is not None:
                proposal.report(split.right[run, report], int(split.pairs_seen[report]))
            if trial[1] == len(split.pairs_seen):
                end(trial, True)
            elif report in rungs:
                rungs[report].append(-split.nll[run, report])
                if rungs[report][-1] < np.percentile(rungs[report], 100 * (1 - 1 / REDUCTION)):
                    end(trial, False)
    return [(run, reports) for run, reports, _ in begun]


def winner_of(split: Split, trials: list[tuple[int, int]], rule: str) -> tuple[int, int]:
    """Return the training and the report that win."""
    rows = [(run, report) for run, reports in trials for report in range(reports)]
    at = tuple(np.array(rows).T)
    right, later = split.right[at], split.pairs_seen[at[1]]
    if rule == BASE:
        return rows[int(np.lexsort((split.drift[at], -right))[0])]
    if rule == "largest, ties to the later":
        return rows[int(np.lexsort((-later, -right))[0])]
    if rule == "lowest nll":
        return rows[int(np.argmin(split.nll[at]))]
    if rule == "largest soft share":
        return rows[int(np.argmax(soft_shares(split.margins[at])))]
    if rule == "the best that there is":
        return rows[int(np.argmax(split.truth[at]))]
    last = {run: (run, reports - 1) for run, reports in trials}
    if rule == "the rule":
        last = {
            run: best(split, [(run, report) for report in range(reports)])
            for run, reports in trials
        }
    return best(split, list(last.values()))


def best(split: Split, rows: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the best of some reports by the rule."""
    at = tuple(np.array(rows).T)
    clusters = np.arange(split.margins.shape[-1])
    others = split.others[at] if split.others is not None else None
    candidates = Candidates.of_margins(
        split.right[at], split.pairs_seen[at[1]], split.margins[at], clusters, others
    )
    return rows[int(best_first(candidates)[0])]


# --- gains ------------------------------------------------------------------------------------


@lru_cache
def curves_of(name: str) -> Curves:
    """Return a recorded set, loaded once."""
    return load(name)


def gains_of(job: tuple[str, str, int, tuple[int, ...], int]) -> dict[Any, Any]:
    """Return the true accuracy and ranking of one search's winner, by budget and rule."""
    name, sampler, seed, budgets, without = job
    curves = curves_of(name)
    group = np.random.default_rng(0).permutation(len(curves.margin)) % GROUPS
    runs = np.flatnonzero(group != without)
    split = halves(curves, seed)
    found = {}
    for budget in budgets:
        trials = search(curves, split, sampler, seed, budget, runs)
        for rule in RULES if trials else ():
            run, report = winner_of(split, trials, rule)
            ranking = split.true_ranking[run, report] if split.true_ranking is not None else np.nan
            found[budget, rule] = (100 * split.truth[run, report], 100 * ranking)
    return found


def gains(sets: list[str], samplers: list[str], budgets: list[int], seeds: int, pool: Any) -> None:
    """Print each rule's gain over the largest number."""
    for name in sets:
        for sampler in samplers:
            jobs = [
                (name, sampler, seed, tuple(budgets), without)
                for without in range(-1, GROUPS)
                for seed in range(seeds)
            ]
            found = list(pool.map(gains_of, jobs, chunksize=10))
            print(f"\n{name}, {sampler} with ASHA: gain in points against {BASE!r}; ± over "
                  f"{seeds} splits, ± over trainings; ranking")  # fmt: skip
            for budget in budgets:
                with_base = [one for one in found if (budget, BASE) in one]
                if not with_base:
                    continue
                for rule in RULES[1:]:
                    gain = np.array([np.subtract(one[budget, rule], one[budget, BASE])
                                     for one in with_base]).reshape(-1, seeds, 2)  # fmt: skip
                    means = gain.mean(axis=1)
                    spread = means[1:, 0] - means[1:, 0].mean()
                    # A search of all trainings can leave none out.
                    jackknife = np.nan
                    if len(means) == GROUPS + 1:
                        jackknife = 1.96 * np.sqrt((GROUPS - 1) / GROUPS * (spread**2).sum())
                    over = 1.96 * gain[0, :, 0].std(ddof=1) / np.sqrt(seeds)
                    ranking = "" if np.isnan(means[0, 1]) else f"   {means[0, 1]:+.2f}"
                    print(f"{budget:3} {rule:30} {means[0, 0]:+.2f} ±{over:.2f} ±{jackknife:.2f}"
                          f"{ranking}", flush=True)  # fmt: skip


# --- the expectation --------------------------------------------------------------------------


def luck_of(job: tuple[str, int, tuple[int, ...]]) -> list[tuple[int, float, float, float, bool]]:
    """Return for each budget the errors of the largest, the winner's and the expected value, and
    whether the interval covers. A search sees pairs drawn with replacement from all pairs, whose
    mean is the truth."""
    name, seed, budgets = job
    curves = curves_of(name)
    draw, pairs = np.random.default_rng(1000 + seed), curves.margin.shape[-1]
    split = Split(curves, draw.integers(pairs, size=120), np.arange(pairs))
    found = []
    for budget in budgets:
        trials = search(curves, split, "random", seed, budget, np.arange(len(curves.margin)))
        if not trials:
            continue
        rows = np.array([(run, report) for run, reports in trials for report in range(reports)])
        at = tuple(rows.T)
        reports = luck.Reports(
            values=share_right(split.margins[at]),
            margins=split.margins[at],
            others=split.others[at] if split.others is not None else None,
            trials=np.unique(rows[:, 0], return_inverse=True)[1],
            pairs_seen=split.pairs_seen[at[1]],
            clusters=np.arange(120),
        )
        seen = luck.expected(reports)
        truth = split.truth[winner_of(split, trials, "the rule")]
        low, high = seen.interval
        found.append((budget, seen.largest - truth, seen.chosen - truth, seen.expected - truth,
                     bool(low <= truth <= high)))  # fmt: skip
    return found


def luck_table(sets: list[str], budgets: list[int], seeds: int, pool: Any) -> None:
    """Print the errors of the expected value."""
    print(f"errors in points, mean over {seeds} searches (random with ASHA, 120 pairs)")
    for name in sets:
        jobs = [(name, seed, tuple(budgets)) for seed in range(seeds)]
        found = [row for rows in pool.map(luck_of, jobs, chunksize=10) for row in rows]
        for budget in budgets:
            rows = np.array([row[1:] for row in found if row[0] == budget], dtype=float)
            if len(rows):
                largest, chosen, expected, covers = 100 * rows.mean(axis=0)
                print(f"{name:8} {budget:3}  largest {largest:+.2f}  winner's {chosen:+.2f}  "
                      f"expected {expected:+.2f}  the interval covers {covers:.1f} %",
                      flush=True)  # fmt: skip


# --- a saturated metric -----------------------------------------------------------------------


def saturated_of(job: tuple[str, int, int]) -> tuple[float, ...]:
    """Return the winner's true ranking under each rule, minus the median finished trial's."""
    sampler, seed, budget = job
    curves = curves_of("easy")
    split = halves(curves, seed)
    assert split.true_ranking is not None
    runs = np.arange(len(curves.margin))
    trials = search(curves, split, sampler, seed, budget, runs)
    whole = [run for run, reports in trials if reports == len(split.pairs_seen)]
    median = float(np.median([split.true_ranking[winner_of(split, [(run, len(split.pairs_seen))],
                                                       "the rule")] for run in whole]))  # fmt: skip
    return tuple(
        100 * (split.true_ranking[winner_of(split, trials, rule)] - median) for rule in RULES
    )


def saturated(seeds: int, pool: Any) -> None:
    """Print the winner's true ranking where all pairs are right."""
    for sampler in ("random", "tpe"):
        jobs = [(sampler, seed, 12) for seed in range(seeds)]
        found = np.array(list(pool.map(saturated_of, jobs, chunksize=5)))
        print(
            f"\neasy, {sampler} with ASHA, 12 trials: the winner's true ranking less the median "
            f"finished trial's, and the share of {seeds} searches in which it is -1 or more"
        )
        for rule, values in zip(RULES, found.T, strict=True):
            print(f"{rule:34} {values.mean():+.2f}  {(values >= -1).mean():.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["gains", "luck", "saturated"])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--samplers", nargs="+", choices=["random", "tpe"], default=["random"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[6, 12, 24, 48])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:
        if options.what == "gains":
            gains(options.sets, options.samplers, options.budgets, options.seeds, pool)
        elif options.what == "luck":
            luck_table(options.sets, options.budgets, options.seeds, pool)
        else:
            saturated(options.seeds, pool)


if __name__ == "__main__":
    main()
