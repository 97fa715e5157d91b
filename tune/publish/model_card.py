"""Renders the model card: what the winner reached, how it was found, and its limits.

The card is made from redacted results alone, without any server, so the same search gives the same
card. `card.md` is its template; huggingface_hub writes the front matter as YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dpo_train.scoring import metrics
from tune.publish.markdown import templates
from tune.report import facts
from tune.report.doubts import doubts
from tune.run_folder.confirmation import Confirmation
from tune.run_folder.results import Results
from tune.run_folder.wording import describe, duration

_MOST_TRIALS = 20
_USAGE = """\
from transformers import pipeline

speak = pipeline("text-generation", "{}")
speak([{{"role": "user", "content": "…"}}], max_new_tokens=100)
"""


@dataclass(frozen=True)
class License:
    """A licence, with the fields that a model card of the Hub has for it."""

    license: str
    license_name: str | None = None
    """The licence's name if the Hub does not know it."""
    license_link: str | None = None


@dataclass(frozen=True)
class Publishing:
    """What a card needs to know beside the results."""

    repo: str
    base: str | None
    """The base model's Hub id; None if it is not on the Hub."""
    dataset: str | None
    """The dataset's Hub id; None if it is not on the Hub."""
    license: License
    kind: str
    """`full`, `adapter` or `merged`."""
    dtype: str
    pages: Mapping[str, str]
    """Public addresses that show the search, by what each shows."""
    gguf: str | None = None
    """The name of the GGUF file beside the weights, if there is one."""

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo.rpartition("/")[2]


def render(results: Results, publishing: Publishing) -> ModelCard:
    """Returns the card of a search's winner."""
    # The front matter.
    is_adapter = publishing.kind == "adapter"
    relation = "adapter" if is_adapter else "finetune"
    front = ModelCardData(
        **vars(publishing.license),
        base_model=publishing.base,
        base_model_relation=relation if publishing.base else None,
        datasets=[publishing.dataset] if publishing.dataset else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["dpo", "trl", "ray-tune", "optuna", "preference-tuning"],
        model_name=publishing.name,
        eval_results=_eval_results(results),
    )
    # The text.
    assert results.test_of_winner is not None
    environment = templates(Path(__file__).parent)
    environment.filters["sentence"] = lambda text: f"{text[:1].upper()}{text[1:]}."
    body = environment.get_template("card.md").render(
        results=results,
        publishing=publishing,
        facts=facts,
        measured=metrics.measured(results.test_of_winner.metrics),
        usage=_USAGE.format(publishing.repo),
        search_facts=_search_facts(results, publishing),
        best=results.ranked()[:_MOST_TRIALS],
        describe=describe,
        luck=facts.luck(results),
        doubts=doubts(results),
        made_with=_made_with(results),
    )
    return ModelCard(f"---\n{front.to_yaml()}\n---\n\n{body}")


def _eval_results(results: Results) -> list[EvalResult]:
    """Returns the winner's test results.

    The Hub shows them in its own table, and a later winner is compared with them.
    """
    assert results.winner is not None
    data = results.search["data"]
    key = {"key": results.data["key"]} if "key" in results.data else {}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data["id"],
            dataset_name=data["id"],
            dataset_config=data["config"],
            dataset_revision=data["revision"],
            dataset_split=data["test_split"] or f"held out of {data['split']}",
            dataset_args={**key, "pairs": results.winner.test.pairs},
            metric_type=metric.short_name,
            metric_name=metric.explained,
            metric_value=round(results.winner.test.metrics[metric.short_name], 4),
        )
        for metric in metrics.measured(results.winner.test.metrics)
    ]


def compared(card: ModelCard, results: Results) -> tuple[float, float] | None:
    """Returns the objective on the test split as (on the card, in the results).

    Returns None if the card has no such number for the same pairs and the same base.
    """
    name = results.objective.metric.removeprefix("eval/")
    for ours in _eval_results(results):
        for theirs in card.data.get("eval_results") or []:
            same = theirs.dataset_args == ours.dataset_args and "key" in (ours.dataset_args or {})
            if same and ours.metric_type == theirs.metric_type == name:
                return float(theirs.metric_value), float(ours.metric_value)
    return None


def _search_facts(results: Results, publishing: Publishing) -> dict[str, str]:
    """Returns the facts about the search, by their names."""
    assert results.winner is not None
    winner, ranked = results.winner, [trial.id for trial in results.ranked()]
    left_out = facts.left_out(results)
    found = {
        "proposed by": facts.proposed_by(results),
        "objective": facts.aim(results),
        "early stopping": facts.stopping_rule(results),
        "trials": results.state_counts(),
        "ended by": results.ended,
        "this model": f"trial {winner.trial}, rank {ranked.index(winner.trial) + 1} of "
        f"{len(ranked)}, after {winner.pairs_seen} pairs: {describe(winner.config)}",
        "training seed": str(winner.config.get("seed", results.search["seed"])),
        "pairs": f"{facts.splits(results)}; no prompt is in two splits"
        + (f"; left out: {left_out}" if left_out else ""),
    }
    if front := results.describe_front():
        found["result"] = front
    if results.confirmation is not None:
        found["confirmed by"] = _describe_confirmation(results.confirmation)
    if winner.warm_from:
        found["started from"] = f"the weights of trial {winner.warm_from}, not the base's"
    return {**found, **publishing.pages}


def _describe_confirmation(confirmation: Confirmation) -> str:
    """Returns what decided, and each finalist's values with other seeds."""
    values = "; ".join(
        f"{each.trial} {', '.join(each.seed_values)} (in the search: {each.searched:.3f})"
        for each in confirmation.finalists
    )
    count = len(confirmation.finalists)
    return f"{confirmation.decided_by}; {count} finalists were trained again: {values}"


def _made_with(results: Results) -> list[str]:
    cost, estimate = results.cost, facts.saved(results)
    spent = f"{cost.gpu_seconds / 3600:.2f} GPU-hours, " if cost.gpu_seconds else ""
    ran_on = f"{hardware}; " if (hardware := facts.hardware(results)) else ""
    lines = [
        f"{ran_on}{spent}{duration(cost.wall_seconds)} from start to end, {cost.pairs_seen} "
        "pairs trained on",
        f"reference log-probs of {cost.reference_pairs} pairs computed"
        + (f"; stopping trials early saved about {estimate.pairs} pairs" if estimate else ""),
    ]
    return [*lines, *filter(None, [facts.versions(results)])]
