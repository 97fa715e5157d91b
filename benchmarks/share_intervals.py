"""Measures how often a share's 95 % interval covers it, near 1 too and with 3 rows a prompt."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy.stats import binom  # noqa: E402

from dpo_train.scoring.intervals import jeffreys, share_interval  # noqa: E402

SHARES, PROMPTS = (0.5, 0.8, 0.95, 0.98), (20, 40, 160)


def intervals(draws: int) -> None:
    """Print the coverage of the intervals."""
    exact = {}
    for count in PROMPTS:
        ends = np.array([jeffreys(right / count, count) for right in range(count + 1)])
        for share in SHARES:
            covers = (ends[:, 0] - 1e-12 <= share) & (share <= ends[:, 1] + 1e-12)
            exact[count, share] = binom.pmf(np.arange(count + 1), count, share)[covers].sum()
    _print_coverage("one row a prompt, exact", exact)
    draw = np.random.default_rng(0)
    for alike in (0.3, 0.7):
        found = {}
        for count in PROMPTS:
            for share in SHARES:
                a, b = (each * (1 - alike) / alike for each in (share, 1 - share))
                hits = 0
                for _ in range(draws):
                    of_prompt = draw.beta(a, b, count)
                    rows = (draw.random((count, 3)) < of_prompt[:, None]).astype(float).reshape(-1)
                    low, high = share_interval(rows, np.repeat(np.arange(count), 3))
                    hits += low - 1e-12 <= share <= high + 1e-12
                found[count, share] = hits / draws
        _print_coverage(f"three rows a prompt, correlated by {alike}, {draws} draws", found)


def _print_coverage(title: str, found: dict[tuple[int, float], float]) -> None:
    values = list(found.values())
    print(f"{title}: mean {np.mean(values):.1%}, least {min(values):.1%}")
    for count in PROMPTS:
        print(f"  {count:3} prompts: " + "  ".join(f"{s:g} {found[count, s]:.1%}" for s in SHARES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1500, help="with three rows a prompt")
    intervals(parser.parse_args().draws)


if __name__ == "__main__":
    main()
