"""The words and tables of a report, as HTML. Every text that comes from the search is escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from tune.config.objective import Objective
from tune.report.html import note, table
from tune.report.savings import saved
from tune.run_folder.results import Results
from tune.run_folder.wording import describe, duration

Section = tuple[str, str, str]
"""The name of its figures, its title, the HTML that stands between the two."""


def sections(results: Results) -> Iterator[Section]:
    """All that follows the answer."""
    objective = results.objective
    yield (
        "history",
        "Optimization history",
        note("Trials in the order in which they were proposed, each at its best report."),
    )
    yield (
        "parallel",
        "Parallel coordinates",
        note(f"A line for each finished trial, through its {objective.told} and its values; the "
             "darker, the better."),
    )  # fmt: skip
    yield (
        "importance",
        "Importance of each hyperparameter",
        note("How far the best finished trials differ in each axis from all finished ones "
             "(PED-ANOVA). Few trials say little."),
    )  # fmt: skip
    yield "curves", "Learning curves", note(_about_curves(results))
    stopping = results.search.get("stopping", {})
    metrics = [part.metric for part in objective.parts]
    if stopping.get("name", "none") != "none" and stopping["metric"] not in metrics:
        yield (
            "compared",
            "What early stopping looked at",
            note(
                f"{stopping['metric']} of the same trials: what is compared at the rungs"
                + (f", together with {metrics[1]}." if objective.second else ".")
            ),
        )
    yield "pareto", *_about_pareto(results.objective.plane)
    yield (
        "slices",
        "Slices",
        note(f"{objective.told} of the finished trials against each axis; the darker, the later."),
    )
    yield "cost", "Time", _time(results)
    yield "failures", "Failures", _failures(results)
    yield "answers", "Sample answers", _answers(results)


def _about_pareto(plane: Objective) -> tuple[str, str]:
    name, other = (part.metric.removeprefix("eval/") for part in plane.parts)
    sides = {"max": ("up", "right"), "min": ("down", "left")}
    better = f"{sides[plane.mode][0]} is better in {plane.metric}, "
    better += f"{sides[plane.other.mode][1]} in {plane.other.metric}"
    told = f"Each trial at its best report: {better}; no trial lies on that side of the grey line."
    return f"{name.capitalize()} against {other}", note(told)


def _about_curves(results: Results) -> str:
    told = f"{results.objective.told} at every report. A cross stands where a trial was stopped"
    told += ", a star at the weights that won." if results.winner else "."
    name = results.search.get("stopping", {}).get("name")
    if name == "asha":
        told += " Dotted lines are ASHA's rungs, at which weak trials are stopped."
    if name == "median":
        told += " From the dotted line on, trials below the median are stopped."
    return told


def _time(results: Results) -> str:
    cost = results.cost
    seconds = sum(run.seconds for run in results.runs)
    rows = [
        ["wall clock", duration(cost.wall_seconds)],
        ["held by trials", duration(seconds)],
        ["pairs trained on", str(cost.pairs_seen)],
        ["pairs of which the reference's log-probs were computed", str(cost.reference_pairs)],
    ]
    if cost.gpu_seconds:
        rows.insert(2, ["GPU-hours", f"{cost.gpu_seconds / 3600:.2f}"])
    estimate = saved(results)
    if estimate is None:
        return table([], rows)
    gpus = cost.gpu_seconds / seconds if seconds else 0
    length = f"{estimate.seconds * gpus / 3600:.2f} GPU-hours, " if gpus else ""
    rows.append(["saved by stopping trials", f"about {length}{duration(estimate.seconds)}"])
    told = (
        f"Saved is an estimate: the {estimate.pairs} pairs that stopped trials did not train on, "
        "times each one's measured seconds per pair."
    )
    if results.ended.startswith("budget"):
        told += " Trials that the budget cut off are counted with those that early stopping did."
    return table([], rows) + note(told)


def _failures(results: Results) -> str:
    failed = [trial for trial in results.trials if trial.state == "failed"]
    if not failed:
        return note("No trial failed.")
    return table(
        ["trial", "pairs", "error", "config"],
        [[t.id, str(t.pairs_seen), t.error or "", describe(t.config)] for t in failed],
    )


def _answers(results: Results) -> str:
    if not results.answers:
        return note("There are none: they are taken from the winner when it is judged on test.")
    told = note("Greedy answers to the first prompts of the test split.")
    return told + "\n".join(_answer(sample) for sample in results.answers)


def _answer(sample: dict[str, str]) -> str:
    said = [
        f'<div><h3>{who.capitalize()}</h3><p class="said">{escape(sample[who])}</p></div>'
        for who in ("base", "winner")
    ]
    return (
        f'<p class="prompt">{escape(sample["prompt"])}</p>\n'
        f'<div class="answers">{"".join(said)}</div>'
    )
