"""Two questions about recorded searches (`winner_rules.py` says how they are replayed).

    python benchmarks/rungs_and_bounds.py rungs    do rungs by paired differences find better ones
    python benchmarks/rungs_and_bounds.py bounds   what does a bound on the drift cost

At a rung all trials were measured on the same held-out pairs. ASHA stops every trial behind the
cutoff. The variant stops a trial only if it is behind the trial at the cutoff by more than k paired
standard errors of nll. It stops fewer trials, so it begins fewer: as many as the pairs allow on
which ASHA trained.
"""

import argparse
from typing import Any

import numpy as np
from curves import SETS, Curves, load
from winner_rules import REDUCTION, WORKERS, Split, best, halves, search, winner_of

from dpo_train.scoring.metrics import nll

RUNGS = (0, 2)


def replay(curves: Curves, split: Split, seed: int, trials: int, errors: float | None) -> Any:
    """Return the trainings of one search with their reports, and the number of trained pairs. A
    trial is stopped if it is behind by more than `errors` paired standard errors; None means
    ASHA."""
    left = list(np.random.default_rng(seed).permutation(len(curves.margin)))
    of_pairs, pairs = nll(split.margins), 0.0
    steps = np.diff(split.pairs_seen, prepend=0)
    reached: dict[int, list[int]] = {rung: [] for rung in RUNGS}
    running: list[list[int]] = []
    begun: list[list[int]] = []
    while running or len(begun) < trials:
        while len(running) < WORKERS and len(begun) < trials:
            begun.append([left.pop(0), 0])
            running.append(begun[-1])
        for trial in list(running):
            run, report = trial
            trial[1] += 1
            pairs += steps[report]
            if trial[1] == len(steps):
                running.remove(trial)
            elif report in reached:
                reached[report].append(run)
                values = -split.nll[reached[report], report]
                cutoff = np.percentile(values, 100 * (1 - 1 / REDUCTION))
                if values[-1] >= cutoff:
                    continue
                rival = reached[report][int(np.argmin(np.where(values >= cutoff, values, np.inf)))]
                behind = of_pairs[run, report] - of_pairs[rival, report]
                error = behind.std(ddof=1) / np.sqrt(len(behind))
                if errors is None or behind.mean() > errors * error:
                    running.remove(trial)
    return [(run, reports) for run, reports in begun], pairs


def rungs(sets: list[str], seeds: int) -> None:
    """Print the gain of the variant on each set."""
    for name in sets:
        curves = load(name)
        for trials in (12, 24):
            for errors in (0.5, 1.0, 2.0):
                if trials >= len(curves.margin):
                    continue
                found = [compared(curves, seed, trials, errors) for seed in range(seeds)]
                gain, begun, pairs = np.array(found).T
                over = 1.96 * gain.std(ddof=1) / np.sqrt(seeds)
                head = f"{name:7} {trials:3} trials, {errors:g} errors"
                shares = f"trials {begun.mean():.2f}, pairs {pairs.mean():.2f}"
                print(f"{head}: {gain.mean():+.2f} ±{over:.2f} points; {shares}", flush=True)


def compared(curves: Curves, seed: int, trials: int, errors: float) -> tuple[float, float, float]:
    """Return the variant's gain in points, and its trials and pairs as shares of ASHA's."""
    split = halves(curves, seed)
    before, most = replay(curves, split, seed, trials, None)
    fewer = trials
    after, pairs = replay(curves, split, seed, fewer, errors)
    while pairs > most:
        fewer -= 1
        after, pairs = replay(curves, split, seed, fewer, errors)
    truths = [split.truth[winner_of(split, each, "the rule")] for each in (after, before)]
    return 100 * (truths[0] - truths[1]), fewer / trials, pairs / most


def bounds(sets: list[str], seeds: int) -> None:
    """Print the cost of bounds on the drift."""
    for name in sets:
        curves = load(name)
        if name == "sample":  # its recording has no drift
            continue
        for bound in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, np.inf):
            found = []
            for seed in range(seeds):
                split = halves(curves, seed)
                assert split.true_ranking is not None
                trials = search(curves, split, "random", seed, 12, np.arange(len(curves.margin)))
                rows = [
                    (run, report)
                    for run, reports in trials
                    for report in range(reports)
                    if curves.drift[run, report] <= bound
                ]
                if rows:
                    won = best(split, rows)
                    numbers = (100 * split.truth[won], 100 * split.true_ranking[won])
                    found.append((*numbers, curves.drift[won]))
            accuracy, ranking, drift = np.mean(found, axis=0)
            shares = f"accuracy {accuracy:.1f}, ranking {ranking:.1f}"
            print(f"{name:7} drift at most {bound:4g}: {shares}, drift {drift:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rungs", "bounds"])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    {"rungs": rungs, "bounds": bounds}[options.what](options.sets, options.seeds)


if __name__ == "__main__":
    main()
