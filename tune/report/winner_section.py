"""The head of a report: what won, by how much, how sure that is, and how to train it again.

As HTML; every text that comes from the search is escaped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from html import escape
from typing import Any

from tune.report.facts import _MEANINGS, trial_yaml, verdict
from tune.report.html import note, table
from tune.report.savings import most_pairs
from tune.run_folder.records import ENDED
from tune.run_folder.results import UNTRAINED, Results
from tune.run_folder.wording import describe


def answer(results: Results) -> str:
    """The head of the page: what won, by how much, and how to train it again."""
    head = f"<h1>{escape(results.name)}</h1>\n{note(_stand(results))}\n"
    winner = results.winner
    if winner is None:
        return head + _best_so_far(results)
    sentence = verdict(results) or (
        f"{winner.trial} won with {results.objective.metric} "
        f"{winner.eval[results.objective.metric.removeprefix('eval/')]:.3f}; it was not judged on "
        "test."
    )
    trial = next(trial for trial in results.trials if trial.id == winner.trial)
    return "\n".join(
        [
            f'{head}<p class="answer">{escape(sentence)}</p>',
            f"<h3>The winner: {escape(winner.trial)}, after {winner.pairs_seen} pairs</h3>",
            table([], [[path, _shown(value)] for path, value in winner.config.items()]),
            *_front(results),
            "<h3>Its numbers</h3>",
            _numbers(results),
            _confirmation(results),
            _recipe(results, most_pairs(results, trial)),
        ]
    )


def _stand(results: Results) -> str:
    counted = results.counted()
    ended = sum(trial.state in ENDED for trial in results.trials)
    planned = max(results.search.get("trials") or 0, len(results.trials))
    told = f"{ended} of {planned} trials ended: {counted}." if counted else "No trial has begun."
    if results.ended.startswith("budget"):
        told += f" The search ended by {results.ended}."
    elif not results.ended:
        told += " The search has not ended; this is how it stands."
    if results.search:
        told += f" Model: {results.search['model']['id']}, data: {results.search['data']['id']}."
    # Of a search that has ended the same page comes out again, whenever it is made.
    seconds = max((t.ended or 0 for t in results.trials), default=0) if results.ended else None
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    written = "Ended" if results.ended else "Written"
    return f"{told} Objective: {results.objective.told}. {written} {stamp}."


def _front(results: Results) -> Iterator[str]:
    """With two objectives the trials between which `select` decided."""
    names = [part.metric for part in results.objective.parts]
    trials = {trial.id: trial for trial in results.trials}
    rows = [
        [
            trial.id + (" won" if results.winner and trial.id == results.winner.trial else ""),
            *(f"{trial.metrics[name]:.3f}" for name in names),
            trial.state,
            str(int(trial.metrics["pairs_seen"])),
            describe(trial.config),
        ]
        for trial in map(trials.__getitem__, results.front)
    ]
    if rows:
        yield "<h3>The Pareto front</h3>"
        yield table(["trial", *names, "", "pairs", ""], rows)
        told = results.about_front()
        yield note(f"{told[0].upper()}{told[1:]}. Each trial stands here by its best report.")


def _best_so_far(results: Results) -> str:
    best = results.objective.best(results.trials)
    if best is None:
        return '<p class="answer">No trial was measured: nothing was won.</p>'
    metric = results.objective.metric
    told = f"No winner yet. Best so far: {best.id} with {metric} {best.metrics[metric]:.3f}."
    return f'<p class="answer">{escape(told)}</p>\n' + table(
        [], [[path, _shown(value)] for path, value in best.config.items()]
    )


def _numbers(results: Results) -> str:
    """Base and winner in each metric; numbers of the base that hold by definition included."""
    assert results.winner is not None
    base, test, held_out = results.base.get("test", {}), results.winner.test, results.winner.eval
    columns = {"base, test": {**UNTRAINED, **base} if test else {}, "winner, test": test}
    if results.confirmation is not None and results.confirmation.searched_test:
        columns["winner as searched, test"] = results.confirmation.searched_test
    columns["winner, eval"] = held_out
    rows = [
        [name, *(_value(name, column) for column in columns.values()), meaning]
        for name, meaning in _MEANINGS.items()
        if name in held_out or name in test
    ]
    shown = table(["", *columns, ""], rows, "numbers")
    told = "In brackets 95 % intervals of ranking, bootstrapped over prompts. "
    if over := test.get("over_base"):
        low, high = over["ranking"]["interval"]
        told += (
            f"Pair by pair the winner's ranking is {over['ranking']['difference']:+.3f} from the "
            f"base's (95 % interval {low:+.3f} to {high:+.3f}). "
        )
    if kl := results.winner.sampled_kl:
        low, high = kl["interval"]
        told += (
            f"On answers that the winner samples to held-out prompts its KL from the base is "
            f"{kl['mean']:.3g} nats an answer (95 % interval {low:.3g} to {high:.3g}). "
        )
    return shown + note(
        f"{told}The winner was picked on eval, where the best of many is partly lucky: the test "
        "numbers are the ones to quote."
    )


def _confirmation(results: Results) -> str:
    """The finalists with other seeds, so that one sees how much was luck."""
    confirmation, metric = results.confirmation, results.objective.metric
    if confirmation is None:
        return ""
    rows = []
    for finalist in confirmation.finalists:
        seeds = ", ".join(finalist.seeds_told)
        behind = kl = ""
        if finalist.sampled_kl:
            low, high = finalist.sampled_kl["interval"]
            kl = f"{finalist.sampled_kl['mean']:.3g} [{low:.3g}, {high:.3g}]"
        if finalist.behind:
            low, high = finalist.behind["interval"]
            behind = f"{finalist.behind['difference']:.3f} [{low:+.3f}, {high:+.3f}]"
        second = finalist.drift if finalist.second is None else finalist.second
        numbers = (finalist.mean, second)
        rows.append(
            [
                finalist.trial,
                f"{finalist.searched:.3f}",
                seeds,
                *("failed" if number is None else f"{number:.3f}" for number in numbers),
                kl,
                behind,
                ", ".join(f"{name} {value:.4g}" for name, value in finalist.evaluation.items()),
                describe(finalist.config),
            ]
        )
    head = [
        "finalist",
        "as searched",
        "other seeds",
        "mean",
        results.objective.other.metric.removeprefix("eval/"),
        "sampled KL",
        "behind",
        "own evaluation",
        "",
    ]
    told_of = [n for n, title in enumerate(head) if not title or any(row[n] for row in rows)]
    shown = table([head[n] for n in told_of], [[row[n] for n in told_of] for row in rows])
    told = f"{confirmation.winner} won by {confirmation.decided_by}."
    if confirmation.winner != confirmation.searched:
        told += f" The best of the search alone was {confirmation.searched}."
    told += (
        f" Numbers are {metric} on eval; behind is the difference to the winner's mean, pair by "
        "pair over the same held-out pairs, with its 95 % interval over prompts."
    )
    return f"<h3>Confirmed with other seeds</h3>\n{shown}{note(told)}"


def _value(name: str, numbers: dict[str, Any]) -> str:
    if name not in numbers:
        return ""
    value = f"{numbers[name]:.3f}"
    if name == "ranking" and "interval" in numbers:
        low, high = numbers["interval"]
        value += f"\n[{low:.2f}\u2060–\u2060{high:.2f}]"
    return value


def _recipe(results: Results, whole: int | None) -> str:
    """The winner's configuration as the YAML that `python -m dpo_train` reads."""
    assert results.winner is not None
    if not results.search:
        return ""
    seen = results.winner.pairs_seen
    told = (
        "Save this as <code>winner.yaml</code>, then type "
        "<code>python -m dpo_train winner.yaml --out winner-again</code>."
    )
    if whole and seen < whole:
        told += f" That trains on all {whole} pairs; the winner's weights are those after {seen}."
    return (
        f'<h3>To train it again</h3>\n<p class="note">{told}</p>\n'
        '<button type="button" data-copies="recipe">Copy</button>\n'
        f'<pre id="recipe">{escape(trial_yaml(results))}</pre>'
    )


def _shown(value: Any) -> str:
    """As YAML would, a float by four digits."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
