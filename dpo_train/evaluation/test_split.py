"""What an exported model is worth in the end: the test split's numbers, and greedy answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_train import export, model, reference
from dpo_train.config import ModelConfig
from dpo_train.data import Row
from dpo_train.data.row import text_of
from dpo_train.evaluation import sampled_kl
from dpo_train.evaluation.test_report import (
    Answer,
    Difference,
    Numbers,
    TestFolders,
    TestReport,
)
from dpo_train.reference_pass.chat_template import ChatTemplate
from dpo_train.scoring import logps, metrics
from dpo_train.scoring.intervals import difference_interval, share_interval

SHOWN = 5
"""Answers that a person reads."""
MEASURED = 32
"""Answers whose length is measured: a judge that likes long answers rewards length alone."""
MOST_TOKENS = 128
"""Of one answer; what is longer counts as that long."""


def evaluate_on_test(folders: TestFolders, base: ModelConfig) -> TestReport:
    """Compares base and winner on the untouched split, pair by pair; and with the best export of
    the search where the winner is another. Estimates the KL of the sampled exports."""
    device = folders.device
    data = reference.prepare(folders.prepared)
    rows = data.split("test")[:]
    # A prompt that has several pairs is answered once.
    first: dict[str, int] = {}
    for number, prompt in enumerate(rows["prompt"]):
        first.setdefault(prompt, number)
    answered = dict(list(first.items())[:MEASURED])
    prompts = [Row.from_json(json.loads(prompt)) for prompt in answered]
    references = [rows["chosen"][number] for number in answered.values()]
    warm = model.load_base(base, device, folders.prepared)
    untrained = warm.fresh(trained_in_full=False).eval()
    said = _answers(untrained, warm.tokenizer, prompts)
    of_base = Numbers(answer_tokens=_mean_length(said), repeating=_repeating(said))
    alone = [np.array(rows[f"ref_{name}_logps"]) for name in ("chosen", "rejected")]
    before = metrics.ranking(logps.pair_logps(rows, *alone))

    # From here on the base may carry an adapter.
    ours = _judge_one(folders.winner, rows, prompts, data.pad_token_id, device)
    over_base = _over(rows, ranking=ours.values["ranking"] - before)
    over_searched: dict[str, Difference] = {}
    searched = None
    if folders.searched is not None:
        other = _judge_one(folders.searched, rows, prompts, data.pad_token_id, device)
        names = ("ranking", "accuracy")
        differences = {name: ours.values[name] - other.values[name] for name in names}
        over_searched = _over(rows, **differences)
        searched = other.numbers(_over(rows, ranking=other.values["ranking"] - before))
    return TestReport(
        test=ours.numbers(over_base, over_searched),
        base=of_base,
        answers=[
            Answer(
                prompt=prompt,
                base=said[number].text,
                winner=ours.answers[number].text,
                chosen=references[number],
                base_is_cut=said[number].is_cut,
                winner_is_cut=ours.answers[number].is_cut,
            )
            for prompt, number in shown_prompts(prompts).items()
        ],
        searched=searched,
        sampled_kl={
            name: sampled_kl.estimate(folder, base, folders.prepared, device)
            for name, folder in folders.sampled.items()
        },
    )


def shown_prompts(prompts: list[Row]) -> dict[str, int]:
    """By text the first SHOWN prompts and their places, each text once: conversations that differ
    may have the same last message, which is what a person reads."""
    first: dict[str, int] = {}
    for number, row in enumerate(prompts):
        first.setdefault(text_of(row.prompt[-1:]).strip(), number)
    return dict(list(first.items())[:SHOWN])


@dataclass(frozen=True)
class _Said:
    """A greedy answer."""

    text: str
    tokens: int
    is_cut: bool
    """Whether it did not come to its end."""


@dataclass(frozen=True)
class _Judged:
    values: dict[str, metrics.Floats]
    """For each test pair."""
    prompt_keys: list[str]
    answers: list[_Said]

    def numbers(
        self,
        over_base: dict[str, Difference],
        over_searched: dict[str, Difference] | None = None,
    ) -> Numbers:
        return Numbers(
            metrics=metrics.means(self.values),
            interval=share_interval(self.values["ranking"], self.prompt_keys),
            pairs=len(self.prompt_keys),
            answer_tokens=_mean_length(self.answers),
            repeating=_repeating(self.answers),
            over_base=over_base,
            over_searched=over_searched or {},
        )


def _judge_one(
    folder: Path, rows: dict[str, list[Any]], prompts: list[Row], pad_token_id: int, device: str
) -> _Judged:
    policy, tokenizer = export.load(folder, device)
    said = _answers(policy, tokenizer, prompts)
    is_adapter = hasattr(policy, "peft_config")
    inner = policy.get_base_model() if is_adapter else policy
    scores = logps.score(inner, rows, pad_token_id, device)
    if is_adapter:
        policy.unload()
    values = metrics.pair_values(logps.pair_logps(rows, *scores))
    return _Judged(values, rows["prompt_key"], said)


def _over(rows: dict[str, list[Any]], **differences: metrics.Floats) -> dict[str, Difference]:
    return {
        name: Difference(
            difference=float(each.mean()), interval=difference_interval(each, rows["prompt_key"])
        )
        for name, each in differences.items()
    }


def repeats_itself(text: str) -> bool:
    """Whether one to four words come four times in a row, like "air air air air"."""
    return _REPEATED.search(text) is not None


_REPEATED = re.compile(r"(?<!\S)(\S+(?:\s+\S+){0,3}?)(?:\s+\1){3}(?!\S)")


def _repeating(answers: list[_Said]) -> float:
    """The share of answers that do."""
    return sum(repeats_itself(answer.text) for answer in answers) / len(answers)


def _mean_length(answers: list[_Said]) -> float:
    return sum(answer.tokens for answer in answers) / len(answers)


def _answers(policy: Any, tokenizer: Any, prompts: list[Row]) -> list[_Said]:
    """One greedy answer to each prompt."""
    template = ChatTemplate(tokenizer, "the model")
    texts = [template.prompt(row) for row in prompts]
    asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
    greedy = {"do_sample": False, "max_new_tokens": MOST_TOKENS}
    ends = sampled_kl.end_tokens(policy, tokenizer)
    said = []
    for row in sampled_kl.generate(policy, tokenizer, asked, **greedy):
        tokens = [token for token in row if token not in tokenizer.all_special_ids]
        is_cut = len(row) == MOST_TOKENS and not set(row) & set(ends)
        said.append(_Said(str(tokenizer.decode(tokens)).strip(), len(tokens), is_cut))
    return said
