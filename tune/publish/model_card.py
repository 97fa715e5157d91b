"""The model card: what was won, how it was found, and where it ends, as Markdown for the Hub.

Made from redacted results alone, so that the same search gives the same card. Asks no server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dpo_train.evaluation.test_report import Numbers
from dpo_train.scoring import metrics
from tune.config.space import Axis
from tune.report.doubts import doubts
from tune.report.facts import luck, saved, trial_yaml, verdict
from tune.run_folder.confirmation import Confirmation
from tune.run_folder.results import Results
from tune.run_folder.wording import describe, duration

_MOST_TRIALS = 20
_GGUF = "\n\nIn llama.cpp: `llama-server -m {}`; in Ollama: `ollama create {} -f Modelfile`."


@dataclass(frozen=True)
class License:
    """A licence by the names that a card of the Hub has for its parts."""

    license: str
    license_name: str | None = None
    """Where the Hub has no name for it."""
    license_link: str | None = None


@dataclass(frozen=True)
class Publishing:
    """What a card says beyond the results."""

    repo: str
    base: str | None
    """The base model's Hub id, if it lies there."""
    dataset: str | None
    """The dataset's Hub id, if it lies there."""
    license: License
    kind: str
    """`full`, `adapter` or `merged`."""
    dtype: str
    pages: Mapping[str, str]
    """The addresses at which everyone may see the search, by what is seen there."""
    gguf: str | None = None
    """The name of the GGUF file beside the weights, if there is one."""

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


def render(results: Results, publishing: Publishing) -> ModelCard:
    """The card of a search's winner, its front matter as huggingface_hub writes it."""
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
    sections = {
        "What it reached": _numbers(results),
        "How to use it": _usage(publishing),
        "How it was found": _search(results, publishing) + "\n\n" + _trials(results),
        "To train it again": f"One trial's configuration; the whole search is `search.yaml`, every "
        f"number `results.json`.\n\n```yaml\n{trial_yaml(results)}```",
        "Limits": _limits(results),
        "Made with": _environment(results, publishing),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    top = f"# {publishing.name}\n\n{_introduction(results, publishing)}"
    return ModelCard(f"---\n{front.to_yaml()}\n---\n\n{top}\n\n{body}\n")


def _eval_results(results: Results) -> list[EvalResult]:
    """The test split's numbers, for the Hub's own table and for comparing with a later winner."""
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
    """(there, here) of the objective on test; None if the card has no number to compare with.

    Numbers are compared only if they are of the same pairs and the same base.
    """
    name = results.objective.metric.removeprefix("eval/")
    for ours in _eval_results(results):
        for theirs in card.data.get("eval_results") or []:
            same = theirs.dataset_args == ours.dataset_args and "key" in (ours.dataset_args or {})
            if same and ours.metric_type == theirs.metric_type == name:
                return float(theirs.metric_value), float(ours.metric_value)
    return None


def _introduction(results: Results, publishing: Publishing) -> str:
    search = results.search
    base = f"[{publishing.base}](https://huggingface.co/{publishing.base})"
    data = f"[{publishing.dataset}](https://huggingface.co/datasets/{publishing.dataset})"
    kinds = {
        "full": "All weights were tuned.",
        "adapter": "This is a LoRA adapter; the base's weights come with the base.",
        "merged": "A LoRA adapter was tuned and added to the base's weights.",
    }
    model = base if publishing.base else _named(search["model"]["id"], "model")
    return (
        f"This is {model}, tuned with "
        "[Direct Preference Optimization](https://arxiv.org/abs/2305.18290) on "
        f"{data if publishing.dataset else _named(search['data']['id'], 'dataset')}. "
        f"{kinds[publishing.kind]} It is the best of {len(results.trials)} trials of a "
        f"hyperparameter search.\n\n{verdict(results)}"
    )


def _named(source: str, what: str) -> str:
    if source == "sample":
        return f"the synthetic sample {what} of dpo-tune, made to show that the chain works"
    return f"a {what} that is not on the Hub (`{source}`)"


def _numbers(results: Results) -> str:
    base, test = results.test_of_base, results.test_of_winner
    assert base is not None
    assert test is not None
    rows = [
        [f"{name}: {metric.explained}", _value(name, base), _value(name, test)]
        for metric in metrics.measured(test.metrics)
        for name in [metric.short_name]
    ]
    if base.answer_tokens is not None and test.answer_tokens is not None:
        lengths = [f"{length:.1f}" for length in (base.answer_tokens, test.answer_tokens)]
        rows.append(["mean tokens of a greedy answer", *lengths])
    return (
        _table([f"{test.pairs} test pairs", "base", "this model"], rows)
        + "\n\nIn brackets 95 % intervals over prompts (Jeffreys). The test pairs decided "
        "nothing in the search; a tie counts one half, so the base's own accuracy is 0.5."
    )


def _value(name: str, numbers: Numbers) -> str:
    if name not in numbers.metrics:
        return "–"
    value = f"{numbers.metrics[name]:.3f}"
    if name == "ranking":
        low, high = numbers.interval
        value += f" [{low:.2f}, {high:.2f}]"
    return value


def _usage(publishing: Publishing) -> str:
    needs = " and peft" if publishing.kind == "adapter" else ""
    weights = f"{publishing.dtype}; the numbers above were measured before they became that"
    if publishing.kind == "adapter":
        weights = "as they were trained"
    gguf = _GGUF.format(publishing.gguf, publishing.name) if publishing.gguf else ""
    return (
        f"With transformers{needs}:\n\n```python\nfrom transformers import pipeline\n\n"
        f'speak = pipeline("text-generation", "{publishing.repo}")\n'
        'speak([{"role": "user", "content": "…"}], max_new_tokens=100)\n```\n\n'
        f"The chat template comes with the tokenizer. Weights are {weights}. Or behind "
        f"OpenAI's API and a web page, with dpo-tune: `python -m serve {publishing.repo}`.{gguf}"
    )


def _search(results: Results, publishing: Publishing) -> str:
    assert results.winner is not None
    search, winner = results.search, results.winner
    stopping, sampler, pairs = search["stopping"], search["sampler"], results.data["pairs"]
    second = results.objective.second
    compared = stopping["metric"] + (f" and {second.metric}, by their fronts" if second else "")
    rules = {
        "asha": f"ASHA on {compared}, first rung at {stopping['grace_pairs']} pairs, one "
        f"in {stopping['reduction']} goes on",
        "median": f"the median rule on {stopping['metric']}, from {stopping['grace_pairs']} pairs",
        "none": "none",
    }
    splits = ", ".join(f"{count} {name}" for name, count in pairs.items())
    left_out = "".join(f", {count} {why}" for why, count in results.data["dropped"].items())
    ranked = [trial.id for trial in results.ranked()]
    facts = {
        "proposed by": "a grid, point by point"
        if sampler["name"] == "grid"
        else f"Optuna's {sampler['name']}, seed {sampler['seed']}",
        "objective": " and ".join(f"{p.mode}imise {p.metric}" for p in results.objective.parts)
        + " on held-out pairs"
        + (f", with {results.objective.bounds_text}" if results.objective.bounds else ""),
        "early stopping": rules[stopping["name"]],
        "trials": results.counted(),
        "ended by": results.ended,
        "this model": f"trial {winner.trial}, number {ranked.index(winner.trial) + 1} of "
        f"{len(ranked)}, after {winner.pairs_seen} pairs: {describe(winner.config)}",
        "seed of its training": str(winner.config.get("seed", search["seed"])),
        "pairs": f"{splits}; no prompt on two sides" + left_out.replace(",", "; left out:", 1),
    }
    if told := results.about_front():
        facts["result"] = told
    if results.confirmation is not None:
        facts["confirmed by"] = _confirmed(results.confirmation)
    if winner.warm_from:
        facts["began from"] = f"the weights of trial {winner.warm_from}, not the base's"
    facts |= publishing.pages
    axes = [
        [f"`{path}`", Axis.model_validate(axis).describe(), _shown(winner.config.get(path))]
        for path, axis in search["space"].items()
    ]
    told = "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items())
    return f"{told}\n\n{_table(['searched', 'range', 'this model'], axes)}"


def _confirmed(confirmation: Confirmation) -> str:
    """How the finalists did with other seeds, one after the other."""
    told = "; ".join(
        f"{each.trial} {', '.join(each.seeds_told)} (searched: {each.searched:.3f})"
        for each in confirmation.finalists
    )
    count = len(confirmation.finalists)
    return f"{confirmation.decided_by}, of {count} finalists trained again: {told}"


def _trials(results: Results) -> str:
    metric, second = results.objective.metric, results.objective.other.metric
    rows = [
        [
            trial.id,
            trial.state,
            str(trial.pairs_seen),
            f"{trial.metrics[metric]:.3f}" if trial.metrics else "",
            f"{trial.metrics[second]:.3f}" if trial.metrics else "",
            describe(trial.config),
        ]
        for trial in results.ranked()[:_MOST_TRIALS]
    ]
    more = len(results.trials) - len(rows)
    head = ["trial", "state", "pairs", metric, second, "config"]
    return _table(head, rows) + (f"\n\nand {more} more in `results.json`." if more else "")


def _limits(results: Results) -> str:
    assert results.winner is not None
    held_out, test = results.data["pairs"]["eval"], results.winner.test
    kl = results.winner.sampled_kl
    on_its_own = f"; so does a KL of {kl.mean:.3g} nats on answers that it samples" if kl else ""
    lines = [
        f"It was picked as the best of {len(results.trials)} on {held_out} held-out pairs, and the "
        "best of many is partly lucky there: the test numbers above are the ones to quote."
        + (f" {told[:1].upper()}{told[1:]}." if (told := luck(results)) else ""),
        *(f"{doubt[:1].upper()}{doubt[1:]}." for doubt in doubts(results)),
        "All numbers are of preference pairs from the same source as the training data. Nothing "
        "else was measured: not what it knows, not what it refuses, not other languages or longer "
        "conversations.",
        "DPO widens the gap between chosen and rejected answers; both may have become less likely. "
        f"The drift of {test.metrics['drift']:.2f} nats per token says how far it left the base"
        f"{on_its_own}.",
        "What the base does wrong it may still do wrong.",
    ]
    if "sample" in (results.search["model"]["id"], results.search["data"]["id"]):
        lines.insert(0, "Its model or data are synthetic, made to show that a search works: it is "
                        "of no use beyond that.")  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)


def _environment(results: Results, publishing: Publishing) -> str:
    about = results.environment
    hardware = about.get("hardware", {})
    kinds = " ".join(hardware.get("kinds", []))
    gpus = f"{hardware.get('GPU', 0):g} GPU {kinds}".strip() if hardware.get("GPU") else "no GPU"
    cost, estimate = results.cost, saved(results)
    spent = f"{cost.gpu_seconds / 3600:.2f} GPU-hours, " if cost.gpu_seconds else ""
    ran_on = f"{hardware['CPU']:g} CPU cores, {gpus}; " if hardware else ""
    lines = [
        f"{ran_on}{spent}{duration(cost.wall_seconds)} from beginning to end, {cost.pairs_seen} "
        "pairs trained on",
        f"reference log-probs of {cost.reference_pairs} pairs computed"
        + (f"; stopping trials early saved about {estimate.pairs} pairs" if estimate else ""),
    ]
    if about:
        versions = (f"{name} {number}" for name, number in about["versions"].items())
        lines.append(f"Python {about['python']}, {', '.join(versions)}")
    if publishing.base and (revision := results.search["model"]["revision"]):
        lines.append(f"base model at commit `{revision}`")
    return "\n".join(f"- {line}" for line in lines)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else f"`{value}`"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
